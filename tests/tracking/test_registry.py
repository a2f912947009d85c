"""Registered models: one version an adapter, with what it says of itself; what can go wrong around it."""

from __future__ import annotations

import logging
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main, run_recbole
from recbole_dynamicpo.errors import TrackingError
from recbole_dynamicpo.serving import gate
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE
from recbole_dynamicpo.serving.gate import Verdict
from recbole_dynamicpo.storage import sha256_file, write_json
from recbole_dynamicpo.tracking import registry
from recbole_dynamicpo.tracking.record import PROBE_FILE, write_record
from recbole_dynamicpo.tracking.registry import register, register_model, wants_registration
from recbole_dynamicpo.tracking.sync import sync
from recbole_dynamicpo.tracking.view import PARENT

from ..helpers.finished_runs import (
    GOOD,
    NAME,
    PASSED,
    ROWS,
    always_passes,
    make_run,
    write_valid_ranks,
)
from ..helpers.run_folders import PARAMS, RunFolder, toy_record
from ..helpers.saved_recommender import write_recommender

pytestmark = pytest.mark.usefixtures("figures_drawn_once")


@pytest.fixture
def always_passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No fresh process: the gate finds no difference. Returns the models that it was asked about."""
    return always_passes(monkeypatch)


def aliases(uri: str) -> dict[str, str]:
    found = MlflowClient(uri).get_registered_model(NAME).aliases
    return {alias: str(number) for alias, number in found.items()}


def test_a_first_model_becomes_champion(
    tmp_path: Path, tiny_backbone: Path, uri: str, caplog: Any, monkeypatch: Any
) -> None:
    """With the real gate, in a fresh process, which is told where the backbone lies."""
    caplog.set_level(logging.INFO)
    folder = make_run(tmp_path / "run", tiny_backbone, uri)
    found = register_model(folder, uri)
    monkeypatch.setenv(BACKBONE_VARIABLE, str(tiny_backbone))
    assert (found.name, found.version, found.champion) == (NAME, "1", True)
    assert found.uri == f"models:/{NAME}/1"
    adapter = folder / "preference" / "adapter_model.safetensors"
    assert adapter.stat().st_size < found.size_bytes < adapter.stat().st_size + 1_500_000
    assert aliases(uri) == {"candidate": "1", "champion": "1"}
    assert caplog.messages[-1] == found.line
    why = "MRR 0.8750 against 0.5000 of popularity on 120 validation rows, p = 0.0001"
    assert found.line == f"registered: models:/{NAME}/1, {found.size_bytes} bytes, champion: {why}"
    tags = MlflowClient(uri).get_model_version(NAME, "1").tags
    assert (tags["gate"], tags["gate_largest_difference"]) == ("passed", "0.0")
    assert (tags["gate_dtype"], tags["gate_device"]) == ("float32", "cpu")
    ours, theirs = (
        load_recommender(source, tracking_uri=uri).rank(["Bear"], ["Canyon", "Delta"])
        for source in (folder, f"models:/{NAME}@champion")
    )
    assert ours == theirs


def test_what_a_version_says(tmp_path: Path, tiny_backbone: Path, uri: str, always_passed: list[str]) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, uri, valid=0.5)
    register_model(folder, uri)
    client = MlflowClient(uri)
    version = client.get_model_version(NAME, "1")
    tags = version.tags
    assert tags["adapter_sha256"] == sha256_file(folder / "preference" / "adapter_model.safetensors")
    assert (tags["model_class"], tags["seed"], tags["config_hash"]) == ("DynamicPO", "7", "0123abcd" * 8)
    # The journal's validations of the stage are 0.75 and then 0.5: the adapter is that of the best.
    assert (tags["valid_metric_name"], tags["valid_metric"]) == ("ndcg_at_5", "0.75")
    assert (tags["test.hit_at_1"], tags["test.hr_at_1_low"], tags["test.hr_at_1_high"]) == (
        "0.25",
        "0.125",
        "0.5",
    )
    assert tags["run_id.run"] == version.run_id
    assert client.get_run(tags["run_id.preference"]).info.run_name == "preference"
    assert client.get_run(version.run_id).data.tags["stage"] == PARENT


def test_once(tmp_path: Path, tiny_backbone: Path, uri: str, always_passed: list[str]) -> None:
    """Neither the same run again nor another run with the same result makes a second version."""
    first = register_model(make_run(tmp_path / "run", tiny_backbone, uri), uri)
    assert register_model(tmp_path / "run", uri) == first
    again = RunFolder(tmp_path / "again", toy_record()).whole()
    shutil.copytree(tmp_path / "run" / "preference", again.path / "preference")
    write_json(again.path / PROBE_FILE, ROWS)
    sync(again.path, uri)
    assert register_model(again.path, uri) == first
    assert always_passed == [f"models:/{NAME}/1"]


def test_killed_before_the_gate(tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any) -> None:
    """The version is there, but no verdict: the next attempt asks again, for the same version."""
    folder = make_run(tmp_path / "run", tiny_backbone, uri)

    def fail(*args: Any) -> Verdict:
        raise TrackingError("no memory")

    monkeypatch.setattr(gate, "ask", fail)
    with pytest.raises(TrackingError, match="no memory"):
        register_model(folder, uri)
    assert aliases(uri) == {"candidate": "1"}
    monkeypatch.setattr(gate, "ask", lambda *args: PASSED)
    assert register_model(folder, uri).champion
    assert aliases(uri) == {"candidate": "1", "champion": "1"}


def test_a_model_that_ranks_otherwise_stays_candidate(
    tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gate, "ask", lambda *args: Verdict(1, 0.5, ["row 1: another order"]))
    found = register_model(make_run(tmp_path / "run", tiny_backbone, uri), uri)
    assert not found.champion
    assert aliases(uri) == {"candidate": "1"}
    tags = MlflowClient(uri).get_model_version(NAME, "1").tags
    assert (tags["gate"], tags["gate_reason"]) == ("failed", "row 1: another order")


# --- around it ---


def test_trouble_is_one_warning(tmp_path: Path, tiny_backbone: Path, uri: str, caplog: Any) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, None)
    assert register(folder, uri) is None
    (said,) = caplog.messages
    assert "not recorded" in said
    assert f"recbole-dynamicpo sync {folder}" in said


@pytest.mark.parametrize("way", ["resume", "sync"])
def test_sigterm_ends_the_registration_which_can_be_completed(
    toy_settings: dict[str, Any], uri: str, capsys: Any, monkeypatch: Any, way: str
) -> None:
    """It is no trouble that is forgiven: usual line, usual status."""
    settings = {**toy_settings, "mlflow_tracking_uri": uri, "compare_stages": False, "valid_rows": 4}
    command = ["--model=SFTRec", "--dataset=toy", *(f"--{name}={value}" for name, value in settings.items())]
    with monkeypatch.context() as patch:
        patch.setattr(gate, "ask", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert run_recbole(command) == 128 + signal.SIGTERM
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    later = f"recbole-dynamicpo sync {folder} --mlflow-tracking-uri {uri}"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped by SIGTERM before the model was registered; do it later: {later}"
    )
    assert aliases(uri) == {"candidate": "1"}
    monkeypatch.setattr(gate, "ask", lambda *args: PASSED)
    write_valid_ranks(folder, GOOD, stage="sft")
    if way == "resume":
        assert run_recbole([*command, f"--resume={folder}"]) == 0
    else:
        assert main(later.split()[1:]) == 0
    assert aliases(uri) == {"candidate": "1", "champion": "1"}


def test_who_is_registered(tmp_path: Path, tiny_backbone: Path) -> None:
    finished = make_run(tmp_path / "finished", tiny_backbone, None)
    assert wants_registration(finished)
    unwanted = make_run(tmp_path / "unwanted", tiny_backbone, None, register=False)
    assert not wants_registration(unwanted)
    assert not wants_registration(RunFolder(tmp_path / "no-adapter").whole().path)
    running = RunFolder(tmp_path / "running")
    running.begin("sft")
    shutil.copytree(finished / "preference", running.path / "sft")
    assert not wants_registration(running.path)


def test_an_sft_adapter_can_be_the_result(
    tmp_path: Path, tiny_backbone: Path, uri: str, always_passed: Any
) -> None:
    """SFTRec has no preference stage; a flow's stages lie elsewhere."""
    write_recommender(tmp_path / "stages" / "sft", tiny_backbone)
    record = toy_record(model="SFTRec", stages={"sft": "../stages"})
    folder = RunFolder(tmp_path / "run", record).whole()
    shutil.copyfile(folder.path / "metrics.jsonl", tmp_path / "stages" / "metrics.jsonl")
    write_json(folder.path / PROBE_FILE, ROWS)
    sync(folder.path, uri)
    register_model(folder.path, uri)
    tags = MlflowClient(uri).get_model_version(NAME, "1").tags
    assert (tags["model_class"], tags["valid_metric"]) == ("SFTRec", "0.5")


