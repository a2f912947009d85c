"""Runs as a user starts them, seen in MLflow: ours with its registered model, and a stock model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.serving import gate
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE

from ..helpers import near_gate


@pytest.fixture
def known_uri(uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test's own store, as ``MLFLOW_TRACKING_URI`` names it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def runs_of(uri: str, dataset: str) -> dict[str, Any]:
    """Return the runs of a data set by their stage; the parent's is ``run``."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"recbole-dynamicpo/{dataset}")
    return {found.data.tags["stage"]: found for found in client.search_runs([experiment.experiment_id])}


def test_a_version_reproduces_its_test_figures(
    toy_settings: dict[str, Any],
    known_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In bfloat16, where scores depend on the batches; with settings that differ from the defaults."""
    monkeypatch.setattr(gate, "subprocess", near_gate)
    own = {**toy_settings, "mlflow_tracking_uri": "auto", "dtype": "bfloat16", "seed": 5, "eval_rows": 9}
    run("DynamicPO", "toy", overrides={**own, "compare_stages": False, "eval_batch_size": 5})
    logged = runs_of(known_uri, "toy")["evaluate"].data.metrics
    monkeypatch.setenv(BACKBONE_VARIABLE, own["backbone"])
    out = tmp_path / "again"
    command = ["evaluate", "--model", "models:/dynamicpo-toy/1", "--dataset", "toy", "--out", str(out)]
    assert main([*command, "--data-path", own["data_path"]]) == 0
    assert "test rows: 9 of 12" in capsys.readouterr().out
    found = json.loads((out / "report.json").read_text())["likelihood"]
    for name in ("rows", "hr_at_1", "hr_at_1_low", "hr_at_1_high", "ndcg_at_5", "mrr"):
        assert found[name] == logged[f"test/{name}"], name


def test_a_stock_model_is_recorded(toy_settings: dict[str, Any], known_uri: str) -> None:
    stock = {
        key: toy_settings[key]
        for key in ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    }
    result = run(
        "BPR",
        "toy",
        overrides={
            **stock,
            "epochs": 3,
            "embedding_size": 8,
            "metrics": ["Hit"],
            "topk": [5],
            "valid_metric": "Hit@5",
        },
    )
    runs = runs_of(known_uri, "toy")
    assert set(runs) == {"run", "train", "evaluate"}
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    assert runs["run"].data.params["embedding_size"] == "8"
    assert runs["run"].info.run_name.startswith("BPR-toy-")
    metrics = runs["evaluate"].data.metrics
    assert metrics["test/hit_at_5"] == pytest.approx(result["test_result"]["hit@5"])
    assert metrics["valid/hit_at_5"] == pytest.approx(result["best_valid_result"]["hit@5"])
    scores = MlflowClient(known_uri).get_metric_history(runs["train"].info.run_id, "valid/valid_score")
    assert [score.step for score in scores] == [1, 2, 3]
    assert all(math.isfinite(score.value) for score in scores)


def test_a_stock_model_that_fails_is_a_failed_run(
    toy_settings: dict[str, Any], known_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole.trainer import Trainer

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("power")

    monkeypatch.setattr(Trainer, "_train_epoch", broken)
    stock = {
        key: toy_settings[key]
        for key in ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    }
    with pytest.raises(RuntimeError, match="power"):
        run("BPR", "toy", overrides={**stock, "epochs": 1})
    runs = runs_of(known_uri, "toy")
    assert {runs[stage].info.status for stage in ("run", "train")} == {"FAILED"}


@pytest.mark.parametrize(
    ("place", "records"),
    [
        ({"local_rank": 0, "offset": 0}, True),
        ({"local_rank": 1, "offset": 0}, False),
        ({"local_rank": 0, "offset": 2}, False),
        ({"local_rank": 3, "offset": 4}, False),
        ({}, True),
    ],
)
def test_of_several_processes_the_first_one_records(
    place: dict[str, int], records: bool, toy_settings: dict[str, Any], known_uri: str
) -> None:
    """On all machines together; ``offset`` is the rank of a machine's first process."""
    from types import SimpleNamespace

    from recbole_dynamicpo.host.config import PlainConfig
    from recbole_dynamicpo.host.registration import MLflowTracking
    from recbole_dynamicpo.host.stock_record import is_first, recorded

    keys = ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    config = PlainConfig("BPR", "toy", [], {key: toy_settings[key] for key in keys})
    config.final_config_dict.update(place)
    assert is_first(config) is records
    loaders = SimpleNamespace(train=None, valid=None, test=None)
    with recorded(config, loaders, MLflowTracking()) as record:
        record.epoch(0, 0.5)
        record.results({"mrr@10": 0.5}, {"mrr@10": 0.25})
    folders = list(Path(toy_settings["checkpoint_dir"]).glob("BPR-*"))
    assert len(folders) == records
    assert len(runs_of(known_uri, "toy") if records else []) == (3 if records else 0)


def test_none_records_nothing(
    toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    stock = {
        key: toy_settings[key]
        for key in ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    }
    run("BPR", "toy", overrides={**stock, "epochs": 1, "mlflow_tracking_uri": None})
    assert not (tmp_path / "store.db").exists()
