"""The stages as Prefect tasks, of a few lines each.

A stage that is done already ends as ``Cached``: the package keeps every result in a folder named by
what decides it and checks its files' hashes before it is used again. Prefect's own cache is not used, as
it would know neither of these.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from httpx import HTTPError, TimeoutException
from prefect import task
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff

from recbole_dynamicpo.errors import DynamicPOError, LockedError, TrackingError

from . import artifacts

logger = logging.getLogger("recbole_dynamicpo.flows")

# Training asks for one place of this tag's concurrency limit, which ``bootstrap`` makes.
GPU = "gpu"
# Seconds after which a stage is given up; longer than any of the shipped recipes is meant to take.
DATA_TIMEOUT, TRAIN_TIMEOUT, EVALUATE_TIMEOUT, RECORD_TIMEOUT = 6 * 3600, 72 * 3600, 24 * 3600, 3600
# Nothing is kept in Prefect's storage but errors, and these not as pickles.
FLOW: dict[str, Any] = {"persist_result": False, "result_serializer": "json"}
# Trouble with disks, networks and MLflow may pass; three tries more, 10, 20 and 40 s apart.
RETRIES, FIRST_DELAY = 3, 10
# Errors of the system that the next try meets again.
_LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)
# Known by name, so that flows load quickly.
_PASSING_NAMES = {"MlflowException", "HTTPError", "TransportError", "RequestException"}


def may_pass(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Say whether another try may help: trouble outside of us, never wrong settings, data or numbers."""
    error: Any = state.data
    if isinstance(error, LockedError | TrackingError):
        return True
    if isinstance(error, DynamicPOError):
        error = error.__cause__  # such as a connection that broke in a download
    if isinstance(error, OSError):
        timed_out = type(error).__name__ == "TaskRunTimeoutError"
        return not timed_out and not isinstance(error, _LASTING)
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def options(seconds: int) -> dict[str, Any]:
    """Return the options of a task that may take so long."""
    return {
        "timeout_seconds": seconds,
        "retries": RETRIES,
        "retry_delay_seconds": exponential_backoff(FIRST_DELAY),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": may_pass,
        **FLOW,
    }


@dataclass(frozen=True)
class Run:
    """What the stages of one run share.

    Attributes:
        job: what is to be run (``recbole_dynamicpo.job.Job``).
        prepared: result of the stage prepare.
        folder: with the record of the run.
        tracker: copies the folder to MLflow.
    """

    job: Any
    prepared: Any
    folder: Path
    tracker: Any


@contextmanager
def recorded(job: Any, prepared: Any) -> Iterator[Run]:
    """Write the record of a run, and copy the run to MLflow while the block lasts."""
    from recbole_dynamicpo import pipeline
    from recbole_dynamicpo.tracking.sync import open_tracker

    folder = pipeline.begin(job, prepared, _tags())
    tracker = open_tracker(folder, mlflow_setting(prepared))
    tracker.changed()
    try:
        yield Run(job, prepared, folder, tracker)
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close("FINISHED")


def mlflow_setting(prepared: Any) -> str | None:
    """Return the setting ``mlflow_tracking_uri`` of the job that was prepared."""
    uri: str | None = prepared.outputs["params"]["mlflow_tracking_uri"]
    return uri


def _tags() -> dict[str, str]:
    """Return who started the run, for its record."""
    found = {
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_name": flow_run.name,
        "prefect.flow_name": flow_run.flow_name,
        "prefect.deployment_id": deployment.id,
    }
    return {name: str(value) for name, value in found.items() if value}


def _ended(result: Any) -> State[dict[str, Any]]:
    """Return the final state of a stage's task: ``Cached`` where the package had the result already."""
    return Completed(name="Cached" if result.cached else "Completed", data=asdict(result))


