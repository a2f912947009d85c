"""MLflow's copy of a run: the run folder is the truth, and this makes MLflow agree with it.

A copy can be made at any time, of a growing run or of an old one, and again: it sends what is missing.
Nothing of MLflow's global state (tracking URI, active run) is touched.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DynamicPOError, TrackingError
from ..serving.mlflow_uri import resolve_uri, sync_command, without_password
from ..storage import load_json, locked, write_json
from .client import LOCK_WITHIN, Shown, connect, find_runs, last_step, open_experiment, page
from .live import LiveTracker, NullTracker, Tracker, reason
from .points import Point, batches, unsent
from .record import Record, read_record
from .view import PARENT, Part, Upload, read_parts

# Of a run: where it was sent, and which artifacts, so that none is sent twice. MLflow tells the rest.
SENT_FILE = "tracking.json"

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

LOCK = "tracking"  # what is locked: the copying of a run, not its folder, which the trainer holds
# MLflow's limits of one request, and of a data set's digest.
PARAMS_AT_ONCE, DIGEST_LENGTH = 100, 36


def open_tracker(folder: Path, uri: str | None) -> Tracker:
    """Return the tracker of the run in ``folder``.

    Args:
        folder: with ``record.json``.
        uri: setting ``mlflow_tracking_uri``.
    """
    place = resolve_uri(uri)
    if place is None:
        return NullTracker()
    mirror = Mirror(folder.resolve(), place)
    where = f"MLflow at {without_password(place)}"
    return LiveTracker(mirror.send, where=where, remedy=sync_command(folder, place))


def sync(folder: Path, uri: str) -> str:
    """Make MLflow agree with the run in ``folder`` and return the id of its parent run.

    Raises:
        CheckpointError: no run there.
        TrackingError: MLflow cannot be reached or refuses.
    """
    mirror = Mirror(folder.resolve(), uri)
    try:
        mirror.send()
    except DynamicPOError:
        raise
    except Exception as error:  # MLflow lets through errors of requests, sqlalchemy and the system
        raise TrackingError(f"{folder}: not sent to {without_password(uri)} ({reason(error)})") from error
    if PARENT not in mirror.runs:
        raise TrackingError(f"{folder}: the journal of this run is empty, there is nothing to send")
    return mirror.runs[PARENT].run_id


class Mirror:
    """The copy of one run folder in one MLflow store.

    Args:
        folder: of the run, absolute.
        uri: of the store.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.runs: dict[str, Shown] = {}
        self._marks: dict[tuple[str, str], int] = {}
        self._client: MlflowClient | None = None

    def send(self) -> None:
        """Send what MLflow does not have yet.

        Raises:
            Exception: whatever MLflow, its store or the file system raise; the next call starts anew.
        """
        with locked(self.folder / LOCK, wait=True, within=LOCK_WITHIN):
            try:
                self._send(read_record(self.folder))
            except BaseException:
                # Whether a request that failed was carried out, only MLflow can tell.
                self._client = None
                raise

    def _send(self, record: Record) -> None:
        parts = read_parts(self.folder, record)
        if not parts:
            return
        if self._client is None:
            self._client = connect(self.uri)
            self.experiment = open_experiment(self._client, self.uri, record.dataset)
            self.runs = find_runs(self._client, self.experiment, record.key)
            self._marks = {}
        for part in parts:
            if part.stage not in self.runs:
                self.runs[part.stage] = self._create(part)
                self._remember(self._sent())
                if part.stage == PARENT:
                    place = page(self.uri, self.experiment, self.runs[PARENT].run_id)
                    logger.info("MLflow shows this run: %s", place)
        for part in parts:
            self._describe(part)
            self._measure(part)
        for part in parts:  # last, so that no large file holds up metrics
            self._keep(part)
            self._end(part)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, once there is one."""
        assert self._client is not None
        return self._client

    def _create(self, part: Part) -> Shown:
        tags = dict(part.tags)
        if part.stage != PARENT:
            tags["mlflow.parentRunId"] = self.runs[PARENT].run_id
        run = self.client.create_run(self.experiment, start_time=part.start, tags=tags, run_name=part.name)
        return Shown.of(run)

    def _describe(self, part: Part) -> None:
        """Send tags that changed, parameters that are new, and the data set."""
        from mlflow.entities import Param, RunTag

        run = self.runs[part.stage]
        tags = [RunTag(key, value) for key, value in part.tags.items() if run.tags.get(key) != value]
        if tags:
            self.client.log_batch(run.run_id, tags=tags, synchronous=True)
            run.tags.update(part.tags)
        # MLflow refuses another value of a parameter; what a resumed run changed, its record tells.
        params = [Param(key, value) for key, value in part.params.items() if key not in run.params]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            batch = params[start : start + PARAMS_AT_ONCE]
            self.client.log_batch(run.run_id, params=batch, synchronous=True)
        run.params.update(part.params)
        if part.data is not None and not run.has_data:
            self.client.log_inputs(run.run_id, datasets=[dataset_input(part.data)])
            run.has_data = True

    def _measure(self, part: Part) -> None:
        """Send the points behind the last step that MLflow has of each kind."""
        run = self.runs[part.stage]
        for kind in dict.fromkeys(point.kind for point in part.points):
            points = [point for point in part.points if point.kind == kind]
            if (part.stage, kind) not in self._marks:
                self._marks[part.stage, kind] = last_step(self.client, run, points)
            for batch in batches(unsent(points, self._marks[part.stage, kind], run.metrics)):
                self._log(run, batch)
                self._marks[part.stage, kind] = batch[-1].step

    def _log(self, run: Shown, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, point.time, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        self.client.log_batch(run.run_id, metrics=metrics, synchronous=True)
        for point in points:
            run.metrics.update(point.values)

    def _keep(self, part: Part) -> None:
        """Upload what is new or has changed since it was uploaded."""
        run_id = self.runs[part.stage].run_id
        sent = self._sent()
        for upload in part.uploads:
            place = f"{run_id}/{upload.name}"
            if sent.get(place) != upload.digest:
                self._upload(run_id, upload)
                sent[place] = upload.digest
                self._remember(sent)

    def _remember(self, sent: Mapping[str, str]) -> None:
        runs = {stage: run.run_id for stage, run in self.runs.items()}
        known = {"uri": without_password(self.uri), "runs": runs, "artifacts": sent}
        write_json(self.folder / SENT_FILE, known)

    def _sent(self) -> dict[str, str]:
        """Return digests by run id and name; a lost or damaged file means that all is sent once more."""
        sent = noted(self.folder).get("artifacts")
        return {str(key): str(value) for key, value in sent.items()} if isinstance(sent, dict) else {}

    def _upload(self, run_id: str, upload: Upload) -> None:
        with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
            upload.write(Path(work))
            self.client.log_artifacts(run_id, work)

    def _end(self, part: Part) -> None:
        """Give the run the status and the end that the journal tells."""
        run = self.runs[part.stage]
        if (run.status, part.end and run.end) == (part.status, part.end):
            return
        if part.end is None:
            self.client.update_run(run.run_id, status=part.status)
        else:
            self.client.set_terminated(run.run_id, status=part.status, end_time=part.end)
        run.status, run.end = part.status, part.end


def dataset_input(data: Mapping[str, Any]) -> DatasetInput:
    """Return a data set as MLflow shows it: name, digest and rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = str(data["name"]), str(data["digest"])
    dataset = Dataset(
        name=name,
        digest=digest[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"files": [f"{name}.inter", f"{name}.item"]}),
        profile=json.dumps({"rows": data.get("rows"), "sha256": digest}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


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
