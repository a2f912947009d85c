"""The deployment on a real server with a real worker: run, run again, refuse, kill and go on."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed

from recbole_dynamicpo.tracking.journal import Journal

from .world import ROOT, World, losses, train_steps

pytestmark = pytest.mark.servers
STAGES = ("prepare", "sft", "preference", "evaluate")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Server, work pool and deployments, made by the commands of the README, and a worker."""
    world = World(tmp_path_factory.mktemp("prefect"))
    try:
        world.start_server()
        made = world.call("recbole-dynamicpo", "bootstrap", "--gpu-runs", "2", "--free-gb", "0.1")
        assert made.returncode == 0, made.stderr
        assert "warning" not in made.stdout
        deployed = world.call(
            "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml")
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        world.start_worker()
        yield world
    finally:
        world.stop()


@pytest.fixture(scope="module")
def parameters(tiny_backbone: Path) -> dict[str, Any]:
    """A run of seconds on ml-100k."""
    overrides = {
        **{"num_candidates": 6, "max_history": 3, "dtype": "float32", "lora_layers": 0, "valid_rows": 4},
        **{"train_batch_size": 1, "checkpoint_every": 1, "learning_rate": 0.01, "sft_learning_rate": 0.01},
    }
    return {
        "backbone": str(tiny_backbone),
        "num_negatives": 4,
        "sft_rows": 16,
        "preference_rows": 40,
        "eval_rows": 8,
        "overrides": overrides,
    }


@pytest.fixture(scope="module")
def first(world: World, parameters: dict[str, Any]) -> UUID:
    """The id of a run that was made by the command line, and has ended."""
    given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
    done = world.call("prefect", "deployment", "run", "dynamicpo/ml-100k", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    assert found is not None, done.stdout
    flow_run = UUID(found[1])
    run = world.ended(flow_run)
    assert run.state_name == "Completed", run.state
    return flow_run


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path that a payload would make."""
    return tmp_path_factory.mktemp("evil") / "canary"


@pytest.fixture(scope="module")
def submitted(world: World, first: UUID, parameters: dict[str, Any], canary: Path) -> dict[str, UUID]:
    """Runs after the first that do not disturb one another: at once, as most of their time is imports."""
    other = {**parameters["overrides"], "beta": 0.5, "register": False}
    return {
        "again": world.submit(parameters),
        "other": world.submit({**parameters, "overrides": other}),
        "nowhere": world.submit({**parameters, "dataset": "nonesuch"}),
        "evil": world.submit({**parameters, "backbone": f"__import__('os').system('touch {canary}')"}),
    }


def run_folder(world: World) -> Path:
    """Return the folder of the first run, the one with the default beta that registers its model."""
    (folder,) = [
        path.parent
        for path in (world.work / "saved" / "runs").glob("*/record.json")
        if (params := json.loads(path.read_text())["params"])["beta"] == 1.0
        and (params["num_negatives"], params["reference_negatives"]) == (4, 0)  # no cell of the study
    ]
    return folder


def artifacts(world: World, flow_run: UUID) -> dict[str, Any]:
    """Return key -> data of the artifacts of a run."""
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with world.client() as client:
        return {found.key or "": found.data for found in client.read_artifacts(artifact_filter=mine)}


def nested_runs(world: World, parent: str) -> list[str]:
    """Return the names of the finished runs nested in MLflow's finished runs of a name."""
    query = """
        select child.name from runs child join tags on tags.run_uuid = child.run_uuid
        join runs parent on parent.run_uuid = tags.value
        where tags.key = 'mlflow.parentRunId' and parent.name = ?
        and child.status = 'FINISHED' and parent.status = 'FINISHED'
    """
    with sqlite3.connect(world.work / "mlflow.db") as database:
        return [name for (name,) in database.execute(query, (parent,)).fetchall()]


def test_a_deployment_runs_and_mlflow_has_all_of_it(world: World, first: UUID) -> None:
    assert world.states(first) == dict.fromkeys([*STAGES, "register"], "Completed")
    assert sorted(nested_runs(world, run_folder(world).name)) == sorted(STAGES)
    with sqlite3.connect(world.work / "mlflow.db") as database:
        aliases = database.execute("select name, alias from registered_model_aliases").fetchall()
    assert ("dynamicpo-ml-100k", "candidate") in aliases


def test_the_ui_shows_progress_metrics_links_figure_and_logs(world: World, first: UUID) -> None:
    shown = artifacts(world, first)
    with world.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[first])), limit=200)
    assert [shown[f"progress-ml-100k-{stage}"] for stage in STAGES] == [100] * 4
    lines = json.loads(shown["metrics-ml-100k"])
    assert [line["rows"] for line in lines] == [8] * 9
    assert all(re.fullmatch(r"0\.\d{4} to [01]\.\d{4}", line["95 % interval"]) for line in lines)
    assert "/runs/" in shown["mlflow-run-ml-100k"]
    assert "/models/dynamicpo-ml-100k/versions/1" in shown["model-ml-100k"]
    assert shown["hit-rate-ml-100k"].startswith("data:image/png;base64,iVBOR")
    ours = [record for record in logs if record.name.startswith("recbole_dynamicpo.")]
    assert any("stage preference: 40 of" in record.message for record in ours)


