"""RecBole's own models beside ours: on the same candidates, with histories and checkpoints they can read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

import recbole_dynamicpo
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS, ROW_ID
from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.evaluation.ranks import ALL_RANKS_FILE, read_ranks
from recbole_dynamicpo.evaluation.scores import tie_draws
from recbole_dynamicpo.evaluation.statistics import compare_runs
from recbole_dynamicpo.host.baselines import BaselineConfig, BaselineDataset, run_baselines
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.host.stock_histories import newest_history
from recbole_dynamicpo.training.evaluating import rank_by_popularity

from ..conftest import write_dataset
from ..helpers.published_data import AS_PUBLISHED, published_rows, write_published

# RecBole 1.2.1 counts the items of pre-split rows by a deprecated way of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:using .* in Series.agg:FutureWarning")
TINY = {
    "epochs": 1,
    "hidden_size": 8,
    "inner_size": 8,
    "eval_rows": 0,
    "show_progress": False,
    "state": "WARNING",
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for a small data set in which one training and one test row have no history."""
    monkeypatch.chdir(tmp_path)
    train, val, test = (published_rows(users, seed) for users, seed in ((8, 1), (3, 2), (3, 3)))
    train[0]["historyList"] = test[0]["historyList"] = ""
    prepare("lastfm", write_published(tmp_path / "in", train=train, val=val, test=test), tmp_path / "data")
    folders = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved")}
    return {**TINY, **AS_PUBLISHED, **folders}


def test_settings_are_dynamicpos_but_for_the_training() -> None:
    config, ours = BaselineConfig("SASRec", "ml-100k", [], {}), PlainConfig("DynamicPO", "ml-100k", [], {})
    for key in (
        "eval_rows",
        "num_candidates",
        "seed",
        "topk",
        "metrics",
        "valid_metric",
        "eval_args",
        "prompt",
    ):
        assert config[key] == ours[key]
    assert (config["learner"], config["epochs"], config["train_batch_size"]) == ("adam", 10, 2048)
    assert (config["learning_rate"], config["hidden_size"], config["loss_type"]) == (0.001, 64, "CE")
    pairs = BaselineConfig("SASRec", "ml-100k", [], {"loss_type": "BPR"})
    assert pairs["train_neg_sample_args"]["sample_num"] == 1


def test_times_are_loaded_without_being_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a DynamicPO run on the same data set; what a user says of the columns wins."""
    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},i{(user + step) % 12},{100 * user + step}" for user in range(8) for step in range(6)]
    (tmp_path / "books.csv").write_text("\n".join(["user,item,time", *rows]))
    prepare("books", tmp_path / "books.csv", tmp_path / "data", progress=False)
    settings = {**TINY, "data_path": str(tmp_path / "data"), "num_candidates": 5, "num_negatives": 1}
    ours = PlainConfig("DynamicPO", "books", [], {"data_path": settings["data_path"]})
    assert BaselineConfig("SASRec", "books", [], settings)["load_col"] == ours["load_col"]
    assert len(run_baselines("books", (), settings, None).contestants[0].ranks) == 8
    with pytest.raises(
        DataError, match=r"""--load_col="\{'inter': \['user_id', 'item_id', 'timestamp'\]\}"""
    ):
        run_baselines("books", (), {**settings, "load_col": {"inter": ["user_id", "item_id"]}}, None)


def test_popularity_by_hand(small: dict[str, Any]) -> None:
    """A title is as popular as users took it in training: in their first row's history, or as a target.

    Here each user has four rows; the first of all has no history, so that its user ends there and
    another begins. Equally popular titles rank by the draw of row and item.
    """
    data = BaselineDataset(BaselineConfig("SASRec", "lastfm", [], {**small, "num_negatives": 1}))
    data.build()
    train, rows = published_rows(8, 1), published_rows(3, 3)
    taken = [row["trueSelection"] for row in train]
    for row in [train[1], *train[4::4]]:
        taken += row["historyList"].split("::")
    test = data.built["test"]
    draws = tie_draws(test.inter_feat[ROW_ID], test.inter_feat[CANDIDATE_IDS]).tolist()
    by_hand = []
    for row, drawn in zip(rows, draws, strict=True):
        keys = [(-taken.count(title), draw) for title, draw in zip(row["itemList"], drawn, strict=True)]
        own = keys[row["itemList"].index(row["trueSelection"])]
        by_hand.append(1 + sum(key < own for key in keys))
    assert rank_by_popularity(test).ranks.tolist() == by_hand


