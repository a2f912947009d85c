"""How the trainer writes down what it does: the record, the journal, and the tracker that copies both."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import StoppedError
from ..evaluation.report import metric_name
from ..serving.mlflow_uri import resolve_uri
from ..storage import write_json
from ..tracking.journal import Journal
from ..tracking.record import AUDIT_FILE, PROBE_FILE, RECORD_FILE, describe, run_tags, write_record
from ..tracking.registry import register, wants_registration
from ..tracking.sync import Tracker, open_tracker
from ..tracking.system import peak_memory_mb, system_metrics
from .columns import CANDIDATE_IDS, ROW_ID
from .data_files import data_digest

logger = logging.getLogger(__name__)

# Seconds between two readings of processor and memory.
SYSTEM_EVERY = 10.0
# Rows that a registered model has to rank as the run's own adapter does.
PROBE_ROWS = 20


def data_audit(dataset: Any) -> dict[str, Any]:
    """Return what a reader of figures on a built data set has to know of it."""
    titles = dataset.catalogue.titles
    return {
        "items": len(titles),
        "distinct_titles": len(set(titles)),
        "rows_used_of": {phase: list(pair) for phase, pair in dataset.subsampled().items()},
        "notes": list(dataset.notes),
    }


def probe_rows(dataset: Any) -> list[dict[str, list[str]]]:
    """Return some validation rows, as titles, on which a registered copy of the model is tried."""
    part = dataset.built["valid"].inter_feat
    rows = part[: min(PROBE_ROWS, len(part[ROW_ID]))]
    prompts = dataset.prompt_rows(rows, rows[CANDIDATE_IDS].numpy())
    return [{"history": row.history, "candidates": row.candidates} for row in prompts]


class RecordingMixin:
    """Adds record, journal and tracking to ``DynamicPOTrainer``, whose attributes it expects."""

    model: Any
    settings: Any
    config: Any
    dataset: Any
    progress: Any
    run_folder: Path
    journal: Journal
    tracker: Tracker | None
    valid_data: Any
    shared_folder: bool
    _system_read = 0.0

    def _start_tracking(self) -> Tracker:
        """Write the record of a new run, with its prepare stage, and return its tracker."""
        if not (self.run_folder / RECORD_FILE).is_file():
            self._write_record()
        return open_tracker(self.run_folder, self.settings.mlflow_tracking_uri)

    def _write_record(self) -> None:
        backbone = self.model.policy.backbone
        rows = {phase: len(part.inter_feat) for phase, part in self.dataset.built.items()}
        values = {**self.config.final_config_dict, "dtype": str(backbone.dtype).removeprefix("torch.")}
        record = describe(
            values,
            data={"name": self.config["dataset"], "digest": data_digest(self.config), "rows": rows},
            tags=run_tags(self.settings.backbone, backbone.fingerprint),
            stages={},
        )
        write_record(self.run_folder, record)
        write_json(self.run_folder / AUDIT_FILE, data_audit(self.dataset))
        write_json(self.run_folder / PROBE_FILE, probe_rows(self.dataset))
        spent = time.time() - self.dataset.started
        self.journal.write("prepare", 0, "status", {"status": "running"})
        self.journal.write("prepare", 0, "status", self._finished(spent))

    @contextmanager
    def _recorded(self, stage: str) -> Iterator[None]:
        """Write into the journal that a stage runs, and how it ended."""
        started = time.perf_counter()
        self._note(stage, "status", {"status": "running"})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # a full disk must not hide why the stage failed
                self._note(stage, "status", {"status": "failed"})
            self._close_tracker("FAILED")
            if stage == "evaluate" and isinstance(error, StoppedError):
                raise StoppedError(
                    f"{error} in the evaluation; go on with --resume={self.run_folder} and the same settings"
                ) from error
            raise
        self._note(stage, "status", self._finished(time.perf_counter() - started))

    def _finished(self, seconds: float) -> dict[str, Any]:
        return {"status": "finished", "seconds": round(seconds, 3), "peak_memory_mb": peak_memory_mb()}

    def _note(self, stage: str, kind: str, values: Mapping[str, Any]) -> None:
        """Write one entry and tell the tracker; now and then add the machine's load."""
        step = self.progress.step if stage == self.progress.stage else 0
        named = {metric_name(name): value for name, value in values.items()} if kind == "valid" else values
        self.journal.write(stage, step, kind, dict(named))
        if kind == "train" and time.monotonic() - self._system_read > SYSTEM_EVERY:
            self._system_read = time.monotonic()
            self.journal.write(stage, step, "system", system_metrics())
        if self.tracker is not None:
            self.tracker.changed()

    def _publish(self) -> None:
        """Let the record be complete and the adapter registered, where the run is its own and recorded."""
        self._close_tracker("FINISHED")
        uri = resolve_uri(self.settings.mlflow_tracking_uri)
        if self.tracker is None or self.shared_folder or uri is None:
            return
        if wants_registration(self.run_folder):
            register(self.run_folder, uri)

    def _close_tracker(self, status: str) -> None:
        if self.tracker is not None:
            self.tracker.close(status)
