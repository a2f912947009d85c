"""A user's titles in time, with ties drawn, or shuffled; lists drawn without the target's help."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.data.give_away import audit_give_away
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.data.rules import Rows
from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.dataset.row_order import goes_on, order_keys, shuffle_chains, time_ties
from recbole_dynamicpo.dataset.sampling import draw_candidates, popularity_weights, row_generator
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.training.contestants import rows_of, train_sequences

from ..helpers.published_data import published_rows, small_published, write_published

pytestmark = pytest.mark.filterwarnings("ignore:using .* in Series.agg:FutureWarning")


def build(settings: dict[str, Any], name: str = "toy") -> DynamicPODataset:
    data = DynamicPODataset(PlainConfig("DynamicPO", name, [], settings))
    data.build()
    return data


def taken(data: DynamicPODataset) -> dict[str, list[str]]:
    """Return user -> item ids in training, as the files name them."""
    items, users = data.field2id_token[data.iid_field], data.field2id_token[data.uid_field]
    return {users[user]: items[ids].tolist() for user, ids in train_sequences(data).of_user.items()}


@pytest.fixture
def tied(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """The toy data with all of a user's times equal."""
    path = Path(toy_settings["data_path"]) / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    path.write_text("\n".join([head, *("\t".join([user, item, "17"]) for user, item, _ in cells)]) + "\n")
    return toy_settings


def reverse_file(settings: dict[str, Any]) -> None:
    path = Path(settings["data_path"]) / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *lines[::-1]]) + "\n")


@pytest.mark.parametrize("more", [{}, {"history_order": "shuffled"}])
def test_drawn_orders_do_not_depend_on_the_file(tied: dict[str, Any], more: dict[str, Any]) -> None:
    before = taken(build({**tied, **more}))
    reverse_file(tied)
    assert taken(build({**tied, **more})) == before
    assert taken(build({**tied, **more, "seed": 7})) != before


def test_ties_in_file_order_are_recboles_way(tied: dict[str, Any]) -> None:
    before = taken(build({**tied, "time_ties": "file"}))
    reverse_file(tied)
    assert taken(build({**tied, "time_ties": "file"})) != before


def test_times_that_differ_decide_alone(toy_settings: dict[str, Any]) -> None:
    by_hash, by_file = build(toy_settings), build({**toy_settings, "time_ties": "file"})
    assert taken(by_hash) == taken(by_file)
    assert (by_hash.time_ties, by_hash.notes) == (0.0, [])
    assert taken(build({**toy_settings, "history_order": "shuffled"})) != taken(by_hash)


def test_the_order_given_is_that_of_the_file(toy_settings: dict[str, Any]) -> None:
    lines = (Path(toy_settings["data_path"]) / "toy" / "toy.inter").read_text().splitlines()[1:]
    by_user: dict[str, list[str]] = {}
    for user, item, _ in (line.split("\t") for line in lines):
        by_user.setdefault(user, []).append(item)
    found = taken(build({**toy_settings, "history_order": "given"}))
    assert found == {user: items[:-2] for user, items in by_user.items()}


def test_ties_are_counted_and_said(tied: dict[str, Any]) -> None:
    data = build(tied)
    assert data.time_ties == 1.0
    assert data.notes == [
        "neighbours of a user with equal times: 84 of 84 (100%), ordered by a hash of user, item and seed"
    ]
    by_file = build({**tied, "time_ties": "file"})
    assert by_file.notes == ["neighbours of a user with equal times: 84 of 84 (100%), in file order"]


def test_time_ties_by_hand() -> None:
    """User 1 at 5, 5, 7 and user 2 at 5, 5: neighbours 2 + 1, of them tied 1 + 1."""
    assert time_ties(np.array([1, 2, 1, 1, 2]), np.array([5.0, 5, 7, 5, 5])) == (2, 3)


def test_order_keys_are_of_user_item_and_seed_alone() -> None:
    keys = order_keys(["a", "b", "a"], ["x", "x", "y"], seed=3)
    assert order_keys(["a", "a"], ["y", "x"], seed=3).tolist() == [keys[2], keys[0]]
    assert len({*keys.tolist(), *order_keys(["a", "b", "a"], ["x", "x", "y"], seed=4).tolist()}) == 6