def test_both_rank_every_test_row_and_recboles_hit_is_the_hit_rate(
    small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_baselines("lastfm", (), small)
    assert [contestant.name for contestant in found.contestants] == [
        *("popularity", "rule: place", "rule: company", "rule: order"),
        *("co-occurrence", "transitions", "EASE", "SASRec"),
    ]
    for contestant in found.contestants:
        saved = read_ranks(found.folder / contestant.name)
        assert len(saved.row_ids) == 12
        assert (saved.ranks == contestant.ranks).all()
        assert saved.ranks.max() <= 6
    ranks = found.contestants[-1].ranks
    for k in (1, 5):
        assert found.result[f"hit@{k}"] == pytest.approx(np.mean(ranks <= k), abs=1e-4)
    report = json.loads((found.folder / "report.json").read_text())
    assert report["contestants"][-1]["hr_at_1"] == np.mean(ranks == 1)
    assert [contestant.name for contestant in found.everything] == [
        *("popularity", "co-occurrence", "transitions", "EASE", "SASRec"),
    ]
    for contestant in found.everything:
        saved = read_ranks(found.folder / contestant.name / ALL_RANKS_FILE)
        among = read_ranks(found.folder / contestant.name)
        assert (saved.ranks == contestant.ranks).all()
        assert (among.ranks <= saved.ranks).all()  # a rival among the candidates is one among all
    assert report["all"][-1]["mrr"] == pytest.approx(np.mean(1 / found.everything[-1].ranks))
    assert [line["name"] for line in report["beyond"]] == [line["name"] for line in report["all"]]
    assert main(["show", str(found.folder), "--segments"]) == 0
    shown = capsys.readouterr().out
    assert "coverage@10" in found.table
    assert "coverage@10" in shown
    assert shown.count("history of 0 to 5") == 2 + len(report["beyond"])
    assert "test rows: 12 of 12" in found.table
    assert main(["show", str(found.folder)]) == 0
    assert "among all titles of the catalogue" in found.table
    assert "random choice" in found.table
    assert "0.1667" in found.table


def test_the_rows_are_those_of_a_dynamicpo_run(toy_settings: dict[str, Any]) -> None:
    """On data without candidate lists too: same rows, same candidates, same popularity."""
    shared = {key: toy_settings[key] for key in ("data_path", "load_col", "num_candidates", "checkpoint_dir")}
    shared |= {"eval_rows": 7, "seed": 5}
    run("SFTRec", "toy", overrides={**toy_settings, **shared})
    (folder,) = Path(toy_settings["checkpoint_dir"]).glob("SFTRec-*")
    found = run_baselines("toy", (), {**TINY, **shared})
    assert compare_runs(found.folder / "SASRec", folder).n == 7
    popularity = json.loads((folder / "report.json").read_text())["contestants"][0]
    ours = json.loads((found.folder / "report.json").read_text())["contestants"][0]
    assert ours == popularity


def test_candidates_do_not_depend_on_how_many_rows_are_validated(toy_settings: dict[str, Any]) -> None:
    shared = {key: toy_settings[key] for key in ("data_path", "load_col", "num_candidates")}
    shared |= {"num_negatives": 1, "eval_rows": 7}
    found = []
    for valid_rows in (0, 3):
        config = BaselineConfig("SASRec", "toy", [], {**shared, "valid_rows": valid_rows})
        data = BaselineDataset(config)
        data.build()
        rows = data.built["test"].inter_feat
        found.append(torch.cat([rows[ROW_ID][:, None], rows[CANDIDATE_IDS]], dim=1))
    assert torch.equal(*found)


@pytest.mark.parametrize("model", ["BPR", "DynamicPO"])
def test_other_models_are_refused(model: str, small: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"model: got '{model}', wanted a sequential model of RecBole"):
        run_baselines("lastfm", (), small, model=model)


def test_unprepared_data_and_unknown_models_are_named(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="recbole-dynamicpo prepare --dataset steam"):
        run_baselines("steam", (), small)
    with pytest.raises(SettingsError, match="model: got 'SASRek', wanted a RecBole model"):
        run_baselines("lastfm", (), small, model="SASRek")


# --- histories for stock models ---


def test_newest_history_by_hand() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0], [0, 0, 0, 0], [6, 7, 8, 0]])
    rows = Interaction({"ids": ids, "length": torch.tensor([4, 1, 0, 3])})
    assert newest_history(rows, "ids", "length", 2) == (2, 1)
    assert rows["ids"].tolist() == [[3, 4], [5, 0], [0, 0], [7, 8]]
    assert rows["length"].tolist() == [2, 1, 1, 2]