def test_a_second_run_finds_all_stages_done(world: World, submitted: dict[str, UUID]) -> None:
    again = submitted["again"]
    assert world.ended(again).state_name == "Completed"
    assert world.states(again) == {**dict.fromkeys(STAGES, "Cached"), "register": "Completed"}
    assert sorted(nested_runs(world, run_folder(world).name)) == sorted(STAGES), "the same runs, no others"
    with sqlite3.connect(world.work / "mlflow.db") as database:
        assert database.execute("select version from model_versions").fetchall() == [(1,)]


def test_a_study_compares_its_cells(world: World, first: UUID, parameters: dict[str, Any]) -> None:
    """Its first cell is the first run, and its second shares that one's SFT stage."""
    grid = {"num_negatives": [2, 4], "objective": ["dmpo"], "dynamic": [True], "seed": [2020]}
    ended = world.ended(world.submit({**parameters, **grid}, "study/grid"))
    assert ended.state_name == "Completed", ended.state
    shown = artifacts(world, ended.id)
    assert [(row["num_negatives"], row["rows"]) for row in json.loads(shown["study-ml-100k"])] == [
        (4, 8),
        (2, 8),
    ]
    assert shown["study-hit-rate-ml-100k"].startswith("data:image/png;base64,iVBOR")
    assert len(list((world.work / "saved" / "stages").glob("sft-*"))) == 1
    with sqlite3.connect(world.work / "mlflow.db") as database:
        kept = database.execute("select artifact_uri from runs where name = 'study-ml-100k'").fetchall()
        assert database.execute("select version from model_versions").fetchall() == [(1,)]
    ((place,),) = kept
    assert sorted(path.name for path in Path(place.removeprefix("file://")).iterdir()) == [
        "figure.png",
        "study.json",
    ]


def test_another_beta_repeats_what_depends_on_it(world: World, submitted: dict[str, UUID]) -> None:
    other = submitted["other"]
    assert world.ended(other).state_name == "Completed"
    done = {"prepare": "Cached", "sft": "Cached", "preference": "Completed", "evaluate": "Completed"}
    assert world.states(other) == {**done, "register": "Completed"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_negatives": 0}, "'num_negatives'.*minimum of 1"),
        ({"num_negatives": "4"}, "'num_negatives'"),
        ({"model": "BPR"}, "'model'.*DynamicPO"),
        ({"objective": "dpo"}, "'objective'.*'dmpo'"),
        ({"dataset": "../../etc"}, "'dataset'"),
        ({"seed": -1}, "'seed'.*minimum of 0"),
        ({"overrides": {"betta": 1}}, "'overrides'.*'betta'"),
        ({"overrides": {"beta": 0}}, "'overrides.beta'.*minimum of 0"),
        ({"overrides": {"checkpoint_dir": "/tmp"}}, "'overrides'.*'checkpoint_dir'"),
    ],
)
def test_a_wrong_parameter_is_refused_when_it_is_submitted(
    world: World, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(PrefectHTTPStatusError) as caught:
        world.submit(wrong)
    assert re.search(named, caught.value.response.json()["detail"])


def test_what_is_not_there_fails_before_the_first_stage(
    world: World, submitted: dict[str, UUID], canary: Path
) -> None:
    for name, named in (("nowhere", "nonesuch"), ("evil", "__import__")):
        run = world.ended(submitted[name])
        assert run.state is not None
        assert run.state_name == "Failed"
        assert named in (run.state.message or "")
        assert world.tasks(run.id) == {}
    assert not canary.exists()


def test_a_run_killed_with_its_worker_goes_on(world: World, first: UUID, parameters: dict[str, Any]) -> None:
    """What the automation of ``bootstrap`` does after 90 s of silence, the test does at once."""
    store = world.home / "killed"
    overrides = {**parameters["overrides"], "register": False}
    flow_run = world.submit({**parameters, "overrides": overrides}, RECBOLE_DYNAMICPO_STORE=str(store))
    world.wait(lambda: train_steps(store) >= 5, "five steps of the preference stage", every=0.02)
    world.kill("worker", signal.SIGKILL)
    done_before = train_steps(store)
    assert 5 <= done_before < 40
    assert world.run(flow_run).state_name == "Running"
    with world.client() as client:
        client.set_flow_run_state(flow_run, Crashed(message="no heartbeat"), force=True)
    retried = world.call("prefect", "flow-run", "retry", str(flow_run))
    assert retried.returncode == 0, retried.stdout + retried.stderr
    world.start_worker()
    world.wait(lambda: world.run(flow_run).run_count == 2, "the second attempt")
    run = world.ended(flow_run)
    assert run.state_name == "Completed", run.state
    assert world.states(flow_run)["sft"] == "Cached"
    (sft,) = (store / "stages").glob("sft-*")
    begun = [e for e in Journal(sft / "metrics.jsonl").entries() if e.get("status") == "running"]
    assert len(begun) == 1
    (preference,) = (store / "stages").glob("preference-*")
    undisturbed = json.loads((run_folder(world) / "record.json").read_text())["stages"]["preference"]
    assert losses(preference) == losses(Path(undisturbed))
