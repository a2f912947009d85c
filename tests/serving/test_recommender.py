"""Ranking with a saved adapter folder, without RecBole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.errors import AdapterError, BackboneError, DataError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE

from ..conftest import make_model, make_tokenizer
from ..helpers.saved_recommender import BY_POPULARITY, write_recommender


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKBONE_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def saved(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recommender(tmp_path_factory.mktemp("run") / "preference", tiny_backbone)


@pytest.fixture(scope="module")
def recommender(saved: Path) -> Recommender:
    return load_recommender(saved)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def titles(recommender: Recommender, *arguments: Any, **options: Any) -> list[str]:
    return [item.title for item in recommender.rank(*arguments, **options)]


# --- what a trained run leaves ---


def test_a_run_leaves_a_folder_that_ranks(toy_settings: dict[str, Any]) -> None:
    settings = {**toy_settings, "compare_stages": False, "eval_rows": 4, "popular_candidates": 5}
    run("SDPO", "toy", overrides=settings)
    (folder,) = (path.parent for path in Path(toy_settings["checkpoint_dir"]).glob("*/preference"))
    recommender = load_recommender(folder)  # the folder of the run stands for its last stage
    assert recommender.card == load_recommender(folder / "preference").card
    assert (recommender.card.made_by["stage"], recommender.card.popular_candidates) == ("preference", 5)
    known = recommender.catalogue.titles
    ranked = recommender.rank([known[0], "a title nobody knows"], [known[3], known[4], "Unheard Of"])
    assert {item.title: item.ids for item in ranked} == {
        known[3]: (recommender.catalogue.ids[3],),
        known[4]: (recommender.catalogue.ids[4],),
        "Unheard Of": (),
    }
    assert len(recommender.rank([known[0]], k=1000)) == 5


# --- what is ranked ---


def test_the_best_come_first_with_the_scores_of_the_policy(recommender: Recommender) -> None:
    """The score of a title is the sum of its log-probabilities behind the prompt that shows all of them."""
    shown = ["Canyon", "Bear", "Unheard Of"]
    (scores,) = recommender.scorer([PromptRow(["Delta"], shown, shown)]).tolist()
    expected = sorted(zip(shown, scores, strict=True), key=lambda pair: -pair[1])
    ranked = recommender.rank(["Delta"], shown)
    assert [(item.title, item.score) for item in ranked] == expected
    assert titles(recommender, ["Delta"], shown, k=2) == [title for title, _ in expected[:2]]
    assert {item.title: item.ids for item in ranked} == {"Canyon": ("2",), "Bear": ("1",), "Unheard Of": ()}


def test_a_title_that_several_items_bear_ranks_once(recommender: Recommender) -> None:
    """However they are named: items 3 and 5 are both called Amber."""
    for candidates in (["Amber", "Bear", "Amber"], [3, "Bear", 5], ["Amber", 3, 1]):
        ranked = recommender.rank(["Delta"], candidates)
        assert {item.title: item.ids for item in ranked} == {"Amber": ("3", "5"), "Bear": ("1",)}


def test_numbers_are_item_ids(recommender: Recommender) -> None:
    """Of the catalogue, whose ids are texts: 4 is item "4", Delta, and so is "4", which is no title."""
    assert recommender.rank([4], [2, 7]) == recommender.rank(["Delta"], ["Canyon", "Forest"])
    assert recommender.rank(["Delta"], ["4"])[0].ids == ("4",)
    assert recommender.rank(["Delta"], ["04"])[0].ids == ()


@pytest.mark.parametrize("history", [["Amber", "Delta"], [3, 4], [5, "Delta"], ["Delta", "no such title", 5]])
def test_without_candidates_the_popular_titles_outside_the_history_are_ranked(
    recommender: Recommender, history: list[str | int]
) -> None:
    """All items of a title go, whichever of them was taken."""
    found = recommender.ranking(history)
    assert {item.title for item in found.ranked} == set(BY_POPULARITY) - {"Amber", "Delta"}
    assert (found.source, found.num_candidates) == ("popular", 4)


def test_the_card_says_how_many_popular_titles(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = write_recommender(tmp_path / "few", tiny_backbone, popular_candidates=3)
    found = load_recommender(folder).ranking(["Amber"], k=2)
    assert found.num_candidates == 3
    assert len(found.ranked) == 2
    assert {item.title for item in found.ranked} < {"Delta", "Bear", "Canyon"}


def test_given_candidates_are_said_to_be_given(recommender: Recommender) -> None:
    found = recommender.ranking(["Amber"], ["Bear", "Bear", "Amber"], k=1)
    assert (found.source, found.num_candidates, len(found.ranked)) == ("given", 2, 1)


def test_more_candidates_than_in_training_may_use_all_the_length(recommender: Recommender) -> None:
    """100 unknown titles, far beyond the 256 tokens of the card."""
    many = [f"unknown {number}" for number in range(100)]
    assert sorted(titles(recommender, ["Delta"], many, k=100)) == sorted(many)


def test_threads_may_share_a_recommender(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scores at a time: the tokenizer and the adapters are switched to and fro while it does."""
    asked = [(["Delta"], [f"title {number}", "Bear", "Canyon"]) for number in range(16)]
    alone = [recommender.rank(*request) for request in asked]
    scorer, inside, most = recommender.scorer, [0], [0]

    def watched(rows: list[PromptRow]) -> torch.Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        scores = scorer(rows)
        inside[0] -= 1
        return scores

    monkeypatch.setattr(recommender, "scorer", watched)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda request: recommender.rank(*request), asked)) == alone
    assert most == [1]


