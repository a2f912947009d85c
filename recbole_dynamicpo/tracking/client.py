"""MLflow's client: bounded waiting, experiments, runs and what they already hold."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..serving.mlflow_store import expect_any_type
from ..serving.mlflow_uri import local_database, without_password
from ..storage import locked
from .live import THREAD
from .points import Point
from .view import KEY_TAG, STAGE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"  # beside a local database
# Seconds to wait for another process that copies the same run, or that makes the same database.
LOCK_WITHIN = 60.0
# MLflow's own defaults let one call to a dead server take minutes. Our thread tries again anyway.
HTTP_BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
NO_BARS = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # for files that are small


def open_experiment(client: Any, uri: str, dataset: str) -> str:
    """Return the id of the experiment of a data set, which is made if it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"recbole-dynamicpo/{dataset}"
    found = client.get_experiment_by_name(name)
    if found is None:
        database = local_database(uri)
        # A server knows itself where its artifacts go.
        place = (database.resolve().parent / ARTIFACTS).as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except Exception:  # another process may have been faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def page(uri: str, experiment: str, run_id: str) -> str:
    """Return where to look at a run: its page on a server, else the store."""
    shown = without_password(uri)
    if not uri.startswith(("http://", "https://")):
        return shown
    # Without the last part, MLflow's pages open with prompts and judges in place of training runs.
    return f"{shown.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


@dataclass
class Shown:
    """What MLflow has of one run, kept in step with what is sent."""

    run_id: str
    status: str
    end: int | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    has_data: bool

    @classmethod
    def of(cls, run: Run) -> Shown:
        """Return what a run has."""
        return cls(
            run_id=run.info.run_id,
            status=run.info.status,
            end=run.info.end_time,
            tags=dict(run.data.tags),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            has_data=bool(run.inputs and run.inputs.dataset_inputs),
        )


def connect(uri: str) -> MlflowClient:
    """Return a client of its own; a new local database is made by one process at a time."""
    for name, value in {**HTTP_BOUNDS, **NO_BARS}.items():
        os.environ.setdefault(name, value)
    expect_any_type()
    logging.getLogger("urllib3.connectionpool").addFilter(_is_news)
    from mlflow import MlflowClient

    if not logger.isEnabledFor(logging.INFO):  # importing MLflow sets its own level
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    database = local_database(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database, wait=True, within=LOCK_WITHIN):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # makes the tables
    return client


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message is to be shown: each attempt of the thread to reach a dead server is none."""
    return record.threadName != THREAD or record.levelno > logging.WARNING


def find_runs(client: MlflowClient, experiment: str, key: str) -> dict[str, Shown]:
    """Return stage -> run of a record, whoever made it."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", order_by=["start_time DESC"])
    return {run.data.tags[STAGE_TAG]: Shown.of(run) for run in found if STAGE_TAG in run.data.tags}


def last_step(client: MlflowClient, run: Shown, points: list[Point]) -> int:
    """Return the last step of a kind that a run has, -1 if none. Points are sent whole, so one name tells."""
    everywhere = set.intersection(*(set(point.values) for point in points))
    names = sorted(everywhere & set(run.metrics)) or sorted(set(points[-1].values) & set(run.metrics))
    if not names:
        return -1
    return max((metric.step for metric in client.get_metric_history(run.run_id, names[0])), default=-1)
