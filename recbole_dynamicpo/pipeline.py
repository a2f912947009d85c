"""The four stages as functions: prepare, sft, preference, evaluate.

They do what ``run_recbole`` does in one go, one stage at a time, each result kept in a folder named by
what decides it. Whoever orchestrates them exchanges the small ``StageResult`` records only; this
module knows no orchestrator.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .data.download import HUB_DATA_SETS
from .data.prepare import prepare as write_data
from .errors import CheckpointError
from .evaluation.report import read_report
from .host.config import PlainConfig
from .host.run import load
from .job import Job, decisive, stage_config, stage_folders
from .language_model.backbone import backbone_fingerprint, resolve_backbone, resolve_dtype
from .names import STAGES
from .settings import read_settings
from .storage import locked, write_json
from .tracking.journal import Journal
from .tracking.record import (
    AUDIT_FILE,
    JOURNAL_FILE,
    PROBE_FILE,
    RECORD_FILE,
    describe,
    read_record,
    run_tags,
    write_record,
)
from .tracking.sync import NullTracker, Tracker
from .tracking.system import peak_memory_mb
from .training.data_files import data_digest, require_data
from .training.dataset import DynamicPODataset
from .training.recording import data_audit, probe_rows
from .training.stage_results import StageResult, finish, finished, stage_folder, stage_key
from .training.trainer import DynamicPOTrainer, OnProgress

logger = logging.getLogger(__name__)


def prepare(job: Job) -> StageResult:
    """Make data and backbone ready, and say what they are.

    Outputs: ``data``, the digest of the data files; ``rows`` of each split; ``backbone``, the hash of its
    weights; ``dtype`` of its weights, chosen once for all stages.

    Raises:
        DynamicPOError: see the message.
    """
    _make_data(job)
    config = job.settings_of()
    settings = read_settings(config)
    decided_by = {
        "data": data_digest(config),
        "backbone": backbone_fingerprint(resolve_backbone(settings.backbone), settings.backbone),
        "settings": decisive(config, "prepare"),
    }
    key = stage_key("prepare", before="", decided_by=decided_by)
    folder = stage_folder(Path(job.store), "prepare", key)
    with locked(folder, wait=True):
        result = finished(folder, key)
        if result is None:
            dtype = str(resolve_dtype(settings.dtype, config["device"])).removeprefix("torch.")
            outputs = {"data": decided_by["data"], "backbone": decided_by["backbone"], "dtype": dtype}
            result = _describe_data(config, StageResult("prepare", key, str(folder), outputs))
        return result


def _make_data(job: Job) -> None:
    """Write the data set's files where they are missing and can be made."""
    config = job.settings_of()
    settings, folder = read_settings(config), Path(config["data_path"])
    if not folder.is_dir() and (settings.data_source or job.dataset in HUB_DATA_SETS):
        write_data(job.dataset, settings.data_source or "hub", folder.parent, seed=settings.seed)
    require_data(config)


def _describe_data(config: PlainConfig, result: StageResult) -> StageResult:
    """Read the data once, to see that they can be used, and write down what is in them."""
    started = time.perf_counter()
    folder = Path(result.folder)
    journal = Journal(folder / JOURNAL_FILE)
    journal.write("prepare", 0, "status", {"status": "running"})
    data = DynamicPODataset(config)
    data.build()
    rows = {phase: len(part.inter_feat) for phase, part in data.built.items()}
    write_json(folder / AUDIT_FILE, data_audit(data))
    write_json(folder / PROBE_FILE, probe_rows(data))
    spent = {"seconds": round(time.perf_counter() - started, 3), "peak_memory_mb": peak_memory_mb()}
    journal.write("prepare", 0, "status", {"status": "finished", **spent})
    return finish(folder, replace(result, outputs={**result.outputs, "rows": rows}))


