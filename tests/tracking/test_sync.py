"""MLflow's copy of a run folder: whole, once, at any time, and never in the way of training."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import CheckpointError, TrackingError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.serving.mlflow_uri import resolve_uri
from recbole_dynamicpo.tracking.client import connect, page
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.tracking.live import LiveTracker, NullTracker, reason
from recbole_dynamicpo.tracking.points import METRICS_AT_ONCE, Point, batches
from recbole_dynamicpo.tracking.record import JOURNAL_FILE, write_record
from recbole_dynamicpo.tracking.sync import SENT_FILE, Mirror, open_tracker, recorded_at, sync
from recbole_dynamicpo.tracking.view import KEY_TAG, PARENT

from ..helpers.run_folders import BEGIN, PARAMS, RunFolder, toy_record
from ..helpers.saved_recommender import write_recommender

pytestmark = pytest.mark.usefixtures("figures_drawn_once")
EXPERIMENT = "recbole-dynamicpo/toy"
FIGURES = ["beta", "boundary", "hit_rate", "loss_and_validation", "reward"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has not begun."""
    return RunFolder(tmp_path / "saved" / "DynamicPO-toy-1")


def runs_of(uri: str, experiment: str = EXPERIMENT) -> dict[str, Run]:
    """Return stage -> run of a store in which each comes once."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    named = {run.data.tags["stage"]: run for run in found}
    assert len(named) == len(found), "a run was made twice"
    return named


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    """Return step and value of everything that was sent of a metric, in order of arrival."""
    found = MlflowClient(uri).get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in found]


def artifacts(uri: str, run: Run, path: str | None = None) -> list[str]:
    """Return the paths of all files of a run."""
    client, found = MlflowClient(uri), []
    for item in client.list_artifacts(run.info.run_id, path):
        found += artifacts(uri, run, item.path) if item.is_dir else [item.path]
    return found


def milliseconds(entry: float) -> int:
    """Return the time of the entry of that number."""
    return round(1000 * (BEGIN + entry))


# --- what is sent ---


def test_a_whole_run(folder: RunFolder, uri: str) -> None:
    run_id = sync(folder.whole().path, uri)
    runs = runs_of(uri)
    assert set(runs) == {PARENT, "prepare", "sft", "preference", "evaluate"}
    parent = runs.pop(PARENT)
    assert parent.info.run_id == run_id
    assert parent.info.run_name == "DynamicPO-toy-0123abcd-s7"
    for stage, found in runs.items():
        assert found.info.run_name == stage
        assert found.data.tags["mlflow.parentRunId"] == run_id
        assert found.info.status == "FINISHED"
    assert parent.info.status == "FINISHED"
    # Entries: prepare 1 and 2, sft 3 to 9, preference 10 to 16, evaluate 17 to 19. Each says at its end
    # that it took 2.5 s; prepare and evaluate so began before their first entry.
    assert {stage: (found.info.start_time, found.info.end_time) for stage, found in runs.items()} == {
        "prepare": (milliseconds(-0.5), milliseconds(2)),
        "sft": (milliseconds(3), milliseconds(9)),
        "preference": (milliseconds(10), milliseconds(16)),
        "evaluate": (milliseconds(16.5), milliseconds(19)),
    }
    assert (parent.info.start_time, parent.info.end_time) == (milliseconds(-0.5), milliseconds(19))


def test_metrics_by_step(folder: RunFolder, uri: str) -> None:
    sync(folder.whole().path, uri)
    runs = runs_of(uri)
    sft, preference, evaluate = runs["sft"], runs["preference"], runs["evaluate"]
    assert history(uri, sft, "train/loss") == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert history(uri, sft, "valid/ndcg_at_5") == [(3, 0.5)]
    assert history(uri, sft, "system/cpu_utilization_percentage") == [(3, 50.0)]
    assert history(uri, preference, "train/violation_rate") == [(step, 0.25) for step in (1, 2, 3, 4)]
    assert evaluate.data.metrics == {
        "test/hit_at_1": 0.25,
        "test/hr_at_1_low": 0.125,
        "test/hr_at_1_high": 0.5,
        "usage/seconds": 2.5,
        "usage/peak_memory_mb": 300.0,
    }
    # The parent bears the results too, and what each stage cost, so that runs can be compared in a table.
    assert runs[PARENT].data.metrics == {
        "test/hit_at_1": 0.25,
        "test/hr_at_1_low": 0.125,
        "test/hr_at_1_high": 0.5,
        **{f"usage/{stage}_seconds": 2.5 for stage in ("prepare", "sft", "preference", "evaluate")},
    }
    times = [point.timestamp for point in MlflowClient(uri).get_metric_history(sft.info.run_id, "train/loss")]
    assert times == [milliseconds(4), milliseconds(5), milliseconds(6)]


def test_what_runs_say_of_themselves(folder: RunFolder, uri: str) -> None:
    sync(folder.whole().path, uri)
    runs = runs_of(uri)
    for found in runs.values():
        said = found.data.tags
        assert (said["dataset"], said["seed"], said["config_hash"]) == ("toy", "7", "0123abcd" * 8)
        assert (said["backbone"], said["backbone_sha256"]) == ("tiny", "b" * 64)
        assert said["git_commit"] == said["mlflow.source.git.commit"] == "c" * 40
        assert said[KEY_TAG] == folder.record.key
    parent = runs[PARENT]
    assert parent.data.params == {
        "valid_metric": "NDCG@5",
        "valid_metric_bigger": "True",
        "num_candidates": "6",
        "topk": "[1, 5]",
        "clip_grad_norm.max_norm": "1.0",
        "unload_col": "None",
    }
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("toy", "d" * 36)
    assert '"train": 60' in data.dataset.profile
    assert "| after DynamicPO | 0.2500 | 0.1250 to 0.5000 |" in parent.data.tags["mlflow.note.content"]


def test_prefect_ids_are_tags(tmp_path: Path, uri: str) -> None:
    record = toy_record(tags={"prefect.flow_run_id": "f-1"})
    sync(RunFolder(tmp_path / "run", record).whole().path, uri)
    assert {found.data.tags["prefect.flow_run_id"] for found in runs_of(uri).values()} == {"f-1"}


def test_artifacts(folder: RunFolder, uri: str) -> None:
    sync(folder.whole().path, uri)
    runs = runs_of(uri)
    figures = [f"figures/{name}.png" for name in FIGURES]
    assert sorted(artifacts(uri, runs[PARENT])) == ["audit.json", *figures, "ranks.parquet", "report.json"]
    assert artifacts(uri, runs["prepare"]) == ["audit.json"]
    assert sorted(artifacts(uri, runs["evaluate"])) == ["ranks.parquet", "report.json"]
    home = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    (drawn,) = home.rglob("hit_rate.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    (ranks,) = (home / runs["evaluate"].info.run_id).rglob("ranks.parquet")
    assert ranks.read_bytes() == (folder.path / "ranks.parquet").read_bytes()


def test_an_adapter_lies_with_its_stage(folder: RunFolder, uri: str, tiny_backbone: Path) -> None:
    """As a recommender folder that names no path of this machine."""
    write_recommender(folder.path / "sft", tiny_backbone)
    sync(folder.whole().path, uri)
    sent = artifacts(uri, runs_of(uri)["sft"])
    files = ["adapter_config", "catalogue", "recommender", "settings", "templates"]
    assert sorted(sent) == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"] + [
        f"adapter/{name}.json" for name in files[1:]
    ]
    home = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    for path in home.rglob("adapter/*.json"):
        assert str(tiny_backbone.parent) not in path.read_text()


def test_settings_that_mlflow_would_refuse(tmp_path: Path, uri: str) -> None:
    """Long values are cut, odd characters of names replaced, passwords left out."""
    params = {
        **PARAMS,
        "long": "x" * 7000,
        "val_interval.a+b": "[3,inf)",
        "mlflow_tracking_uri": "http://ann:secret@host:5000",
        **{f"many.{n}": n for n in range(250)},
    }
    sync(RunFolder(tmp_path / "run", toy_record(params=params)).whole().path, uri)
    shown = runs_of(uri)[PARENT].data.params
    assert shown["long"] == "x" * 6000
    assert shown["val_interval.a_b"] == "[3,inf)"
    assert shown["mlflow_tracking_uri"] == "http://host:5000"
    assert shown["many.249"] == "249"


def test_what_is_no_number_is_no_metric(folder: RunFolder, uri: str) -> None:
    folder.add("sft", 1, "train", loss=float("nan"), grad_norm=1.0, note="text", good=True, counts=[1, 2])
    with (folder.path / JOURNAL_FILE).open("a") as handle:
        handle.write('{"stage": "sft", "step": 2, "kind": "tra')  # as a crash leaves it
    sync(folder.path, uri)
    assert runs_of(uri)["sft"].data.metrics == {"train/grad_norm": 1.0}


def test_a_model_of_recbole(tmp_path: Path, uri: str) -> None:
    """It has one training stage, no adapter, no report."""
    folder = RunFolder(tmp_path / "run", toy_record(model="BPR", name="BPR-toy-1-s7", data={}))
    folder.begin("train")
    folder.add("train", 1, "valid", valid_score=0.5)
    folder.add("evaluate", 0, "test", hit_at_10=0.75)
    folder.end("train")
    folder.end("evaluate")
    sync(folder.path, uri)
    runs = runs_of(uri)
    assert set(runs) == {PARENT, "train", "evaluate"}
    assert runs["train"].data.metrics["valid/valid_score"] == 0.5
    assert runs[PARENT].data.metrics["test/hit_at_10"] == 0.75
    assert runs[PARENT].info.status == "FINISHED"
    assert artifacts(uri, runs[PARENT]) == ["figures/loss_and_validation.png"]


def test_stages_that_lie_elsewhere(tmp_path: Path, uri: str) -> None:
    """Flows keep stages in folders of their own, which several runs may share."""
    shared = tmp_path / "stages" / "sft-1"
    shared.mkdir(parents=True)
    record = toy_record(stages={"sft": str(shared), "evaluate": "../evaluate-1"})
    for number in (1, 2):
        folder = RunFolder(tmp_path / "runs" / f"run{number}", replace(record, key=f"key{number}"))
        folder.begin("prepare")
        folder.end("prepare")
    folder.add("sft", 1, "train", shared, loss=0.5)
    folder.add("sft", 1, "status", shared, status="finished")
    folder.add("preference", 1, "train", shared, loss=9.0)  # of another stage: not shown
    (tmp_path / "runs" / "evaluate-1").mkdir()
    folder.evaluate(place=tmp_path / "runs" / "evaluate-1")
    for number in (1, 2):
        sync(tmp_path / "runs" / f"run{number}", uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    for number in (1, 2):
        found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = 'key{number}'")
        named = {run.data.tags["stage"]: run for run in found}
        assert set(named) == {PARENT, "prepare", "sft", "evaluate"}
        assert history(uri, named["sft"], "train/loss") == [(1, 0.5)]
        assert "ranks.parquet" in artifacts(uri, named["evaluate"])


# --- again, and bit by bit ---


def test_sending_again_sends_nothing(folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = sync(folder.whole().path, uri)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"sent again: {args} {kwargs}")

    for name in ("log_batch", "log_artifacts", "create_run", "set_terminated", "update_run", "log_inputs"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    assert sync(folder.path, uri) == run_id


@pytest.mark.parametrize("forgets", [False, True])
def test_a_growing_run(folder: RunFolder, uri: str, forgets: bool) -> None:
    """Sent after every entry by one mirror, or now and then by a new one, as by a process that was killed."""
    whole = RunFolder(folder.path.with_name("whole"), folder.record).whole()
    lines = (whole.path / JOURNAL_FILE).read_text().splitlines(keepends=True)
    mirror = Mirror(folder.path, uri)
    for number, line in enumerate(lines):
        with (folder.path / JOURNAL_FILE).open("a") as handle:
            handle.write(line)
        if forgets and number % 3:
            continue
        if forgets:
            (folder.path / SENT_FILE).unlink(missing_ok=True)
            mirror = Mirror(folder.path, uri)
        mirror.send()
    runs = runs_of(uri)
    assert set(runs) == {PARENT, "prepare", "sft", "preference", "evaluate"}
    assert len(lines) % 3 == 1  # the last line was sent
    assert history(uri, runs["preference"], "train/loss") == [(n, n / 8) for n in (1, 2, 3, 4)]
    assert history(uri, runs["preference"], "valid/ndcg_at_5") == [(4, 0.75)]
    assert history(uri, runs[PARENT], "test/hit_at_1") == [(0, 0.25)]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_run_that_goes_on(folder: RunFolder, uri: str) -> None:
    """Killed after step 7, gone on with from its checkpoint at step 5: no gap, no step twice."""
    folder.begin("sft")
    folder.train("sft", 1, 7)
    mirror = Mirror(folder.path, uri)
    mirror.send()
    first = runs_of(uri)["sft"].info
    Journal(folder.path / JOURNAL_FILE).rewind("sft", 5, ())
    folder.begin("sft")
    folder.train("sft", 6, 9)  # at other times than before
    sync(folder.path, uri)
    found = runs_of(uri)["sft"]
    assert found.info.run_id == first.run_id
    assert history(uri, found, "train/loss") == [(n, n / 8) for n in range(1, 10)]
    assert found.info.status == "RUNNING"


def test_a_failed_run_that_goes_on(folder: RunFolder, uri: str) -> None:
    folder.begin("sft")
    folder.train("sft", 1, 2)
    folder.add("sft", 2, "status", status="failed")
    sync(folder.path, uri)
    assert {run.info.status for run in runs_of(uri).values()} == {"FAILED"}
    folder.begin("sft")
    sync(folder.path, uri)
    assert {run.info.status for run in runs_of(uri).values()} == {"RUNNING"}
    folder.train("sft", 3, 3)
    folder.end("sft", 3)
    folder.begin("evaluate")
    folder.evaluate()
    folder.end("evaluate")
    sync(folder.path, uri)
    runs = runs_of(uri)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["sft"].info.end_time == milliseconds(7)


def test_settings_that_changed_on_the_way(folder: RunFolder, uri: str) -> None:
    """MLflow refuses another value of a parameter; new ones are added."""
    sync(folder.whole().path, uri)
    write_record(folder.path, replace(folder.record, params={**PARAMS, "num_candidates": 9, "new": 1}))
    sync(folder.path, uri)
    shown = runs_of(uri)[PARENT].data.params
    assert (shown["num_candidates"], shown["new"]) == ("6", "1")


def test_an_evaluation_made_again(folder: RunFolder, uri: str) -> None:
    """The same result again is no news; another one, of other rows, is shown as the last."""
    folder.begin("evaluate")
    folder.evaluate(0.25)
    folder.end("evaluate")
    journal = Journal(folder.path / JOURNAL_FILE)
    for hit, steps in ((0.25, [(0, 0.25)]), (0.5, [(0, 0.25), (1, 0.5)])):
        sync(folder.path, uri)
        journal.rewind("sft", 0, ())
        folder.evaluate(hit)
        for _ in range(2):
            sync(folder.path, uri)
        runs = runs_of(uri)
        assert history(uri, runs["evaluate"], "test/hit_at_1") == steps
        assert history(uri, runs[PARENT], "test/hit_at_1") == steps


def test_what_changed_is_uploaded_again(folder: RunFolder, uri: str) -> None:
    sync(folder.whole().path, uri)
    folder.evaluate(0.5, step=1)
    sync(folder.path, uri)
    home = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / runs_of(uri)[PARENT].info.run_id
    (sent,) = home.rglob("report.json")
    assert sent.read_text() == (folder.path / "report.json").read_text()


def test_points_are_sent_whole() -> None:
    """Eleven points of 300 metrics: three of them fill a request of at most 1000."""
    points = [Point("train", step, 0, {f"m{n}": 0.0 for n in range(300)}) for step in range(11)]
    packed = list(batches(points))
    assert [len(batch) for batch in packed] == [3, 3, 3, 2]
    assert [point.step for batch in packed for point in batch] == list(range(11))
    one = Point("train", 0, 0, {f"m{n}": 0.0 for n in range(METRICS_AT_ONCE)})
    assert list(batches([one, one])) == [[one], [one]]
    assert list(batches([])) == []


def test_many_steps(folder: RunFolder, uri: str) -> None:
    folder.begin("sft")
    folder.train("sft", 1, 1200)  # 2400 metrics: three requests
    sync(folder.path, uri)
    assert history(uri, runs_of(uri)["sft"], "train/loss") == [(n, n / 8) for n in range(1, 1201)]


# --- where ---


def test_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri("auto") == f"sqlite:////{str(tmp_path).strip('/')}/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    assert resolve_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert resolve_uri("auto") == "http://other:5000"
    assert resolve_uri(None) is None
    assert isinstance(open_tracker(tmp_path, None), NullTracker)


def test_the_page_of_a_run() -> None:
    shown = "http://host:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert page("http://ann:secret@host:5000/", "3", "abc") == shown
    assert page("sqlite:////a/b.db", "3", "abc") == "sqlite:////a/b.db"


def test_sync_finds_the_place_again(folder: RunFolder, uri: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A setting wins, then the variable, then where it was sent before, then the present folder."""
    monkeypatch.chdir(tmp_path)
    assert recorded_at(folder.path) == f"sqlite:///{tmp_path}/mlflow.db"
    sync(folder.whole().path, uri)
    assert recorded_at(folder.path) == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable")
    assert recorded_at(folder.path) == "http://variable"
    params = {**PARAMS, "mlflow_tracking_uri": "http://setting"}
    write_record(folder.path, replace(folder.record, params=params))
    assert recorded_at(folder.path) == "http://setting"