def test_chains_are_cut_anew_from_the_same_titles() -> None:
    users = np.array([3, 3, 3, 8])
    histories = [np.array(h) for h in ([1, 2], [1, 2, 4], [2, 4, 5], [7])]
    lengths, targets = np.array([2, 3, 3, 1]), np.array([4, 5, 6, 9])
    cut, chosen = shuffle_chains(users, lengths, histories, targets, seed=1, phase=0)
    assert [len(history) for history in cut] == lengths.tolist()
    pool = [*cut[0].tolist(), *chosen[:3].tolist()]
    assert sorted(pool) == [1, 2, 4, 5, 6]
    assert cut[1].tolist() == pool[:3]
    assert cut[2].tolist() == pool[1:4]
    assert sorted([*cut[3].tolist(), int(chosen[3])]) == [7, 9]
    again, _ = shuffle_chains(users, lengths, histories, targets, seed=1, phase=0)
    assert [h.tolist() for h in again] == [h.tolist() for h in cut]
    others = {tuple(shuffle_chains(users, lengths, histories, targets, s, 0)[1].tolist()) for s in range(20)}
    assert len(others) > 5


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    prepare("lastfm", small_published(tmp_path / "in"), tmp_path / "data", progress=False)
    quiet = {"show_progress": False, "state": "WARNING", "num_candidates": 6, "num_negatives": 3}
    return {"data_path": str(tmp_path / "data"), "valid_rows": 0, "eval_rows": 0, **quiet}


def test_published_rows_keep_their_titles_and_get_other_rows(small: dict[str, Any]) -> None:
    published = build({**small, "candidate_source": "published", "history_order": "time"}, "lastfm")
    fresh = build(small, "lastfm")
    before, after = taken(published), taken(fresh)
    assert before.keys() == after.keys()
    assert all(Counter(before[user]) == Counter(after[user]) for user in before)
    assert before != after
    assert any("pooled, shuffled and cut anew" in note for note in fresh.notes)
    assert any("candidates: fresh, uniform" in note for note in fresh.notes)
    assert fresh.built["test"].inter_feat[CANDIDATE_IDS].shape[1] == 6


def test_published_lists_are_not_put_under_other_targets(small: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match="candidate_source: got published, but with history_order shuffled"
    ):
        build({**small, "candidate_source": "published"}, "lastfm")


def test_a_candidate_seed_redraws_evaluation_alone(small: dict[str, Any]) -> None:
    one, two = build(small, "lastfm"), build({**small, "candidate_seed": 9}, "lastfm")
    assert (one.stage_rows(0)[CANDIDATE_IDS] == two.stage_rows(0)[CANDIDATE_IDS]).all()
    test = [data.built["test"].inter_feat for data in (one, two)]
    assert (test[0]["item_id"] == test[1]["item_id"]).all()
    assert not (test[0][CANDIDATE_IDS] == test[1][CANDIDATE_IDS]).all()


def test_negatives_follow_the_distribution_that_is_asked_for() -> None:
    """Item 2 has 99.5 of 101.5 shares of the negatives; uniform draws take each of three alike."""
    counts = np.array([0, 500, 99, 0, 1])
    weights = popularity_weights(counts)
    none = np.array([], dtype=np.int64)
    drawn: dict[str, Counter[int]] = {"popularity": Counter(), "uniform": Counter()}
    for row in range(600):
        for name, w in (("popularity", weights), ("uniform", None)):
            draw = row_generator(1, 0, row)
            ids = draw_candidates(1, none, np.arange(5), 2, draw, "row", w).tolist()
            drawn[name].update(item for item in ids if item != 1)
    assert drawn["popularity"][2] / 600 == pytest.approx(99.5 / 101.5, abs=0.02)
    assert all(abs(drawn["uniform"][item] / 600 - 1 / 3) < 0.09 for item in (2, 3, 4))


