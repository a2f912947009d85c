"""Where runs are recorded: the URI of the store, its local files, and the experiment of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import TrackingError
from .record import read_record
from .serving.mlflow_uri import local_database, resolve_uri, without_password
from .storage import load_json

# Of a run: where it was sent, and which artifacts, so that none is sent twice. MLflow tells the rest.
SENT_FILE = "tracking.json"
ARTIFACTS = "mlartifacts"  # beside a local database
# Seconds to wait for another process that copies the same run, or that makes the same database.
LOCK_WITHIN = 60.0


def recorded_at(folder: Path) -> str:
    """Return where the run in ``folder`` is recorded, or would be by its settings.

    Raises:
        CheckpointError: no run there.
    """
    setting = read_record(folder).params.get("mlflow_tracking_uri")
    explicit = setting if isinstance(setting, str) and setting != "auto" else None
    known = explicit or os.environ.get("MLFLOW_TRACKING_URI") or noted(folder).get("uri")
    return str(known or resolve_uri("auto"))


def noted(folder: Path) -> dict[str, Any]:
    """Return what was noted of earlier copies; a lost or damaged note costs another upload."""
    try:
        known = load_json(folder / SENT_FILE)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


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


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file inside the block.

    Raises:
        TrackingError: another process holds it for too long.
    """
    try:
        with FileLock(lock, timeout=LOCK_WITHIN):
            yield
    except Timeout as error:
        raise TrackingError(f"{lock}: held by another process for {LOCK_WITHIN:.0f} s") from error