def test_a_width_below_the_limit_stays() -> None:
    rows = Interaction({"ids": torch.tensor([[1, 2]]), "length": torch.tensor([2])})
    assert newest_history(rows, "ids", "length", 50) == (0, 0)
    assert rows["ids"].tolist() == [[1, 2]]


def test_sasrec_reads_long_and_empty_histories(small: dict[str, Any]) -> None:
    stock = {"epochs": 1, "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 4}
    stock |= {"mlflow_tracking_uri": None}
    result = run("SASRec", "lastfm", overrides={**small, **stock})
    assert 0 <= result["test_result"]["hit@10"] <= 1


# --- checkpoints of stock models ---

BPR = """
import sys
sys.argv = ["test"]
import recbole_dynamicpo
assert "recbole" not in sys.modules
from recbole.quick_start import run_recbole
from recbole.trainer import Trainer
settings = {
    "epochs": 1, "show_progress": False, "state": "WARNING", "checkpoint_dir": "saved", "data_path": "data"
}
result = run_recbole(model="BPR", dataset="toy", config_dict=settings)
print(sorted(result["test_result"]))
"""


def test_plain_recbole_loads_the_checkpoint_it_wrote(tmp_path: Path) -> None:
    """In a process of its own, so that RecBole is imported after our package."""
    write_dataset(tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", BPR],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip().split("\n")[-1] == "['hit@10', 'mrr@10', 'ndcg@10', 'precision@10', 'recall@10']"
    )
    assert len(list((tmp_path / "saved").glob("BPR-*.pth"))) == 1


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
def test_other_checkpoints_keep_torchs_safe_default(small: dict[str, Any], tmp_path: Path) -> None:
    """A copy of the run's own file, and the file itself once it was written by somebody else."""
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender.bpr import BPR
    from recbole.trainer import Trainer

    recbole_dynamicpo.register()
    config = PlainConfig("BPR", "lastfm", [], {**small, "epochs": 1, "checkpoint_dir": str(tmp_path / "own")})
    train, _, test = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, BPR(config, train.dataset))
    trainer.fit(train, None, verbose=False)
    own = Path(trainer.saved_model_file)
    trained = trainer.model.user_embedding.weight.detach().clone()
    torch.nn.init.zeros_(trainer.model.user_embedding.weight)
    assert trainer.evaluate(test)
    assert torch.equal(trainer.model.user_embedding.weight, trained)

    shutil.copy(own, tmp_path / "copy.pth")
    with pytest.raises(pickle.UnpicklingError):
        trainer.evaluate(test, model_file=str(tmp_path / "copy.pth"))
    own.write_bytes((tmp_path / "copy.pth").read_bytes())
    with pytest.raises(pickle.UnpicklingError):
        trainer.evaluate(test)
    assert trainer.evaluate(test, load_best_model=False)


def test_registering_again_patches_once() -> None:
    from recbole.trainer import Trainer

    before = Trainer.evaluate, Trainer._save_checkpoint, list(sys.meta_path)
    recbole_dynamicpo.register()
    assert (Trainer.evaluate, Trainer._save_checkpoint, list(sys.meta_path)) == before