# --- what is refused ---


@pytest.mark.parametrize(
    ("history", "candidates", "k", "message"),
    [
        ("Bear", ["a"], 1, "history: got 'Bear', wanted a list"),
        (["a"], [], 1, "candidates: got [], wanted a list of at least one title or item id"),
        (["a"], "Bear", 1, "candidates: got 'Bear', wanted a list"),
        (["a"], ["b"], 0, "k: got 0, wanted a whole number of at least 1"),
        (["a"], ["b"], True, "k: got True, wanted a whole number"),
        (["a"], ["b"], 1.5, "k: got 1.5, wanted a whole number"),
        ([" "], ["b"], 1, "history[0]: got ' ', wanted a non-empty title"),
        (["a"], ["b", None], 1, "candidates[1]: got None, wanted a non-empty title"),
        (["a", False], ["b"], 1, "history[1]: got False, wanted a non-empty title"),
        (["a"], ["\ud800"], 1, "candidates[0]: got '\\ud800', wanted a non-empty title"),
        ([1, 8], ["b"], 1, "history[1]: got item id 8, which the catalogue does not have"),
        (["a"], [-1], 1, "candidates[0]: got item id -1, which the catalogue does not have"),
        (["a"], "x" * 500, 1, "candidates: got '" + "x" * 76 + "..., wanted"),
        (BY_POPULARITY, None, 1, "candidates: none given, and every title of the catalogue is in the"),
    ],
)
def test_bad_requests_are_named(
    recommender: Recommender, history: Any, candidates: Any, k: Any, message: str
) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)):
        recommender.rank(history, candidates, k)


def test_a_folder_that_is_no_recommender_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"recommender\.json"):
        load_recommender(tmp_path)


def test_a_card_of_another_form_is_named(copy: Path) -> None:
    (copy / "recommender.json").write_text('{"colour": "red"}')
    with pytest.raises(AdapterError, match="not a recommender card"):
        load_recommender(copy)


# --- its backbone ---


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shapes, with other weights."""
    folder = tmp_path_factory.mktemp("other-llama")
    make_model(seed=5).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def rename_backbone(folder: Path, name: str) -> None:
    card = json.loads((folder / "recommender.json").read_text())
    (folder / "recommender.json").write_text(json.dumps({**card, "backbone": name}))


def test_a_backbone_with_other_weights_is_refused(copy: Path, other_backbone: Path) -> None:
    rename_backbone(copy, str(other_backbone))
    with pytest.raises(AdapterError, match=r"SHA-256 \w{12}\.\.\., but the backbone of that name here"):
        load_recommender(copy)


def test_a_missing_backbone_is_named_with_the_way_out(copy: Path) -> None:
    rename_backbone(copy, "nowhere")
    with pytest.raises(BackboneError, match=rf"'nowhere'.*SHA-256.*{BACKBONE_VARIABLE} may name its folder"):
        load_recommender(copy)


def test_the_environment_names_the_backbone(
    copy: Path,
    tiny_backbone: Path,
    other_backbone: Path,
    recommender: Recommender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If its weights are the right ones, whatever it is called."""
    rename_backbone(copy, "nowhere")
    monkeypatch.setenv(BACKBONE_VARIABLE, str(tiny_backbone))
    assert load_recommender(copy).rank(["Bear"]) == recommender.rank(["Bear"])
    monkeypatch.setenv(BACKBONE_VARIABLE, str(other_backbone))
    with pytest.raises(AdapterError, match=f"but that of {BACKBONE_VARIABLE}, '{other_backbone}', has"):
        load_recommender(copy)
    monkeypatch.setenv(BACKBONE_VARIABLE, "gone")
    with pytest.raises(BackboneError, match=rf"'gone'.*{BACKBONE_VARIABLE} names it"):
        load_recommender(copy)


# --- apart from RecBole and MLflow ---


def test_ranking_needs_neither_recbole_nor_mlflow(saved: Path) -> None:
    script = (
        "import sys; from recbole_dynamicpo import load_recommender\n"
        f"r = load_recommender({str(saved)!r}); r.rank(['a'], ['b', 'c'])\n"
        "assert not {'recbole', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", script],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_scores_do_not_depend_on_the_other_candidates_or_their_number(recommender: Recommender) -> None:
    """Each completion sees the prompt and itself; the prompt shows all candidates, so keep those fixed."""
    scorer = recommender.scorer
    shown = ["amber bear", "delta kite", "ocean"]
    together = scorer([PromptRow(["amber"], shown, shown)])[0]
    alone = [scorer([PromptRow(["amber"], shown, [title])])[0, 0] for title in shown]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
