"""A real MLflow server, over HTTP: whole runs, and what becomes of them when it dies, hangs or is shared."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.tracking.record import JOURNAL_FILE, read_record
from recbole_dynamicpo.tracking.registry import register_model
from recbole_dynamicpo.tracking.sync import sync
from recbole_dynamicpo.tracking.view import KEY_TAG, PARENT

pytestmark = pytest.mark.servers
START_SECONDS = 240.0
# Two stages over all 60 rows of the toy data set, four at a time.
STEPS = 15


class Server:
    """An MLflow server with a database and artifacts of its own, which can be started again.

    Args:
        home: new folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.home}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.home / "artifacts")]
        tools = Path(sys.executable).parent  # `mlflow` starts `uvicorn` by its bare name
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, (self.home / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all of its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def settings(toy_settings: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run of 2 x 15 steps that is recorded at the server."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    more = {"mlflow_tracking_uri": server.uri, "register": False, "compare_stages": False}
    return {**toy_settings, **more, "sft_rows": 0, "preference_rows": 0}


def only_folder(settings: dict[str, Any]) -> Path:
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    return folder


def runs_of(uri: str, folder: Path) -> dict[str, Run]:
    """Return stage -> run of the run in ``folder``; each comes once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("recbole-dynamicpo/toy")
    if experiment is None:
        return {}
    key = read_record(folder).key
    found = client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
    named = {run.data.tags["stage"]: run for run in found}
    assert len(named) == len(found)
    return named


def sent(uri: str, folder: Path, stage: str) -> list[tuple[int, float]]:
    """Return step and loss of everything that the server has of a stage."""
    found = runs_of(uri, folder).get(stage)
    if found is None:
        return []
    history = MlflowClient(uri).get_metric_history(found.info.run_id, "train/loss")
    return [(point.step, point.value) for point in history]


def assert_complete(uri: str, folder: Path) -> None:
    """Every step that the journal tells is there once, in order, and every stage is finished."""
    entries = list(Journal(folder / JOURNAL_FILE).entries())
    for stage in ("sft", "preference"):
        told = [(e["step"], e["loss"]) for e in entries if (e["stage"], e["kind"]) == (stage, "train")]
        assert [step for step, _ in told] == list(range(1, STEPS + 1))
        assert sent(uri, folder, stage) == told
    runs = runs_of(uri, folder)
    assert set(runs) == {PARENT, "prepare", "sft", "preference", "evaluate"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    (test,) = [entry for entry in entries if entry["kind"] == "test"]
    assert runs[PARENT].data.metrics["test/hit_at_1"] == test["hit_at_1"]
    adapter = MlflowClient(uri).list_artifacts(runs["preference"].info.run_id, "adapter")
    assert "adapter/adapter_model.safetensors" in [file.path for file in adapter]


def at_step(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, act: Callable[[Path], None]) -> None:
    """Call ``act`` with the run folder once, when a training step is in the journal."""
    write, done = Journal.write, []

    def watched(self: Journal, *entry: Any) -> None:
        write(self, *entry)
        if entry[:3] == (stage, step, "train") and not done:
            done.append(True)
            act(self.path.parent)

    monkeypatch.setattr(Journal, "write", watched)


def wait_for_some(uri: str, folder: Path) -> None:
    """Wait until the server has the first steps of a run."""
    deadline = time.monotonic() + 120
    while not sent(uri, folder, "sft"):
        assert time.monotonic() < deadline, "nothing was sent"
        time.sleep(0.2)


def test_a_whole_run_and_its_model(
    settings: dict[str, Any], server: Server, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("DynamicPO", "toy", overrides=settings)
    folder = only_folder(settings)
    assert_complete(server.uri, folder)
    found = register_model(folder, server.uri)
    assert not found.champion
    assert "not compared with popularity" in found.reason
    assert register_model(folder, server.uri) == found
    monkeypatch.setenv(BACKBONE_VARIABLE, str(tiny_backbone))
    row = json.loads((folder / "probe.json").read_text())[0]
    ours, theirs = (
        load_recommender(source, tracking_uri=server.uri).rank(**row) for source in (folder, found.uri)
    )
    assert ours == theirs


def test_a_run_that_goes_on(
    settings: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 8, whose checkpoint is at step 6: the same run, no gap, no step twice."""

    def stop(folder: Path) -> None:
        wait_for_some(server.uri, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, "sft", 8, stop)
        with pytest.raises(KeyboardInterrupt):
            run("DynamicPO", "toy", overrides=settings)
    folder = only_folder(settings)
    before = runs_of(server.uri, folder)
    assert [step for step, _ in sent(server.uri, folder, "sft")] == list(range(1, 9))
    assert before["sft"].info.status == "FAILED"
    run("DynamicPO", "toy", overrides={**settings, "resume": str(folder)})
    assert_complete(server.uri, folder)
    assert runs_of(server.uri, folder)["sft"].info.run_id == before["sft"].info.run_id


@pytest.mark.long
def test_two_runs_at_once(settings: dict[str, Any], server: Server, tmp_path: Path) -> None:
    script = "import json, sys; from recbole_dynamicpo.host.run import run; "
    script += "run('DynamicPO', 'toy', overrides=json.loads(sys.argv[1]))"
    started = []
    for seed in (1, 2):
        own = {**settings, "seed": seed, "checkpoint_dir": str(tmp_path / f"saved{seed}")}
        command = [sys.executable, "-c", script, json.dumps(own)]
        log = (tmp_path / f"log{seed}").open("w")
        started.append((own, subprocess.Popen(command, stdout=log, stderr=log), log))
    for own, process, log in started:
        code = process.wait(timeout=500)
        log.close()
        assert code == 0, Path(log.name).read_text()
        assert_complete(server.uri, only_folder(own))


def test_a_server_that_hangs(
    settings: dict[str, Any],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training ends and says so; when the server is back, `sync` completes the record."""

    def hang(folder: Path) -> None:
        wait_for_some(server.uri, folder)
        server.signal(signal.SIGSTOP)

    at_step(monkeypatch, "sft", 4, hang)
    try:
        run("DynamicPO", "toy", overrides=settings)
    finally:
        server.signal(signal.SIGCONT)
    folder = only_folder(settings)
    assert (folder / "preference" / "adapter_model.safetensors").is_file()
    assert f"recbole-dynamicpo sync {folder}" in caplog.text
    sync(folder, server.uri)
    assert_complete(server.uri, folder)


def test_a_server_that_is_killed(
    settings: dict[str, Any],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the middle of training, and started again afterwards."""

    def kill(folder: Path) -> None:
        wait_for_some(server.uri, folder)
        server.kill()

    at_step(monkeypatch, "sft", 4, kill)
    result = run("DynamicPO", "toy", overrides=settings)
    folder = only_folder(settings)
    assert "hit@1" in result["test_result"]
    assert (folder / "preference" / "adapter_model.safetensors").is_file()
    assert f"recbole-dynamicpo sync {folder}" in caplog.text
    server.start()
    assert len(sent(server.uri, folder, "sft")) < STEPS
    sync(folder, server.uri)
    assert_complete(server.uri, folder)
