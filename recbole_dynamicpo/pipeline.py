"""The four stages as functions: prepare, sft, preference, evaluate.

They do what ``run_recbole`` does in one go, one stage at a time, each result kept in a folder named by
what decides it. Whoever orchestrates them exchanges the small ``StageResult`` records only; this
module knows no orchestrator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .data.download import HUB_DATA_SETS
from .data.prepare import prepare as write_data
from .dataset.data_files import require_data
from .dataset.dataset import DynamicPODataset
from .errors import CheckpointError
from .evaluation.report import read_report
from .host.config import PlainConfig
from .host.run import load
from .ingredients import Ingredients
from .job import Job, place_of, stage_config
from .names import RECORDED, STAGES
from .parallel import here, is_one_of_several
from .settings import Settings, read_settings
from .stage_processes import in_processes
from .stage_results import StageResult, finish, finished, stage_folder, stage_key
from .storage import load_json, locked, set_aside, write_json
from .tracking.journal import Journal
from .tracking.live import NullTracker, Tracker
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
from .training.recording import data_audit, gather, params_of, probe_rows
from .training.trainer import DynamicPOTrainer, OnProgress

__all__ = ["begin", "evaluate", "prepare", "train"]

logger = logging.getLogger(__name__)


def prepare(job: Job) -> StageResult:
    """Make data and backbone ready, and say what they are.

    Outputs: ``rows`` of each split; ``params``, the final settings; ``ingredients``, everything that decides
    the run; ``places``, key and folder of each of its stages. All but the first belong to the job and not to
    the result that is kept.

    Raises:
        DynamicPOError: see the message.
    """
    config = job.settings_of()
    settings = read_settings(config)
    _make_data(job, config, settings)
    ingredients = gather(config, settings)
    places = {}
    for stage in RECORDED:
        key = stage_key(stage, ingredients)
        places[stage] = (key, str(stage_folder(Path(job.store), stage, key)))
    key, place = places["prepare"]
    folder = Path(place)
    with locked(folder, wait=True):
        result = finished(folder, key) or _describe_data(config, StageResult("prepare", key, place))
    params = {**params_of(config, settings), "dtype": ingredients.values["fact.dtype"]}
    of_the_job = {"params": params, "ingredients": dict(ingredients.values), "places": places}
    return replace(result, outputs={**result.outputs, **of_the_job})


def _make_data(job: Job, config: PlainConfig, settings: Settings) -> None:
    """Write the data set's files where they are missing and can be made."""
    folder = Path(config["data_path"])
    if not folder.is_dir() and (settings.data_source or job.dataset in HUB_DATA_SETS):
        write_data(job.dataset, settings.data_source or "hub", folder.parent, seed=settings.seed)
    require_data(config)


def _describe_data(config: PlainConfig, result: StageResult) -> StageResult:
    """Read the data once, to see that they can be used, and write down what is in them."""
    folder = Path(result.folder)
    with Journal(folder / JOURNAL_FILE).stage("prepare"):
        data = DynamicPODataset(config)
        data.build()
        rows = {phase: len(part.inter_feat) for phase, part in data.built.items()}
        write_json(folder / AUDIT_FILE, data_audit(data))
        write_json(folder / PROBE_FILE, probe_rows(data))
    return finish(folder, replace(result, outputs={"rows": rows}))


