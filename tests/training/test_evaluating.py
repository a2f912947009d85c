"""Rows are ranked one way, whatever RecBole's mode, and say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.data import data_preparation

from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS, ROW_ID
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.evaluation.ranks import ALL_RANKS_FILE, read_ranks
from recbole_dynamicpo.evaluation.scores import tie_draws
from recbole_dynamicpo.host.baselines import run_baselines
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.saved_models.evaluation import evaluate_saved
from recbole_dynamicpo.training.evaluating import rank_by_popularity, row_digests, rows_to_rank


def test_rows(settings: dict[str, Any]) -> DynamicPODataset:
    """Return the test rows of the toy data, with the candidates of the settings' mode."""
    config = PlainConfig("DynamicPO", "toy", [], settings)
    data = DynamicPODataset(config)
    _, _, test = data_preparation(config, data)
    rows: DynamicPODataset = rows_to_rank(test, data.settings.seed)._dataset
    return rows


test_rows.__test__ = False  # type: ignore[attr-defined]
SAMPLED = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni5"}


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ({}, set()),
        ({"seed": 7}, {"candidates", "places"}),
        ({"num_candidates": 7}, {"candidates", "places"}),
        ({"eval_args": SAMPLED}, {"candidates", "places"}),
        ({"eval_rows": 5}, {"users", "histories", "targets", "candidates", "places"}),
        ({"MAX_ITEM_LIST_LENGTH": 2}, {"histories"}),
    ],
)
def test_rows_tell_what_is_other(toy_settings: dict[str, Any], more: dict[str, Any], other: set[str]) -> None:
    one, two = row_digests(test_rows(toy_settings)), row_digests(test_rows({**toy_settings, **more}))
    assert {name for name in one if one[name] != two[name]} == other


@pytest.mark.parametrize("mode", ["full", "uni5", "pop5"])
def test_popularity_by_hand_in_every_mode(toy_settings: dict[str, Any], mode: str) -> None:
    rows = test_rows({**toy_settings, "eval_args": {**SAMPLED, "mode": mode}})
    counts, table = rows.popularity(), rows.inter_feat
    draws = tie_draws(table[ROW_ID], table[CANDIDATE_IDS]).tolist()
    by_hand = []
    for row, ids in enumerate(table[CANDIDATE_IDS].tolist()):
        keys = {item: (-counts[item], draws[row][place]) for place, item in enumerate(ids) if item}
        chosen = int(table[rows.iid_field][row])
        assert len(keys) == len([item for item in ids if item])
        by_hand.append(1 + sum(key < keys[chosen] for key in keys.values()))
    assert rank_by_popularity(rows).ranks.tolist() == by_hand


@pytest.mark.parametrize("mode", ["full", "uni5", "pop5"])
def test_run_evaluate_and_baselines_rank_the_same_rows(toy_settings: dict[str, Any], mode: str) -> None:
    """`evaluate` prints the run's own ranks again; popularity is the same in the run and beside SASRec."""
    settings = {**toy_settings, "eval_args": {**SAMPLED, "mode": mode}, "metrics": ["Hit"], "topk": [1, 5]}
    settings |= {"valid_metric": "Hit@1"}
    result = run("SFTRec", "toy", overrides=settings)["test_result"]
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    own = read_ranks(folder)
    assert result["hit@1"] == pytest.approx(np.mean(own.ranks == 1), abs=1e-4)
    shared = {key: settings[key] for key in ("data_path", "load_col", "eval_args", "num_candidates")}
    evaluate_saved(folder, "toy", "likelihood", overrides=shared, out=folder / "again", progress=False)
    again = read_ranks(folder / "again")
    assert (again.ranks == own.ranks).all()
    assert again.rows == own.rows
    small: dict[str, Any] = {
        "epochs": 1,
        "hidden_size": 8,
        "inner_size": 8,
        "show_progress": False,
        "state": "WARNING",
    }
    found = run_baselines(
        "toy", (), {**shared, **small, "eval_rows": 0, "checkpoint_dir": str(folder / "stock")}
    )
    assert read_ranks(found.folder / "popularity").rows == own.rows


def test_evaluate_prints_a_catalogue_models_own_figures_again(
    toy_settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Among its candidates and among all titles, with the likelihood; counting stands beside it."""
    settings = {
        **toy_settings, "likelihood": "catalogue", "prompt": "sequence", "rank_among": ["candidates", "all"],
        "catalogue_prior": ["popularity", "transitions"], "compare_stages": False, "positions": "all",
    }  # fmt: skip
    run("SFTRec", "toy", overrides=settings)
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    own, own_all = read_ranks(folder), read_ranks(folder / ALL_RANKS_FILE)
    logged = json.loads((folder / "report.json").read_text())
    shared = {key: settings[key] for key in ("data_path", "load_col")}
    out = folder / "again"
    text = evaluate_saved(folder, "toy", "likelihood", overrides=shared, out=out, progress=False)
    assert (read_ranks(out).ranks == own.ranks).all()
    again = read_ranks(out / ALL_RANKS_FILE)
    assert (again.ranks == own_all.ranks).all()
    assert again.rows == own_all.rows
    figures = json.loads((out / "report.json").read_text())
    assert figures["contestants"][-1]["nll"] == pytest.approx(logged["contestants"][-1]["nll"], abs=1e-5)
    assert {"popularity", "transitions", "EASE"} < {line["name"] for line in figures["contestants"]}
    assert "among all titles of the catalogue" in text

    fewer = {**shared, "rank_among": ["candidates"]}
    evaluate_saved(folder, "toy", "likelihood", overrides=fewer, out=folder / "fewer", progress=False)
    assert (read_ranks(folder / "fewer").ranks == own.ranks).all()
    assert not (folder / "fewer" / ALL_RANKS_FILE).exists()

    items = Path(settings["data_path"]) / "toy" / "toy.item"
    head, first, *rest = items.read_text().splitlines()
    items.write_text("\n".join([head, f"{first} again", *rest]) + "\n")
    text = evaluate_saved(folder, "toy", "likelihood", overrides=shared, progress=False)
    assert "scored by the vocabulary: the model's catalogue is another one" in text


def test_several_processes_may_make_the_folder_of_runs(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole fails where it is made between its look and its making; it is there before RecBole looks."""

    def overtaken(folder: str) -> None:
        if not Path(folder).exists():
            raise FileExistsError(folder)

    monkeypatch.setattr("recbole.trainer.trainer.ensure_dir", overtaken)
    settings = {**toy_settings, "rank_among": ["candidates"]}
    found = run_baselines("toy", overrides=settings, model=None)
    assert found.folder.is_dir()
