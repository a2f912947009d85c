"""Registered models: one version an adapter, champion only for what ranks as it should and is no worse."""

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
from recbole_dynamicpo.serving.gate import TOLERANCE, Verdict, ask, compare
from recbole_dynamicpo.serving.recommender import BACKBONE_VARIABLE, Ranked
from recbole_dynamicpo.storage import sha256_file, write_json
from recbole_dynamicpo.tracking import registry
from recbole_dynamicpo.tracking.record import PROBE_FILE, write_record
from recbole_dynamicpo.tracking.registry import register, register_model, wants_registration, worse_than
from recbole_dynamicpo.tracking.sync import sync
from recbole_dynamicpo.tracking.view import PARENT

from ..helpers import near_gate
from ..helpers.run_folders import PARAMS, RunFolder, toy_record
from ..helpers.saved_recommender import TITLES, write_recommender

pytestmark = pytest.mark.usefixtures("figures_drawn_once")
NAME = "dynamicpo-toy"
ROWS = [{"history": [TITLES[0]], "candidates": ["Canyon", "Delta", "Amber"]}]
PASSED = Verdict(rows=1, largest_difference=0.0, reasons=[])


@pytest.fixture
def always_passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No fresh process: the gate finds no difference. Returns the models that it was asked about."""
    asked: list[str] = []

    def answer(folder: Path, model: str, *rest: Any) -> Verdict:
        asked.append(model)
        return PASSED

    monkeypatch.setattr(gate, "ask", answer)
    return asked


def make_run(
    path: Path, backbone: Path, uri: str | None, *, valid: float = 0.75, seed: int = 3, **params: Any
) -> Path:
    """Write a finished run with an adapter and send it to a store."""
    record = toy_record(params={**PARAMS, **params})
    folder = RunFolder(path, record).whole()
    folder.add("preference", 5, "valid", ndcg_at_5=valid)
    write_recommender(path / "preference", backbone, seed=seed)
    write_json(path / PROBE_FILE, ROWS)
    if uri:
        sync(path, uri)
    return path


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
    assert adapter.stat().st_size < found.size_bytes < adapter.stat().st_size + 1_000_000
    assert aliases(uri) == {"candidate": "1", "champion": "1"}
    assert f"models:/{NAME}/1 is champion: 1 rows ranked alike" in caplog.text
    tags = MlflowClient(uri).get_model_version(NAME, "1").tags
    assert (tags["gate"], tags["gate_largest_difference"]) == ("passed", "0.0")
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


@pytest.mark.parametrize(
    ("params", "valid", "champion"),
    [
        ({}, 0.9, "2"),
        ({}, 0.8, "2"),
        ({}, 0.7625, "1"),
        ({"require_improvement": False}, 0.7625, "2"),
        ({"num_candidates": 20}, 0.9, "1"),
    ],
    ids=["better", "as good", "worse", "worse, but allowed", "otherwise validated"],
)
def test_the_second_model(
    tmp_path: Path,
    tiny_backbone: Path,
    uri: str,
    always_passed: list[str],
    params: Any,
    valid: float,
    champion: str,
) -> None:
    register_model(make_run(tmp_path / "first", tiny_backbone, uri, valid=0.8), uri)
    found = register_model(
        make_run(tmp_path / "second", tiny_backbone, uri, valid=valid, seed=4, **params), uri
    )
    assert found.champion is (champion == "2")
    assert aliases(uri) == {"candidate": "2", "champion": champion}


def test_what_is_worse() -> None:
    tags = {"valid_metric_name": "ndcg_at_5", "valid_metric": "0.5", "valid_metric_bigger": "True"}
    assert worse_than(tags, {}) == []
    assert worse_than(tags, {**tags, "valid_metric": "0.25"}) == []
    assert worse_than(tags, {**tags, "valid_metric": "0.75"}) == [
        "valid ndcg_at_5 0.5 is worse than the champion's 0.75"
    ]
    small = {**tags, "valid_metric_bigger": "False"}  # as of an error, where less is better
    assert worse_than(small, {**small, "valid_metric": "0.75"}) == []
    assert len(worse_than(small, {**small, "valid_metric": "0.25"})) == 1
    assert "other metric" in worse_than(tags, {**tags, "valid_metric_name": "mrr_at_5"})[0]
    unknown = {key: value for key, value in tags.items() if key != "valid_metric"}
    assert "not validated" in worse_than(unknown, tags)[0]


# --- the gate ---


def ranking(*scores: tuple[str, float]) -> list[Ranked]:
    return [Ranked(title, (), score) for title, score in scores]


def test_the_comparison() -> None:
    ours = [ranking(("a", -1.0), ("b", -2.0))]
    assert compare(ours, ours) == Verdict(1, 0.0, [])
    near = [ranking(("a", -1.0 + TOLERANCE / 2), ("b", -2.0))]
    assert compare(ours, near).passed
    assert compare(ours, near).largest_difference == pytest.approx(TOLERANCE / 2)
    far = compare(ours, [ranking(("a", -1.0), ("b", -2.25))])
    assert (far.passed, far.largest_difference) == (False, 0.25)
    assert far.reasons == ["row 1: scores differ by 0.25 nats, wanted at most 0.001"]
    turned = compare(ours, [ranking(("b", -1.0), ("a", -1.0))])
    assert turned.reasons[0] == "row 1: another order"
    assert not compare(ours, [ranking(("a", float("nan")), ("b", -2.0))]).passed
    assert not compare([], []).passed


def test_the_gate_sees_other_weights(tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any) -> None:
    """The registered model is of one adapter, the folder by now of another."""
    folder = make_run(tmp_path / "run", tiny_backbone, uri)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "ask", lambda *args: PASSED)
        register_model(folder, uri)
    monkeypatch.setattr(gate, "subprocess", near_gate)
    other = write_recommender(tmp_path / "other", tiny_backbone, seed=9)
    verdict = ask(other, f"models:/{NAME}/1", uri, ROWS, str(tiny_backbone))
    assert not verdict.passed
    assert verdict.largest_difference > TOLERANCE


def test_a_gate_that_cannot_answer(tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any) -> None:
    """In a fresh process, which says so at once where there is no folder, and in this one."""
    with pytest.raises(TrackingError, match=r"models:/nothing/1: the gate could not compare it \(.*nowhere"):
        ask(tmp_path / "nowhere", "models:/nothing/1", uri, ROWS, str(tiny_backbone))
    monkeypatch.setattr(gate, "subprocess", near_gate)
    folder = write_recommender(tmp_path / "preference", tiny_backbone)
    with pytest.raises(TrackingError, match=r"models:/nothing/1: the gate could not compare it .*not found"):
        ask(folder, "models:/nothing/1", uri, ROWS, str(tiny_backbone))


def test_a_gate_that_cannot_be_started(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(TrackingError, match=r"m/1: the gate could not be started .*No such file.*python"):
        ask(tmp_path, "models:/m/1", "none", ROWS, str(tiny_backbone))


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
    assert f"registered: models:/{NAME}/1, champion" in capsys.readouterr().out
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