def test_the_experiment_can_be_named(folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    sync(folder.whole().path, uri)
    assert len(runs_of(uri, "mine")) == 5
    assert MlflowClient(uri).get_experiment_by_name(EXPERIMENT) is None


def test_nothing_global_is_touched(folder: RunFolder, uri: str) -> None:
    before = mlflow.get_tracking_uri()
    sync(folder.whole().path, uri)
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_two_processes_make_one_database(tmp_path: Path) -> None:
    """MLflow alone fails here: both would make the same tables."""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    folders = [RunFolder(tmp_path / f"run{n}", toy_record(key=f"key{n}")).whole().path for n in (1, 2)]
    context = multiprocessing.get_context("fork")  # has all imports already
    started = [context.Process(target=sync, args=(folder, uri)) for folder in folders]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
    assert [process.exitcode for process in started] == [0, 0]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == (tmp_path / "new" / "mlartifacts").as_uri()
    assert len(client.search_runs([experiment.experiment_id])) == 10


# --- the command ---


def test_sync_from_the_command_line(folder: RunFolder, uri: str, capsys: Any) -> None:
    code = main(["sync", str(folder.whole().path), "--mlflow-tracking-uri", uri])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert runs_of(uri)[PARENT].info.run_id in said.out


def test_sync_of_no_run(tmp_path: Path, uri: str) -> None:
    with pytest.raises(CheckpointError, match="wanted the folder of a run"):
        sync(tmp_path, uri)
    empty = RunFolder(tmp_path / "empty")
    with pytest.raises(TrackingError, match="nothing to send"):
        sync(empty.path, uri)


def test_sync_to_nowhere(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="not sent to sqlite"):
        sync(folder.whole().path, f"sqlite:///{tmp_path}/file/mlflow.db")


# --- while training ---


class Sender:
    """Stands in for the sending, which can hang or fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.failing = False
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> None:
        self.calls += 1
        self.open.wait(30)
        if self.failing:
            raise OSError("no such host\nand more")


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.open.set()


def tracker_of(sender: Sender, close_within: float = 30.0) -> LiveTracker:
    return LiveTracker(
        sender, where="MLflow at X", remedy="the command", every=0.01, close_within=close_within
    )


def test_closing_sends_the_rest(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    tracker = tracker_of(sender)
    tracker.close("FINISHED")
    assert sender.calls == 1
    tracker.changed()
    tracker.close("FINISHED")
    assert sender.calls >= 2
    assert caplog.messages == []


def test_a_dead_server_costs_two_messages(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    """One when it is first noticed, one at the end with what to do."""
    sender.failing = True
    tracker = tracker_of(sender)
    tracker.changed()
    while sender.calls < 3:
        time.sleep(0.01)
    tracker.close("FINISHED")
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]
    first, last = caplog.messages
    assert first == "MLflow at X: no such host; the run goes on, and tries again"
    assert "(no such host)" in last
    assert last.endswith("send it later: the command")


def test_the_reason_is_the_first_cause() -> None:
    """Clients of servers wrap it; our own errors say enough themselves."""
    refused = ConnectionRefusedError(111, "Connection refused")
    wrapped = RuntimeError("a" * 300)
    wrapped.__cause__ = refused
    outer = RuntimeError("HTTPConnectionPool(...)")
    outer.__context__ = wrapped
    assert reason(outer) == "[Errno 111] Connection refused"
    ours = TrackingError("held by another process")
    ours.__cause__ = refused
    assert reason(ours) == "held by another process"
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("x" * 300)) == "x" * 197 + "..."


def test_a_server_that_comes_back(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    sender.failing = True
    tracker = tracker_of(sender)
    tracker.changed()
    while sender.calls < 2:
        time.sleep(0.01)
    sender.failing = False
    tracker.close("FINISHED")
    assert len(caplog.messages) == 1


def test_a_hanging_server_holds_nothing_up(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    """``changed`` returns while a send hangs, and ``close`` gives up; once it is free, all is sent."""
    sender.open.clear()
    tracker = tracker_of(sender, close_within=0.1)
    for _ in range(3):
        tracker.changed()
    tracker.close("FINISHED")
    assert sender.calls == 1
    assert ["no answer within" in message for message in caplog.messages] == [True]
    sender.open.set()
    tracker.changed()
    tracker_of(sender).close("FINISHED")
    while sender.calls < 3:
        time.sleep(0.01)


def test_a_training_run_is_recorded(toy_settings: dict[str, Any], uri: str, tmp_path: Path) -> None:
    """All of it, by the run itself: every entry of the journal is in MLflow when it ends."""
    settings = {**toy_settings, "mlflow_tracking_uri": uri, "register": False}
    run("DynamicPO", "toy", overrides=settings)
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    runs = runs_of(uri)
    for stage in ("sft", "preference"):
        entries = [e for e in Journal(folder / JOURNAL_FILE).entries() if e["stage"] == stage]
        steps = [(e["step"], e["loss"]) for e in entries if e["kind"] == "train"]
        assert len(steps) == 3
        assert history(uri, runs[stage], "train/loss") == steps
        assert "adapter/adapter_model.safetensors" in artifacts(uri, runs[stage])
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    assert len([path for path in artifacts(uri, runs[PARENT]) if path.startswith("figures/")]) == 5


@pytest.mark.parametrize("state", ["INFO", "WARNING"])
def test_mlflow_says_no_more_than_the_run(state: str, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlflow")  # as importing it does
    caplog.set_level(state)
    connect(uri)
    assert logging.getLogger("mlflow").level == logging.getLevelName(state)