def test_lists_that_we_draw_give_nothing_away() -> None:
    """On ml-100k, which has real titles of very unequal popularity; every tenth training row."""
    settings = {"valid_rows": 0, "eval_rows": 0, "state": "WARNING", "show_progress": False}
    data = build(settings, "ml-100k")
    held = {phase: rows_of(data.built[phase]) for phase in ("valid", "test")}
    rows = data.stage_rows(len(data.built["train"].inter_feat) // 10)
    some = Rows(
        data.history(rows), *(rows[n].numpy() for n in (CANDIDATE_IDS, data.iid_field, data.uid_field))
    )
    found = audit_give_away(some, held, data.item_num, data.settings.seed)
    assert {name for name, rule in found.splits["all"].items() if rule.is_finding()} == set()
    assert found.target_in_history == 0


def test_rows_that_do_not_go_on_are_chains_of_their_own() -> None:
    """A user's second row has nothing of the first: two pools, so no history is longer than its chain."""
    users, lengths = np.array([3, 3, 3]), np.array([1, 3, 3])
    histories, targets = [np.array(h) for h in ([1], [4, 5, 6], [5, 6, 7])], np.array([2, 7, 8])
    assert goes_on(users, histories, targets).tolist() == [False, False, True]
    cut, chosen = shuffle_chains(users, lengths, histories, targets, seed=1, phase=0)
    assert sorted([*cut[0].tolist(), int(chosen[0])]) == [1, 2]
    assert sorted([*cut[1].tolist(), *chosen[1:].tolist()]) == [4, 5, 6, 7, 8]
    assert cut[2].tolist() == [*cut[1].tolist()[1:], int(chosen[1])]


def test_fresh_negatives_hold_no_title_of_the_user(small: dict[str, Any], tmp_path: Path) -> None:
    """Nor one of the first history that later rows have lost; and popularity counts it."""
    rows = [
        {**row, "historyList": "::".join(row["historyList"].split("::")[-3:])} for row in published_rows(8, 1)
    ]
    files = write_published(tmp_path / "cut", "cut", train=rows, val=rows)
    prepare("cut", files, tmp_path / "data", progress=False)
    kind = {
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id", "candidate_id_list"]},
        "alias_of_item_id": ["item_id_list", "candidate_id_list"],
    }
    data = build({**small, **kind, "candidate_source": "fresh", "num_candidates": 25}, "cut")
    sequences = train_sequences(data).of_user
    drawn = data.stage_rows(0)
    columns = (drawn[name].tolist() for name in ("user_id", "item_id", CANDIDATE_IDS))
    for user, target, ids in zip(*columns, strict=True):
        assert not (set(ids) - {target}) & set(sequences[user].tolist())
    counted = np.bincount(np.concatenate([*sequences.values()]), minlength=data.item_num)
    assert data.popularity().tolist() == counted.tolist()


def test_a_temporal_split_tests_what_comes_after_all_training(toy_settings: dict[str, Any]) -> None:
    """Leave-one-out trains on what others do after a user's test row; TS draws one line through all time."""
    path = Path(toy_settings["data_path"]) / "toy" / "toy.inter"
    times = {
        tuple(line.split("\t")[:2]): float(line.split("\t")[2]) for line in path.read_text().splitlines()[1:]
    }
    eval_args = {"split": {"TS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "user", "mode": "full"}

    def spans(data: DynamicPODataset) -> dict[str, tuple[float, float]]:
        users, items = data.field2id_token["user_id"], data.field2id_token["item_id"]
        rows = {phase: part.inter_feat for phase, part in data.built.items()}
        at = {
            phase: [times[users[u], items[i]] for u, i in zip(r["user_id"], r["item_id"], strict=True)]
            for phase, r in rows.items()
        }
        return {phase: (min(found), max(found)) for phase, found in at.items()}

    temporal, one_out = spans(build({**toy_settings, "eval_args": eval_args})), spans(build(toy_settings))
    assert max(temporal["train"][1], temporal["valid"][1]) < temporal["test"][0]
    assert one_out["train"][1] > one_out["test"][0]