def test_sync_registers(
    tmp_path: Path, tiny_backbone: Path, uri: str, always_passed: Any, capsys: Any
) -> None:
    folder = make_run(tmp_path / "run", tiny_backbone, None)
    assert main(["sync", str(folder), "--mlflow-tracking-uri", uri]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("registered")]
    assert line.startswith(f"registered: models:/{NAME}/1, ")
    assert "champion: MRR" in line
    record = toy_record(params={**PARAMS, "register": False})
    write_record(folder, replace(record, key="another"))
    assert main(["sync", str(folder), "--mlflow-tracking-uri", uri]) == 0
    assert "registered" not in capsys.readouterr().out


def test_the_settings_go_with_the_model(
    tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any
) -> None:
    """Those that an evaluation needs; no folders and addresses of this machine."""
    monkeypatch.setattr(gate, "ask", lambda *args: PASSED)
    sent: dict[str, Any] = {}
    log = registry.log_model
    monkeypatch.setattr(
        registry, "log_model", lambda folder, **more: (sent.update(more["settings"]), log(folder, **more))[1]
    )
    params = {"data_path": "/home/ann/dataset", "mlflow_tracking_uri": "http://a:b@host", "eval_rows": 5}
    register_model(make_run(tmp_path / "run", tiny_backbone, uri, **params), uri)
    assert (sent["dataset"], sent["model"]) == ("toy", "DynamicPO")
    assert (sent["eval_rows"], sent["num_candidates"]) == (5, 6)
    assert not {"data_path", "mlflow_tracking_uri"} & set(sent)