def begin(job: Job, prepared: StageResult, tags: Mapping[str, str] | None = None) -> Path:
    """Write the record of a run, with the place of every stage in it, and return its folder.

    The same job has the same folder, so that its run is gone on with wherever it is recorded.
    """
    outputs = prepared.outputs
    ingredients, params = Ingredients(outputs["ingredients"]), outputs["params"]
    record = describe(
        params,
        ingredients,
        data={"name": job.dataset, "digest": ingredients.values["fact.data"], "rows": outputs["rows"]},
        tags={**run_tags(str(params["backbone"]), ingredients.values["fact.backbone"]), **(tags or {})},
        stages={stage: str(place_of(prepared, stage)[1].resolve()) for stage in RECORDED},
    )
    folder, known = Path(job.store) / "runs" / record.name, Path(prepared.folder)
    with locked(folder, wait=True):
        if (folder / RECORD_FILE).is_file():
            record = replace(record, key=read_record(folder).key)
        write_record(folder, record, load_json(known / AUDIT_FILE), load_json(known / PROBE_FILE))
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
    key, folder = place_of(prepared, stage)
    if _wants_others(job, folder, key):
        in_processes(job, stage, prepared, tracker, progress)
    with _held(folder):
        result = finished(folder, key)
        if result is None:
            config = stage_config(job, stage, prepared)
            result = StageResult(stage, key, str(folder))
            try:
                outputs = _trained(config, folder, prepared, tracker, progress)
            except CheckpointError as error:
                aside = here().decide(lambda: set_aside(folder))
                logger.warning("%s: not gone on with (%s); now %s, and begun again", folder, error, aside)
                outputs = _trained(config, folder, prepared, tracker, progress)
            result = _finish(folder, replace(result, outputs=outputs))
        return result


def _wants_others(job: Job, folder: Path, key: str) -> bool:
    """Say whether a stage is to be run by several processes that are not there yet."""
    if job.nproc == 1 or is_one_of_several():
        return False
    with locked(folder, wait=True):
        return finished(folder, key) is None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a stage's folder inside the block; the first process of a run does for all."""
    with locked(folder, wait=True) if here().first else nullcontext():
        here().wait()
        yield


def _finish(folder: Path, result: StageResult) -> StageResult:
    return here().decide(lambda: finish(folder, result))


def _trained(
    config: PlainConfig,
    folder: Path,
    prepared: StageResult,
    tracker: Tracker | None,
    progress: OnProgress | None,
) -> dict[str, Any]:
    """Train until the end of the stage and return its outputs."""
    loaded = load(config)
    trainer = _trainer(config, loaded.model, folder, prepared, tracker, progress)
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
    key, folder = place_of(prepared, "evaluate")
    if _wants_others(job, folder, key):
        in_processes(job, "evaluate", prepared, tracker, progress)
    with _held(folder):
        result = finished(folder, key)
        if result is not None:
            return result
        config = stage_config(job, "evaluate", prepared)
        loaded = load(config)
        trainer = _trainer(config, loaded.model, folder, prepared, tracker, progress)
        if trainer.final_stage == "preference":
            loaded.model.policy.freeze_reference()  # it was loaded with the SFT adapter
        found = trainer.evaluate(loaded.test, show_progress=config["show_progress"])
        outputs = {
            "test": {name: float(value) for name, value in found.items()},
            "contestants": here().decide(lambda: read_report(folder)["contestants"]),
            "adapter": str(trainer.adapters[trainer.chosen]),
        }
        return _finish(folder, StageResult("evaluate", key, str(folder), outputs))


@dataclass(frozen=True)
class _Given:
    """Lets a stage tell the tracker of the run that it belongs to."""

    tracker: Tracker

    def open(self, folder: Path, uri: str | None) -> Tracker:
        return self.tracker

    def publish(self, folder: Path, uri: str | None) -> str | None:
        """Whoever began the run publishes it."""
        return None


def _trainer(
    config: PlainConfig,
    model: Any,
    folder: Path,
    prepared: StageResult,
    tracker: Tracker | None,
    progress: OnProgress | None,
) -> DynamicPOTrainer:
    """Return a trainer that works in ``folder`` and finds the adapters where the stages leave them."""
    trainer = DynamicPOTrainer(config, model, run_folder=folder, tracking=_Given(tracker or NullTracker()))
    trainer.adapters = {stage: place_of(prepared, stage)[1] / stage for stage in STAGES}
    if progress is not None:
        trainer.on_progress = progress
    return trainer
