"""How the trainer writes down what it does: the record, the journal, and whoever copies both."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..dataset.columns import CANDIDATE_IDS, ROW_ID
from ..dataset.data_files import data_digest
from ..errors import PeerError, StoppedError
from ..evaluation.report import metric_name
from ..hub import find_adapter
from ..ingredients import Ingredients, flat_settings
from ..language_model.adapter_folder import trained_digest
from ..language_model.attention import kernel_name
from ..language_model.backbone import backbone_fingerprint, resolve_backbone, resolve_dtype
from ..language_model.tokenizer import tokenizer_digest
from ..objectives.strategies import source_digest
from ..parallel import here
from ..retrievers.checkpoint import checkpoints_digest
from ..scoring.prompts import load_templates
from ..settings import Settings, properties_folder
from ..steps.numbers import summary
from ..storage import sha256_json
from ..tracking.journal import Journal
from ..tracking.live import NullTracker, Tracker, Tracking
from ..tracking.record import JOURNAL_FILE, RECORD_FILE, describe, run_tags, write_record
from ..tracking.run_folder import end_run
from ..tracking.system import system_metrics
from .checkpoint import has_checkpoint
from .plan import StagePlan

OnProgress = Callable[[str, int, int], object]  # told stage, steps done, steps in all

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


class Recorder:
    """The journal of one run, and whoever copies it.

    Args:
        folder: of the run, or of one stage of it.
        tracking: of the folder.
        uri: setting ``mlflow_tracking_uri``.
        goes_on: how to go on with the run, in words. None: a caller records, locks and publishes the run
            that the folder belongs to, and goes on with it.

    Attributes:
        published: what became of the run's model, once it is published, on one line.

    Of several processes of a run the first one writes; the others say nothing.
    """

    def __init__(self, folder: Path, tracking: Tracking, uri: str | None, goes_on: str | None) -> None:
        self.folder, self.whole, self._writes = folder, goes_on is not None, here().first
        self.goes_on = goes_on or "the same job goes on from there"
        self.journal = Journal(folder / JOURNAL_FILE)
        self._tracking, self._uri = tracking, uri
        self._tracker: Tracker = NullTracker()
        self.published: str | None = None
        self._system_read = 0.0

    def begin(self, config: Any, model: Any, ingredients: Ingredients) -> None:
        """Write the record of a new run, with its prepare stage, and let the run be copied from now on.

        Args:
            config: RecBole's configuration.
            model: with its data and its backbone.
            ingredients: of the run.
        """
        if not self._writes:
            return
        if self.whole and not (self.folder / RECORD_FILE).is_file():
            dataset, backbone = model.dataset, model.policy.backbone
            rows = {phase: len(part.inter_feat) for phase, part in dataset.built.items()}
            record = describe(
                {**params_of(config, model.settings), "dtype": ingredients.values["fact.dtype"]},
                ingredients,
                data={"name": config["dataset"], "digest": ingredients.values["fact.data"], "rows": rows},
                tags=run_tags(model.settings.backbone, backbone.fingerprint),
            )
            write_record(self.folder, record, data_audit(dataset), probe_rows(dataset))
            self.journal.write("prepare", 0, "status", {"status": "running"})
            self.journal.finished("prepare", time.time() - dataset.started)
        self._tracker = self._tracking.open(self.folder, self._uri)

    @contextmanager
    def stage(self, name: str, step: Callable[[], int]) -> Iterator[None]:
        """Note that a stage runs while the block does, and how it ended.

        Args:
            name: of the stage.
            step: tells the optimizer steps done in it.
        """
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            with self.journal.stage(name, step) if self._writes else nullcontext():
                self._tracker.changed()
                yield
        except BaseException as error:
            self._tracker.close("FAILED")
            if name == "evaluate" and isinstance(error, StoppedError):
                raise StoppedError(f"{error} in the evaluation; {self.goes_on}") from error
            if isinstance(error, PeerError):
                raise PeerError(f"{error}; {self.goes_on}") from error
            if isinstance(error, KeyboardInterrupt) and has_checkpoint(self.folder):
                raise KeyboardInterrupt(f"interrupted in stage {name}; {self.goes_on}") from error
            raise
        self._tracker.changed()

    def note(self, stage: str, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write one entry and tell the tracker; now and then add the machine's load."""
        if not self._writes:
            return
        named = {metric_name(name): value for name, value in values.items()} if kind == "valid" else values
        self.journal.write(stage, step, kind, dict(named))
        if kind == "train" and time.monotonic() - self._system_read > SYSTEM_EVERY:
            self._system_read = time.monotonic()
            self.journal.write(stage, step, "system", system_metrics())
        self._tracker.changed()

    @contextmanager
    def steps(
        self, plan: StagePlan, rows: int, step: int, told: OnProgress, *, shows: bool
    ) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        """Give what writes down and shows a step's numbers inside the block.

        Args:
            plan: of the stage.
            rows: of an epoch.
            step: that the stage has come to.
            told: the stage, steps done and steps in all.
            shows: whether there is a bar.
        """
        total = plan.epochs * plan.steps_per_epoch(rows)
        with tqdm(
            total=plan.epochs * rows, initial=plan.rows_after(step, rows),
            desc=plan.name, disable=not shows, unit=" rows", dynamic_ncols=True,
        ) as bar:  # fmt: skip

            def say(step: int, values: dict[str, Any]) -> None:
                self.note(plan.name, step, "train", values)
                told(plan.name, step, total)
                bar.update(values["rows"])
                bar.set_postfix_str(summary(values))

            yield say

    def publish(self) -> None:
        """Let the copy of the run be complete, and what follows a whole run be done."""
        if not self._writes:
            return
        self._tracker.close("FINISHED")
        if self.whole:
            end_run(self.folder)
        if self.whole and (self.folder / RECORD_FILE).is_file():
            self.published = self._tracking.publish(self.folder, self._uri)