def begin(job: Job, prepared: StageResult, tags: Mapping[str, str] | None = None) -> Path:
    """Write the record of a run, with the place of every stage in it, and return its folder.

    The same job has the same folder, so that its run is gone on with wherever it is recorded.
    """
    config = job.settings_of({"dtype": prepared.outputs["dtype"]})
    folders = stage_folders(job, prepared)
    record = describe(
        config.final_config_dict,
        data={"name": job.dataset, "digest": prepared.outputs["data"], "rows": prepared.outputs["rows"]},
        tags={**run_tags(str(config["backbone"]), prepared.outputs["backbone"]), **(tags or {})},
        stages={stage: str(folder.resolve()) for stage, (_, folder) in folders.items()},
    )
    folder = Path(job.store) / "runs" / record.name
    with locked(folder, wait=True):
        if (folder / RECORD_FILE).is_file():
            record = replace(record, key=read_record(folder).key)
        write_record(folder, record)
        for name in (AUDIT_FILE, PROBE_FILE):
            shutil.copyfile(Path(prepared.folder) / name, folder / name)
    return folder


def train(
    job: Job,
    stage: str,
    prepared: StageResult,
    tracker: Tracker | None = None,
    progress: OnProgress | None = None,
) -> StageResult:
    """Run stage ``sft`` or ``preference``, from where it was interrupted, unless its result is there.

    Outputs: ``adapter``, the recommender folder; ``valid``, the best validation result. A model without a
    preference stage hands its SFT adapter on.

    Raises:
        DynamicPOError: see the message.
    """
    folders = stage_folders(job, prepared)
    key, folder = folders[stage]
    with locked(folder, wait=True):
        result = finished(folder, key)
        if result is None:
            config = stage_config(job, stage, prepared, folders)
            result = StageResult(stage, key, str(folder))
            try:
                outputs = _trained(config, folder, folders, tracker, progress)
            except CheckpointError as error:
                logger.warning("%s: not gone on with (%s); the stage is begun again", folder, error)
                shutil.rmtree(folder)
                outputs = _trained(config, folder, folders, tracker, progress)
            result = finish(folder, replace(result, outputs=outputs))
        return result


def _trained(
    config: PlainConfig,
    folder: Path,
    folders: Mapping[str, tuple[str, Path]],
    tracker: Tracker | None,
    progress: OnProgress | None,
) -> dict[str, Any]:
    """Train until the end of the stage and return its outputs."""
    loaded = load(config)
    trainer = _trainer(config, loaded.model, folder, folders, tracker, progress)
    score, found = trainer.fit(loaded.train, loaded.valid, show_progress=config["show_progress"])
    return {"adapter": str(trainer.adapters[trainer.final_stage]), "valid_score": score, "valid": found}


def evaluate(
    job: Job, prepared: StageResult, tracker: Tracker | None = None, progress: OnProgress | None = None
) -> StageResult:
    """Evaluate the final adapter, and those that it is compared with, unless the result is there.

    Outputs: ``contestants``, the lines of the report; ``test``, RecBole's metrics; ``adapter``.

    Raises:
        DynamicPOError: see the message.
    """
    folders = stage_folders(job, prepared)
    key, folder = folders["evaluate"]
    with locked(folder, wait=True):
        result = finished(folder, key)
        if result is not None:
            return result
        config = stage_config(job, "evaluate", prepared, folders)
        loaded = load(config)
        trainer = _trainer(config, loaded.model, folder, folders, tracker, progress)
        if trainer.final_stage == "preference":
            loaded.model.policy.freeze_reference()  # it was loaded with the SFT adapter
        found = trainer.evaluate(loaded.test, show_progress=config["show_progress"])
        outputs = {
            "test": {name: float(value) for name, value in found.items()},
            "contestants": read_report(folder),
            "adapter": str(trainer.adapters[trainer.final_stage]),
        }
        return finish(folder, StageResult("evaluate", key, str(folder), outputs))


def _trainer(
    config: PlainConfig,
    model: Any,
    folder: Path,
    folders: Mapping[str, tuple[str, Path]],
    tracker: Tracker | None,
    progress: OnProgress | None,
) -> DynamicPOTrainer:
    """Return a trainer that works in ``folder`` and finds the adapters where the stages leave them."""
    trainer = DynamicPOTrainer(config, model, run_folder=folder, tracker=tracker or NullTracker())
    trainer.adapters = {stage: folders[stage][1] / stage for stage in STAGES}
    if progress is not None:
        trainer.on_progress = progress
    return trainer
