"""Who becomes champion: what ranks better than popularity and no worse than the champion, one at a time."""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from recbole_dynamicpo.errors import DataError, LockedError
from recbole_dynamicpo.evaluation.ranks import read_ranks, write_ranks
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.storage import locked
from recbole_dynamicpo.tracking import champion as rules
from recbole_dynamicpo.tracking.champion import ENOUGH_USERS, promote
from recbole_dynamicpo.tracking.registry import Registered, register_model
from recbole_dynamicpo.tracking.sync import sync

from ..helpers.finished_runs import FAIR, GOOD, NAME, POPULAR, always_passes, make_run, write_valid_ranks

pytestmark = pytest.mark.usefixtures("figures_drawn_once")


@pytest.fixture(autouse=True)
def _always_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh process: the gate finds no difference."""
    always_passes(monkeypatch)


def champion_at(uri: str) -> str | None:
    number = MlflowClient(uri).get_registered_model(NAME).aliases.get("champion")
    return str(number) if number else None


# --- better than popularity ---

# One row more, or as many as popularity has and one more, is no proof; nor is a gain on few rows.
BARELY = [1] * 41 + [4] * 79
NOISE = [1, 4] * 60


@pytest.mark.parametrize("improve", [True, False])
@pytest.mark.parametrize(
    ("ranks", "popular"),
    [
        (POPULAR, GOOD),
        (POPULAR, POPULAR),
        (BARELY, POPULAR),
        (NOISE, NOISE[::-1]),
        ([1] * (ENOUGH_USERS - 1), [4] * (ENOUGH_USERS - 1)),
        ([1] * 16, [4] * 16),
        (None, POPULAR),
    ],
    ids=["worse", "as good", "one row better", "noise", "49 rows", "16 rows", "not validated"],
)
def test_what_is_not_better_than_popularity_is_no_champion(
    tmp_path: Path,
    tiny_backbone: Path,
    uri: str,
    caplog: pytest.LogCaptureFixture,
    ranks: Sequence[int] | None,
    popular: Sequence[int],
    improve: bool,
) -> None:
    """Also where no improvement over a former champion is asked for; the last line says why."""
    caplog.set_level(logging.INFO)
    folder = make_run(tmp_path / "run", tiny_backbone, None, ranks=None, require_improvement=improve)
    if ranks is not None:
        write_valid_ranks(folder, ranks, popular)
    sync(folder, uri)
    found = register_model(folder, uri)
    assert (found.champion, champion_at(uri)) == (False, None)
    wanted = (
        "ranks no better than popularity (MRR" if len(ranks or ()) >= ENOUGH_USERS else "not compared with"
    )
    assert f"not champion: {wanted}" in caplog.messages[-1]
    tags = MlflowClient(uri).get_model_version(NAME, "1").tags
    assert (tags["gate"], tags["gate_reason"]) == ("failed", found.reason)


def test_enough_rows_are_enough(tmp_path: Path, tiny_backbone: Path, uri: str) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, None, ranks=None)
    write_valid_ranks(folder, [1] * ENOUGH_USERS, [4] * ENOUGH_USERS)
    sync(folder, uri)
    assert register_model(folder, uri).champion


def test_many_rows_of_few_users_are_not_enough(tmp_path: Path, tiny_backbone: Path, uri: str) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, None, ranks=None)
    rows = [str(row) for row in range(4 * (ENOUGH_USERS - 1))]
    users = [str(row % (ENOUGH_USERS - 1)) for row in range(len(rows))]
    for who, rank in (("preference", 1), ("popularity", 4)):
        write_ranks(folder / f"valid_{who}.parquet", rows, users, [rank] * len(rows), {"users": "u"})
    sync(folder, uri)
    found = register_model(folder, uri)
    assert not found.champion
    assert "takes validation rows of 50 users or more" in found.reason


def test_ranks_of_other_rows_than_popularitys_are_an_error(
    tmp_path: Path, tiny_backbone: Path, uri: str
) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, uri)
    names = [f"other {row}" for row in range(120)]
    write_ranks(folder / "valid_popularity.parquet", names, names, POPULAR)
    with pytest.raises(DataError, match="paired comparison needs both runs evaluated on the same rows"):
        register_model(folder, uri)
    assert champion_at(uri) is None


# --- against the champion ---

SLIGHTLY_WORSE = [1] * 98 + [4] * 22


def second(
    tmp_path: Path, backbone: Path, uri: str, ranks: Sequence[int], first: Sequence[int] = GOOD, **how: Any
) -> Registered:
    """Register a first model, which becomes champion, and then a second one."""
    assert register_model(make_run(tmp_path / "first", backbone, uri, ranks=first), uri).champion
    return register_model(make_run(tmp_path / "second", backbone, uri, ranks=ranks, seed=4, **how), uri)


@pytest.mark.parametrize(
    ("first", "ranks", "improve", "champion"),
    [
        (FAIR, GOOD, True, "2"),
        (GOOD, GOOD, True, "2"),
        (GOOD, SLIGHTLY_WORSE, True, "2"),
        (GOOD, FAIR, True, "1"),
        (GOOD, FAIR, False, "2"),
        (GOOD, POPULAR, False, "1"),
    ],
    ids=["better", "as good", "not proven worse", "worse", "worse, but allowed", "no better than popularity"],
)
def test_the_second_model(
    tmp_path: Path,
    tiny_backbone: Path,
    uri: str,
    first: Sequence[int],
    ranks: Sequence[int],
    improve: bool,
    champion: str,
) -> None:
    """Whose ``valid_metric`` is far higher, which decides nothing."""
    found = second(tmp_path, tiny_backbone, uri, ranks, first, valid=0.99, require_improvement=improve)
    assert champion_at(uri) == champion
    assert found.champion is (champion == "2")
    if not found.champion and improve:
        assert found.reason.startswith(
            "worse than the champion, version 1 (MRR 0.7500 against 0.8750 of it on"
        )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"rows": {"candidates": "other"}, "described": {"seed": 8}},
            "seed 8 against 7: .* other candidates",
        ),
        ({"rows": {"users": "other", "targets": "other"}}, "other targets, users"),
        ({"rows": {"places": "other"}}, "other places"),
        ({"rows": {"histories": "other"}}, "other histories"),
        (
            {"ranks": GOOD[:100]},
            "the model has 100 rows and the champion, version 1 has 120, 100 of them shared",
        ),
        ({"ranks": [*GOOD, *GOOD]}, "the model has 240 rows and .* 120 of them shared"),
        (
            {"described": {"data": {"name": "toy", "digest": "e" * 64, "rows": {"train": 60}}}},
            "the champion, version 1, which was validated on other data",
        ),
    ],
    ids=[
        *("another seed", "other users", "another order", "other histories"),
        *("fewer rows", "more rows", "other data"),
    ],
)
def test_what_cannot_be_compared_is_no_champion(
    tmp_path: Path, tiny_backbone: Path, uri: str, how: dict[str, Any], said: str
) -> None:
    how = {"ranks": GOOD, **how}
    found = second(tmp_path, tiny_backbone, uri, first=FAIR, **how)
    assert (found.champion, champion_at(uri)) == (False, "1")
    assert re.search(said, found.reason), found.reason
    assert MlflowClient(uri).get_model_version(NAME, "2").tags["gate"] == "failed"
    assert found.reason.endswith("--require_improvement=False waives the comparison")


def test_a_champion_of_0_1_0(tmp_path: Path, tiny_backbone: Path, uri: str) -> None:
    """It left no ranks: it stays, and what to do is said; without a comparison the next one follows it."""
    register_model(make_run(tmp_path / "old", tiny_backbone, uri, ranks=None), uri)
    MlflowClient(uri).set_registered_model_alias(NAME, "champion", "1")
    found = register_model(make_run(tmp_path / "new", tiny_backbone, uri, seed=4), uri)
    assert (found.champion, champion_at(uri)) == (False, "1")
    assert "left no ranks of validation rows; --require_improvement=False waives" in found.reason
    waived = make_run(tmp_path / "next", tiny_backbone, uri, seed=5, require_improvement=False)
    assert register_model(waived, uri).champion


# --- one at a time ---


def test_of_two_runs_at_once_the_better_one_wins(tmp_path: Path, tiny_backbone: Path, uri: str) -> None:
    """Whichever comes first: the other one is compared with it."""
    folders = [
        make_run(tmp_path / str(seed), tiny_backbone, uri, seed=seed, ranks=ranks)
        for seed, ranks in ((3, GOOD), (4, FAIR))
    ]
    context = multiprocessing.get_context("fork")  # has all imports already, and the gate that passes
    started = [context.Process(target=register_model, args=(folder, uri)) for folder in folders]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
    assert [process.exitcode for process in started] == [0, 0]
    client = MlflowClient(uri)
    versions = {v.version: v.tags for v in client.search_model_versions(f"name = '{NAME}'")}
    assert len(versions) == 2
    winner = versions[int(champion_at(uri) or 0)]
    assert float(winner["valid_mrr"]) == pytest.approx(0.875)


class Server:
    """A registry that other machines may ask too: they set the alias when it is looked at the nth time."""

    def __init__(self, *champions: str | None) -> None:
        self.champions, self.looked, self.set = list(champions), 0, []

    def get_registered_model(self, name: str) -> Any:
        number = self.champions[min(self.looked, len(self.champions) - 1)]
        self.looked += 1
        return SimpleNamespace(aliases={"champion": number} if number else {})

    def get_model_version(self, name: str, number: str) -> Any:
        return SimpleNamespace(name=name, version=number, tags={})

    def set_registered_model_alias(self, name: str, alias: str, number: str) -> None:
        self.set.append((alias, number))


@pytest.mark.parametrize(
    ("champions", "compared", "reasons", "is_set"),
    [
        ((None, "3"), [], [], True),
        (("1", "1", "3"), ["1"], [], True),
        (("1", "2", "2", "3"), ["1", "2"], [], True),
        (("1", "2", "2"), ["1", "2"], ["worse"], False),
        (("1", "1", "2"), ["1"], ["another process has set the alias at the same time"], True),
    ],
    ids=["none", "quiet", "another came between", "a better one came between", "another came behind"],
)
def test_a_server_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    champions: Sequence[str | None],
    compared: list[str],
    reasons: list[str],
    is_set: bool,
) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    seen: list[str] = []

    def compare(client: Any, version: Any, ranks: Any, champion: Any) -> list[str]:
        seen.append(champion.version)
        return ["worse"] if reasons == ["worse"] and champion.version == "2" else []

    monkeypatch.setattr(rules, "worse_than", compare)
    server, version = Server(*champions), SimpleNamespace(name=NAME, version="3")
    said = promote(server, "http://host:5000", version, Any, improve=True)  # type: ignore[arg-type]
    assert (said, seen) == (reasons, compared)
    assert server.set == ([("champion", "3")] if is_set else [])


@pytest.mark.parametrize("where", ["database", "server"])
def test_one_process_promotes_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    monkeypatch.setattr(rules, "LOCK_WITHIN", 0.1)
    place = f"sqlite:///{tmp_path}/mlflow.db" if where == "database" else "http://ann:secret@host:5000"
    version = SimpleNamespace(name=NAME, version="3")
    server = Server(None, "3")
    with (
        locked(rules.lock_place(place, f"{NAME}.champion"), wait=False),
        pytest.raises(LockedError, match="in use"),
    ):
        promote(server, place, version, Any, improve=True)  # type: ignore[arg-type]
    assert server.set == []
    assert promote(server, place, version, Any, improve=True) == []  # type: ignore[arg-type]


# --- what training leaves for it ---


def test_a_run_leaves_the_ranks_of_its_validation_rows(
    toy_settings: dict[str, Any], uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model's and popularity's, of the same rows; and says in its last line that it is no champion."""
    settings = {**toy_settings, "mlflow_tracking_uri": uri, "compare_stages": False, "state": "INFO"}
    with caplog.at_level(logging.INFO):
        run("DynamicPO", "toy", overrides=settings)
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    found = {who: read_ranks(folder / f"valid_{who}.parquet") for who in ("sft", "preference", "popularity")}
    for ranks in found.values():
        assert (ranks.row_ids, ranks.rows) == (found["sft"].row_ids, found["sft"].rows)
        assert len(ranks.row_ids) == 12
        assert ranks.rows.keys() == {"users", "histories", "targets", "candidates", "places"}
    assert not (found["preference"].ranks == found["popularity"].ranks).all()
    last = caplog.messages[-1]
    assert last.startswith(f"registered: models:/{NAME}/1, ")
    assert "not champion: not compared with popularity, which takes validation rows of 50 users" in last