def going_on(config: Any, folder: Path) -> str:
    """Return how to go on with the run in ``folder``, in words; its settings are in the folder."""
    said = config.external_config_dict
    words = {"model": config["model"], "resume": folder}
    words |= {"data_path": said["data_path"]} if "data_path" in said else {}
    return "go on with: run_recbole " + " ".join(
        shlex.quote(f"--{key}={value}") for key, value in words.items()
    )


def gather(config: Any, settings: Settings) -> Ingredients:
    """Return the ingredients of a run of one of our models.

    Args:
        config: RecBole's configuration; its data files, backbone and adapters are there.
        settings: of the run, as checked.

    Raises:
        DynamicPOError: something that is named is not there, or damaged.
    """
    place = resolve_backbone(settings.backbone)
    device = torch.device(config["device"])
    dtype = resolve_dtype(settings.dtype, device)
    templates = load_templates(settings.prompt, properties_folder() / "prompts")
    adapter, own = settings.sft_adapter, source_digest(settings.objective)
    kept = settings.retriever_checkpoints
    return Ingredients.of(
        params_of(config, settings),
        {
            "data": data_digest(config),
            "backbone": backbone_fingerprint(place, settings.backbone),
            "tokenizer": tokenizer_digest(place),
            "template": sha256_json(templates.texts),
            "adapter": trained_digest(find_adapter(adapter)) if adapter else None,
            "dtype": str(dtype).removeprefix("torch."),
            "device": device.type,
            "kernel": kernel_name(device, dtype),
            **({"retriever_checkpoints": checkpoints_digest(kept)} if kept else {}),
            **({"objective": own} if own else {}),
        },
    )


def params_of(config: Any, settings: Settings) -> dict[str, Any]:
    """Return every setting of a run, flat: RecBole's final ones, and ours with their defaults."""
    return flat_settings({**config.final_config_dict, **asdict(settings)})
