"""The containers' scripts as plain processes: both servers, a worker, and a deployment to its end.

SQLite stands in place of compose.yaml's Postgres.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from ..flows.world import BIN, ROOT, World, free_port

SCRIPTS = ROOT / "docker"


class Containers(World):
    """The services of compose.yaml, each a process."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.mlflow, self.worker = free_port(), free_port()
        self.environment["PATH"] = f"{BIN}{os.pathsep}{self.environment['PATH']}"

    def start_script(self, name: str, health: str, **variables: str) -> None:
        """Start a service by its script and wait until its health check says that it is there."""
        self.start(name, str(SCRIPTS / f"{name}.sh"), **variables)
        self.wait(lambda: self.healthy(health), f"{name} is healthy", every=1)

    def healthy(self, address: str) -> bool:
        return self.call(str(SCRIPTS / "healthy.sh"), address).returncode == 0


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    containers = Containers(tmp_path)
    try:
        yield containers
    finally:
        containers.stop()


@pytest.mark.long
@pytest.mark.servers
def test_the_scripts_run_a_deployment(containers: Containers, tiny_backbone: Path) -> None:
    server = f"http://127.0.0.1:{containers.mlflow}"
    containers.start_script(
        "mlflow",
        f"{server}/health",
        MLFLOW_PORT=str(containers.mlflow),
        MLFLOW_WORKERS="1",
        MLFLOW_BACKEND_STORE_URI=f"sqlite:///{containers.home}/mlflow.db",
        MLFLOW_ARTIFACTS_DESTINATION=str(containers.home / "artifacts"),
        MLFLOW_SERVER_ALLOWED_HOSTS=f"mlflow:5000,127.0.0.1:{containers.mlflow}",
    )
    assert asked_as("mlflow:5000", server) == 200
    assert asked_as("elsewhere.example.org", server) == 403
    containers.start_script("prefect", f"{containers.address}/health", PREFECT_PORT=str(containers.port))
    containers.start_script(
        "worker",
        f"http://127.0.0.1:{containers.worker}/health",
        MLFLOW_TRACKING_URI=server,
        WORKER_PORT=str(containers.worker),
    )
    ended = containers.ended(containers.submit(parameters(tiny_backbone)))
    assert ended.state_name == "Completed", ended.state

    client = MlflowClient(server)
    assert [model.name for model in client.search_registered_models()] == ["dynamicpo-ml-100k"]
    (version,) = client.search_model_versions("name = 'dynamicpo-ml-100k'")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert list((containers.home / "artifacts").rglob("adapter_model.safetensors"))
    assert (containers.work / "saved" / "runs").is_dir()
    assert not (containers.work / "mlflow.db").exists()


def asked_as(name: str, server: str) -> int:
    """Return the status of an answer to a request that calls the server by a name."""
    address = f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0"
    return httpx.get(address, headers={"Host": name}, timeout=30).status_code


def parameters(backbone: Path) -> dict[str, Any]:
    """Return a run of seconds on ml-100k."""
    overrides = {"num_candidates": 6, "max_history": 3, "dtype": "float32", "lora_layers": 0, "valid_rows": 4}
    return {
        "backbone": str(backbone),
        "num_negatives": 4,
        "sft_rows": 8,
        "preference_rows": 8,
        "eval_rows": 4,
        "overrides": overrides,
    }


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("mlflow", "MLFLOW_BACKEND_STORE_URI: wanted: the address of the database"),
        ("prefect", "PREFECT_HOME: wanted: a folder that stays"),
        ("worker", "PREFECT_API_URL: wanted: the address of Prefect, http://.../api"),
    ],
)
def test_a_script_says_what_it_misses(containers: Containers, script: str, wanted: str) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_URL"):
        del containers.environment[name]
    done = containers.call(str(SCRIPTS / f"{script}.sh"))
    assert done.returncode == 1
    assert wanted in done.stderr


def test_an_address_where_nothing_answers_is_not_healthy(containers: Containers) -> None:
    assert not containers.healthy(f"http://127.0.0.1:{containers.mlflow}/health")
