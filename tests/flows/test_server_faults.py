"""Prefect's server dies, hangs, answers with errors or is not there: waiting is bounded, results are safe."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from recbole_dynamicpo import pipeline
from recbole_dynamicpo.flows import bootstrap
from recbole_dynamicpo.flows.parameters import make_job
from recbole_dynamicpo.tracking.journal import Journal

from ..conftest import write_dataset
from .faulty_proxy import faulty_proxy
from .world import World, losses, train_steps

pytestmark = [pytest.mark.servers, pytest.mark.robustness]

STEPS = 40
# Prefect's client waits 60 s for an answer, and tries five times more within a minute. Here it waits less.
IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_API_REQUEST_TIMEOUT": "5"}
# Seconds that a flow may live on; a quiet machine needs a quarter of it.
BOUND = 180.0
SCRIPT = """
import json, sys
from recbole_dynamicpo.flows.pipeline import dynamicpo
dynamicpo(**json.loads(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with the limit that training tasks ask for a place of."""
    world = World(tmp_path_factory.mktemp("faults"))
    try:
        world.start_server()
        with world.client() as client:
            bootstrap._make_limit(client, 2)
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="module")
def parameters(world: World, tiny_backbone: Path) -> dict[str, Any]:
    """A run of seconds."""
    overrides = {
        "data_path": str(write_dataset(world.home / "dataset")),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        **{"num_candidates": 6, "max_history": 3, "dtype": "float32", "lora_layers": 0, "valid_rows": 4},
        **{"train_batch_size": 1, "checkpoint_every": 1, "learning_rate": 0.01, "sft_learning_rate": 0.01},
        **{"mlflow_tracking_uri": None, "compare_stages": False},
    }
    return {
        **{"dataset": "toy", "backbone": str(tiny_backbone), "num_negatives": 4, "overrides": overrides},
        **{"sft_rows": 16, "preference_rows": STEPS, "eval_rows": 8},
    }


@pytest.fixture(scope="module")
def undisturbed(world: World, parameters: dict[str, Any]) -> list[float]:
    """The losses of a run that Prefect has nothing to do with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECBOLE_DYNAMICPO_STORE", str(world.home / "undisturbed"))
        patch.setenv("RECBOLE_DYNAMICPO_CACHE", world.environment["RECBOLE_DYNAMICPO_CACHE"])
        job = make_job(**parameters)
        prepared = pipeline.prepare(job)
        pipeline.train(job, "sft", prepared)
        return losses(Path(pipeline.train(job, "preference", prepared).folder))


def begin(world: World, store: Path, parameters: dict[str, Any], **variables: str) -> None:
    """Start the flow as a process that calls it."""
    command = [Path(sys.executable).name, "-c", SCRIPT, json.dumps(parameters)]
    world.start("flow", *command, RECBOLE_DYNAMICPO_STORE=str(store), **variables)


def finish(world: World) -> tuple[int, str]:
    """Return the exit status of that process, which ends within bounds, and what it said."""
    log = world.home / "flow.log"
    status = world.processes.pop("flow").wait(BOUND)
    return status, log.rename(log.with_suffix(".txt")).read_text()


def wait_for_training(world: World, store: Path) -> None:
    world.wait(lambda: train_steps(store) >= 3, "three steps of the preference stage", every=0.01)


def wait_for_stage(world: World, store: Path) -> None:
    world.wait(lambda: "preference" in ended_stages(store), "the end of the preference stage", every=0.1)


def ended_stages(store: Path) -> dict[str, Path]:
    """Return name -> manifest of the stages with a whole result."""
    found = (store / "stages").glob("*/done.json")
    return {path.parent.name.rpartition("-")[0]: path for path in found}


def latest(world: World) -> FlowRun:
    """Return the flow run that was begun last."""
    with world.client() as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_a_server_that_hangs_for_a_while(
    world: World, parameters: dict[str, Any], undisturbed: list[float], tmp_path: Path
) -> None:
    """Training goes on meanwhile, and then everything as if nothing had happened."""
    begin(world, tmp_path, parameters)
    wait_for_training(world, tmp_path)
    with world.frozen("server"):
        wait_for_stage(world, tmp_path)
    status, said = finish(world)
    assert status == 0, said
    assert latest(world).state_name == "Completed"
    assert set(ended_stages(tmp_path)) == {"prepare", "sft", "preference", "evaluate"}
    assert losses(ended_stages(tmp_path)["preference"].parent) == undisturbed


def test_a_server_that_is_killed_and_one_that_answers_with_errors(
    world: World, parameters: dict[str, Any], undisturbed: list[float], tmp_path: Path
) -> None:
    """The stage at hand ends, then the run. The same call finds what was done, even where the new server
    takes neither logs nor artifacts nor events."""
    begin(world, tmp_path, parameters, **IMPATIENT)
    wait_for_training(world, tmp_path)
    world.kill("server")
    status, said = finish(world)
    assert status == 1
    assert "stage preference: Prefect's server does not answer" in said
    done = ended_stages(tmp_path)
    assert set(done) == {"prepare", "sft", "preference"}
    assert losses(done["preference"].parent) == undisturbed
    times = {stage: path.stat().st_mtime_ns for stage, path in done.items()}

    world.start_server()
    with faulty_proxy(world.port, {"/logs": 503, "/artifacts": 500, "/events": 500}) as port:
        begin(world, tmp_path, parameters, **{**IMPATIENT, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
        status, said = finish(world)
    assert status == 0, said
    assert latest(world).state_name == "Completed"
    assert "evaluate" in ended_stages(tmp_path)
    assert {stage: ended_stages(tmp_path)[stage].stat().st_mtime_ns for stage in times} == times
    assert re.findall(r"'(\w+)-\w+' - Finished in state Cached", said) == ["prepare", "sft", "preference"]
    for what in ("progress", "show_metrics", "show_figure"):
        assert re.search(rf"WARNING .* not shown in Prefect's UI: {what} \(", said), said


def test_no_server_at_the_start(world: World, parameters: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    begin(world, tmp_path / "store", parameters, PREFECT_API_URL=address)
    status, said = finish(world)
    assert status == 1
    assert f"Failed to reach API at {address}" in said.splitlines()[-1]
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def worker(world: World) -> None:
    """A worker, and the deployment that it runs."""
    place = {"prefect.deployments.steps.set_working_directory": {"directory": str(world.work)}}
    with world.client() as client:
        bootstrap._make_pool(client)
        client.create_deployment(
            client.create_flow_from_name("dynamicpo"),
            "ml-100k",
            entrypoint="recbole_dynamicpo.flows.pipeline.dynamicpo",
            work_pool_name=bootstrap.POOL,
            pull_steps=[place],
        )
    world.start_worker()


@pytest.fixture(scope="module")
def cancelled(world: World, worker: None, parameters: dict[str, Any]) -> Path:
    """The store of a run that was cancelled in the preference stage."""
    store = world.home / "cancelled"
    flow_run = world.submit(parameters, RECBOLE_DYNAMICPO_STORE=str(store))
    wait_for_training(world, store)
    process = psutil.Process(int(world.run(flow_run).infrastructure_pid or 0))
    process.suspend()  # or the stage would be over before the signal comes
    steps = train_steps(store)
    assert world.call("prefect", "flow-run", "cancel", str(flow_run)).returncode == 0
    world.wait(lambda: has_pending_sigterm(process.pid), "the worker asks the process to end")
    process.resume()
    # Prefect calls it crashed in between, as the process ends in a way of its own: after the step at hand.
    world.wait(lambda: world.run(flow_run).state_name == "Cancelled", "the run is cancelled")
    assert not process.is_running()
    assert steps <= train_steps(store) <= steps + 1
    return store


def has_pending_sigterm(pid: int) -> bool:
    """Return whether a process has been sent SIGTERM and has not taken notice yet."""
    (mask,) = re.findall(r"ShdPnd:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_cancelled_run_goes_on_while_the_server_restarts(
    world: World, cancelled: Path, parameters: dict[str, Any], undisturbed: list[float]
) -> None:
    """A new submission takes the checkpoint up; worker and run outlive a server that dies and comes back."""
    assert set(ended_stages(cancelled)) == {"prepare", "sft"}
    before = train_steps(cancelled)
    flow_run = world.submit(parameters, RECBOLE_DYNAMICPO_STORE=str(cancelled))
    world.wait(lambda: train_steps(cancelled) > before, "the stage goes on", every=0.01)
    world.kill("server")
    wait_for_stage(world, cancelled)
    world.start_server()
    ended = world.ended(flow_run)
    if ended.state_name != "Completed":
        ended = retried(world, flow_run)
    assert ended.state_name == "Completed", ended.state
    assert "evaluate" in ended_stages(cancelled)
    folder = ended_stages(cancelled)["preference"].parent
    assert losses(folder) == undisturbed
    begun = [e for e in Journal(folder / "metrics.jsonl").entries() if e.get("status") == "running"]
    assert len(begun) == 2


def retried(world: World, flow_run: UUID) -> FlowRun:
    """Return the run at the end of another attempt."""
    done = world.call("prefect", "flow-run", "retry", str(flow_run))
    assert done.returncode == 0, done.stdout + done.stderr
    world.wait(lambda: world.run(flow_run).run_count == 2, "the second attempt")
    return world.ended(flow_run)
