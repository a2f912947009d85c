"""A Prefect server and a process worker of their own, in a folder that is thrown away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from recbole_dynamicpo.tracking.journal import Journal

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Nothing here takes so long; a test that waits in vain has to say for what.
PATIENCE = 240.0


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class World:
    """The server's and worker's processes, and how to talk to them.

    Args:
        home: new folder for everything.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.work = home, home / "work"
        self.work.mkdir()
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **{
                key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))
            },
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": self.address,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            # By default a server that dies forgets who holds places of a limit, which stay taken for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "RECBOLE_DYNAMICPO_CACHE": str(home / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **variables: str) -> None:
        """Start a process in a session of its own, its output in ``<name>.log``."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.work,
                env={**self.environment, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_server(self) -> None:
        """Start the server and wait until it answers."""
        self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.wait(self._healthy, "the server answers")

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def start_worker(self) -> None:
        """Start the worker of our pool."""
        self.start("worker", "prefect", "worker", "start", "--pool", "dynamicpo", "--name", "test")

    def stop(self) -> None:
        """End what was started, and what that has started."""
        for name in list(self.processes):
            self.kill(name, signal.SIGKILL)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and all that it has started, and wait until it is gone."""
        process = self.processes.pop(name)
        try:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        except psutil.NoSuchProcess:
            family = []
        for member in family:
            try:
                member.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        process.wait(30)
        psutil.wait_procs(family, timeout=30)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a process hang while the block lasts."""
        group = self.processes[name].pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command line program to its end."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def client(self) -> SyncPrefectClient:
        """Return a client of the server; to be used in ``with``."""
        with temporary_settings({PREFECT_API_URL: self.address}):
            return get_client(sync_client=True)

    def submit(
        self, parameters: dict[str, Any], deployment_name: str = "dynamicpo/ml-100k", **variables: str
    ) -> UUID:
        """Submit a run of a deployment, with more environment variables, and return its id."""
        with self.client() as client:
            deployment = client.read_deployment_by_name(deployment_name)
            environment = {**(deployment.job_variables or {}).get("env", {}), **variables}
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters=parameters, job_variables={"env": environment}
            )
            return run.id

    def run(self, flow_run: UUID) -> FlowRun:
        """Return a run as the server knows it."""
        with self.client() as client:
            return client.read_flow_run(flow_run)

    def ended(self, flow_run: UUID) -> FlowRun:
        """Return a run when it has ended."""
        with self.client() as client:  # made once, as making one takes longer than asking

            def final() -> bool:
                state = client.read_flow_run(flow_run).state
                return state is not None and state.is_final()

            self.wait(final, f"flow run {flow_run} ends")
            return client.read_flow_run(flow_run)

    def tasks(self, flow_run: UUID) -> dict[str, TaskRun]:
        """Return the latest task run of each task of a run."""
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
        with self.client() as client:
            found = client.read_task_runs(flow_run_filter=mine)
        found.sort(key=lambda run: run.start_time or run.created)  # type: ignore[arg-type, return-value]
        return {run.name.rpartition("-")[0]: run for run in found}

    def states(self, flow_run: UUID) -> dict[str, str]:
        """Return the name of the last state of each task of a run."""
        return {name: task.state.name or "" for name, task in self.tasks(flow_run).items() if task.state}

    def wait(self, done: Callable[[], bool], what: str, every: float = 0.3) -> None:
        """Wait until ``done``; says ``what`` was waited for, with the ends of the logs, if it is not."""
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                logs = {path.name: path.read_text()[-3000:] for path in self.home.glob("*.log")}
                raise AssertionError(f"waited in vain: {what}\n" + json.dumps(logs, indent=1))
            time.sleep(every)


def train_steps(store: Path) -> int:
    """Return the steps that the preference stage has written down so far."""
    found = list((store / "stages").glob("preference-*/metrics.jsonl"))
    return found[0].read_text().count('"kind": "train"') if found else 0


def losses(folder: Path) -> list[float]:
    """Return the losses in the journal of a stage, of every step once."""
    entries = [e for e in Journal(folder / "metrics.jsonl").entries() if e["kind"] == "train"]
    assert [entry["step"] for entry in entries] == list(range(1, 41))
    return [entry["loss"] for entry in entries]
