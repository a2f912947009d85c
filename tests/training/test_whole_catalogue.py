"""Ranks among all titles, by hand from each title's share, and RecBole's metrics of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.evaluation.ranks import ALL_RANKS_FILE, read_ranks
from recbole_dynamicpo.evaluation.report import read_report
from recbole_dynamicpo.evaluation.scores import best_of_titles, rank_of_titles
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.storage import load_json

from ..conftest import write_dataset

USERS = 20


def histories(home: Path) -> dict[str, list[str]]:
    """Return each user's items in time, read from the file by hand."""
    lines = [line.split("\t") for line in (home / "toy" / "toy.inter").read_text().splitlines()[1:]]
    found: dict[str, list[str]] = {}
    for user, item, _ in sorted(lines, key=lambda cells: float(cells[2])):
        found.setdefault(user, []).append(item)
    return found


@pytest.mark.parametrize("exclude", [True, False])
def test_ranks_are_those_of_all_shares(
    exclude: bool, toy_settings: dict[str, Any], tiny_backbone: Path, tmp_path: Path
) -> None:
    home = write_dataset(tmp_path / "more", users=USERS)
    metrics = ["Recall", "NDCG", "MRR", "ItemCoverage", "GiniIndex"]
    own = {
        **toy_settings, "data_path": str(home), "likelihood": "catalogue", "prompt": "sequence",
        "catalogue_prior": ["popularity"], "rank_among": ["all"], "exclude_history": exclude,
        "metrics": metrics, "topk": [5, 10], "valid_metric": "NDCG@5",
    }  # fmt: skip
    result = run("DynamicPO", "toy", overrides=own)["test_result"]
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    recommender = load_recommender(folder)
    kept = read_ranks(folder / ALL_RANKS_FILE)
    assert len(kept.ranks) == USERS
    by_hand, shown = [], set()
    for user in kept.user_ids:
        *taken, target = histories(home)[user]
        titles = [recommender.catalogue.title(item) for item in taken]
        shares = dict(
            zip(recommender.catalogue.distinct_titles, recommender.catalogue_logps(titles), strict=True)
        )
        goal = recommender.catalogue.title(target)
        rivals = {t: s for t, s in shares.items() if t != goal and not (exclude and t in titles)}
        by_hand.append(1 + sum(share > shares[goal] for share in rivals.values()))
        order = sorted({**rivals, goal: shares[goal]}.items(), key=lambda pair: -pair[1])
        shown |= {title for title, _ in order[:10]}
    assert kept.ranks.tolist() == by_hand
    ranks = np.array(by_hand)
    for depth in (5, 10):
        hit = ranks <= depth
        assert result[f"recall@{depth}"] == pytest.approx(hit.mean(), abs=1e-4)
        assert result[f"mrr@{depth}"] == pytest.approx((hit / ranks).mean(), abs=1e-4)
        assert result[f"ndcg@{depth}"] == pytest.approx((hit / np.log2(ranks + 1)).mean(), abs=1e-4)
    items = len(recommender.catalogue) + 1  # RecBole counts its padding as an item
    assert result["itemcoverage@10"] == pytest.approx(len(shown) / items, abs=1e-4)
    lines = {line["name"]: line for line in load_json(folder / "report.json")["beyond"]}
    *_, beyond = lines.values()
    assert (beyond["rows"], beyond["depth"], beyond["titles"]) == (USERS, 10, items - 1)
    assert beyond["coverage"] == pytest.approx(len(shown) / (items - 1))
    # With an item more that is never shown every place is one further from the middle.
    assert result["giniindex@10"] == pytest.approx((beyond["gini"] * (items - 1) + 1) / items, abs=1e-4)
    assert {"popularity", "transitions", "after SFT"} < set(lines)
    assert lines["popularity"]["novelty"] < min(
        line["novelty"] for name, line in lines.items() if name != "popularity"
    )


def test_both_tables_of_one_run(toy_settings: dict[str, Any]) -> None:
    own = {
        **toy_settings, "likelihood": "catalogue", "prompt": "sequence", "catalogue_prior": ["popularity"],
        "rank_among": ["candidates", "all"],
    }  # fmt: skip
    run("DynamicPO", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    report = load_json(folder / "report.json")
    names = [line["name"] for line in report["all"]]
    assert names == [line["name"] for line in read_report(folder)["contestants"]]
    assert {"popularity", "transitions", "after SFT", "after DynamicPO, without priors"} < set(names)
    among, everything = read_ranks(folder), read_ranks(folder / ALL_RANKS_FILE)
    assert (among.ranks <= everything.ranks).all()  # a rival among the candidates is one among all
    assert among.rows["candidates"] != everything.rows["candidates"]
    assert report["all"][-1]["mrr"] == pytest.approx((1 / everything.ranks).mean())


def test_ties_and_what_is_left_out_by_hand() -> None:
    """Scores 3, 5, 5, 1 with draws 0, 9, 4, 2: order b', b, a, d; without b' one place is won."""
    scores = torch.tensor([[3.0, 5.0, 5.0, 1.0]]).expand(4, 4)
    draws = torch.tensor([[0, 9, 4, 2]]).expand(4, 4)
    none = torch.zeros(4, 4, dtype=torch.bool)
    assert rank_of_titles(scores, draws, torch.arange(4), none).tolist() == [3, 2, 1, 4]
    assert best_of_titles(scores, draws, none, 3)[0].tolist() == [2, 1, 0]
    without = none.clone()
    without[:, 2] = True
    assert rank_of_titles(scores, draws, torch.tensor([0, 1, 3, 3]), without).tolist() == [2, 1, 3, 3]
    assert best_of_titles(scores, draws, without, 4)[0].tolist() == [1, 0, 3, 2]


def test_popularity_ranks_as_counted(toy_settings: dict[str, Any]) -> None:
    """The report's line against training interactions counted in the file, ties left open."""
    own = {
        **toy_settings, "likelihood": "catalogue", "prompt": "sequence", "rank_among": ["all"],
        "exclude_history": False, "epochs": 0,
    }  # fmt: skip
    run("SFTRec", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    (popularity,) = [
        line for line in load_json(folder / "report.json")["all"] if line["name"] == "popularity"
    ]
    taken = histories(Path(own["data_path"]))
    counts: dict[str, int] = {}
    for items in taken.values():
        for item in items[:-2]:
            counts[item] = counts.get(item, 0) + 1
    least, most = 0, 0
    for items in taken.values():
        mine = counts.get(items[-1], 0)
        above = sum(count > mine for item, count in counts.items())
        level = sum(count == mine for item, count in counts.items()) if mine else math.inf
        least += above + level <= 10
        most += above < 10
    assert least / 12 <= popularity["hr_at_10"] <= most / 12