def result_of(stage: Any, *args: Any) -> dict[str, Any]:
    """Run the task of a stage and return the dictionary of its ``StageResult``; raises what it raises.

    A stage that runs when Prefect's server dies ends all the same, but then Prefect's engine fails to report
    it, after a minute of trying. If the server is back by then, the stage is found to be done.

    Raises:
        httpx.HTTPError: Prefect's server does not answer.
    """
    try:
        state: State[dict[str, Any]] = stage(*args, return_state=True)
    except HTTPError as error:  # of the engine; a stage's own errors are in its state
        logger.warning(
            "stage %s: Prefect's server does not answer (%r). What is done is safe: the same run, begun "
            "again or retried later, goes on from there", stage.name, error,
        )  # fmt: skip
        if isinstance(error, TimeoutException):  # it has been waited for long enough
            raise
        state = stage(*args, return_state=True)
    found: dict[str, Any] = state.result()
    return found


@task(name="prepare", **options(DATA_TIMEOUT))
def prepare_task(job: Any) -> State[dict[str, Any]]:
    """Make data and backbone ready."""
    from recbole_dynamicpo import pipeline

    with artifacts.progress("prepare", job.dataset):
        result = pipeline.prepare(job)
    return _ended(result)


@task(name="sft", tags=[GPU], **options(TRAIN_TIMEOUT))
def sft_task(run: Run) -> State[dict[str, Any]]:
    """Train the SFT adapter."""
    return _train(run, "sft")


@task(name="preference", tags=[GPU], **options(TRAIN_TIMEOUT))
def preference_task(run: Run) -> State[dict[str, Any]]:
    """Train the DynamicPO adapter, or that of a plain objective."""
    return _train(run, "preference")


def _train(run: Run, stage: str) -> State[dict[str, Any]]:
    from recbole_dynamicpo import pipeline

    with artifacts.progress(stage, run.job.dataset) as report:
        result = pipeline.train(run.job, stage, run.prepared, run.tracker, report)
    run.tracker.changed()
    return _ended(result)


@task(name="evaluate", tags=[GPU], **options(EVALUATE_TIMEOUT))
def evaluate_task(run: Run) -> State[dict[str, Any]]:
    """Rank the test rows."""
    from recbole_dynamicpo import pipeline

    with artifacts.progress("evaluate", run.job.dataset) as report:
        result = pipeline.evaluate(run.job, run.prepared, run.tracker, report)
    run.tracker.changed()
    show_results(run, result.outputs["contestants"])
    return _ended(result)


def show_results(run: Run, contestants: list[dict[str, Any]]) -> None:
    """Show the metrics of a run in Prefect's UI, as a table and as the figure."""
    from recbole_dynamicpo.tracking import figures
    from recbole_dynamicpo.tracking.record import read_record

    dataset, name = run.job.dataset, run.folder.name
    artifacts.show_metrics(dataset, contestants, name)
    candidates = read_record(run.folder).params.get("num_candidates")
    random = 1 / candidates if isinstance(candidates, int) and candidates > 0 else None
    figure = figures.draw_hit_rate(contestants, random)
    artifacts.show_figure(artifacts.artifact_key("hit-rate", dataset), figure, f"HR@1 of run {name}.")


@task(name="register", **options(RECORD_TIMEOUT))
def register_task(run: Run) -> dict[str, Any]:
    """See to it that MLflow has the whole run and, if asked for, its model; link to both."""
    from recbole_dynamicpo.serving.mlflow_uri import resolve_uri
    from recbole_dynamicpo.tracking import registry
    from recbole_dynamicpo.tracking import sync as tracking

    dataset, uri = run.job.dataset, resolve_uri(mlflow_setting(run.prepared))
    if uri is None:
        return {}
    run_id = tracking.sync(run.folder, uri)
    experiment = tracking.connect(uri).get_run(run_id).info.experiment_id
    artifacts.link_run(dataset, uri, run_id, experiment)
    if not registry.wants_registration(run.folder):
        return {"mlflow_run_id": run_id}
    model = registry.register_model(run.folder, uri)
    artifacts.link_model(dataset, uri, model.name, model.version)
    return {"mlflow_run_id": run_id, "model": model.uri, "champion": model.champion}


def start(job: Any) -> Any:
    """Refuse what cannot be run; then make data and backbone ready and return the result of that stage."""
    from recbole_dynamicpo.job import check
    from recbole_dynamicpo.stage_results import StageResult

    check(job)
    return StageResult(**result_of(prepare_task, job))
