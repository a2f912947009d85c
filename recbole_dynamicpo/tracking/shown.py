"""A run as people look at it: its report, its record if it has one, and its curves, as lines of text too."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..evaluation.report import REPORT_FILE, metric_name, read_report
from ..ingredients import default_settings, flat_settings
from ..names import AUTO, MODEL_NAMES
from ..settings import Settings
from .figures import pretty, training_series
from .points import Entry
from .record import RECORD_FILE, Record, read_record
from .view import read_journals

# From low to high, for terminals that know them, and for all others.
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_COLUMNS = 48


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        folder: that was named.
        report: of ``read_report``.
        record: None of what is no run of its own, such as ``baselines --out``.
        journals: stage -> its entries.
    """

    folder: Path
    report: Mapping[str, Any]
    record: Record | None
    journals: Mapping[str, Sequence[Entry]]

    @property
    def metric(self) -> str:
        """Return what validation decides by, as journals spell it."""
        params = self.record.params if self.record else {}
        return metric_name(str(params.get("valid_metric", "")))

    def curves(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Return stage -> ``loss`` and ``valid`` -> (step, value)."""
        found = {stage: training_series(entries, self.metric) for stage, entries in self.journals.items()}
        return {stage: series for stage, series in found.items() if series}

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return our settings, and those of RecBole, as the run had them."""
        params = self.record.params if self.record else {}
        ours = {item.name for item in dataclasses.fields(Settings)}
        parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, value in sorted(params.items()):
            parts[name.partition(".")[0] not in ours][name] = value
        return parts

    def changed(self) -> dict[str, Any]:
        """Return those of our settings that a run of this model and data set without any would not have."""
        if self.record is None:
            return {}
        shipped = default_settings(self.record.model, self.record.dataset)
        defaults = flat_settings(dataclasses.asdict(shipped))
        if defaults["dtype"] == AUTO:  # records have what it came to
            on_gpu = self.record.ingredients.get("fact.device") == "cuda"
            defaults["dtype"] = "bfloat16" if on_gpu else "float32"
        ours, _ = self.settings()
        return {name: value for name, value in ours.items() if defaults.get(name) != value}


def read_run(folder: Path) -> Run:
    """Return what the run in a folder left.

    Raises:
        DataError: it has no readable report, as it is not finished or no run.
        CheckpointError: its record is damaged.
    """
    record = read_record(folder) if (folder / RECORD_FILE).is_file() else None
    place = record.stage_folder(folder, "evaluate") if record else folder
    if not (place / REPORT_FILE).is_file():
        raise DataError(f"{folder}: {_without_report(record, folder)}")
    report = read_report(place)
    return Run(folder, report, record, read_journals(folder, record) if record else {})


def _without_report(record: Record | None, folder: Path) -> str:
    """Say what a folder is that has no report, and the way on."""
    if record is None:
        there = "no such folder" if not folder.exists() else f"has neither {RECORD_FILE} nor {REPORT_FILE}"
        return f"{there}; wanted the folder of a run"
    if record.model not in MODEL_NAMES and "objective" not in record.params:
        return f"the run of a model of RecBole's own, which has no {REPORT_FILE}; wanted one of our models"
    again = f"run it again with --resume={folder}"
    way = "run its job again" if record.stages else again
    return f"the run is not finished, as it has no {REPORT_FILE} yet; {way}"


def curve_lines(run: Run, levels: str = BLOCKS) -> Iterator[str]:
    """Yield the curves as lines of text.

    Args:
        run: to show.
        levels: characters from low to high.
    """
    for stage, series in run.curves().items():
        for name, points in series.items():
            if points:
                what = "loss, nats" if name == "loss" else pretty(run.metric)
                steps = f"steps {points[0][0]} to {points[-1][0]}"
                values = [value for _, value in points]
                ends = f"{values[0]:.4f} to {values[-1]:.4f}"
                yield f"{stage:10} {what:10} {spark(values, levels)} {ends}, {steps}"


def spark(values: Sequence[float], levels: str = BLOCKS) -> str:
    """Return a curve as one line of text; neighbours of a long one are averaged.

    Args:
        values: finite or not; gaps stand for those that are not.
        levels: characters from low to high.
    """
    groups = np.array_split(np.array(values, dtype=float), min(len(values), _COLUMNS))
    means = np.array([group.mean() for group in groups])
    known = means[np.isfinite(means)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    shares = (means - low) / (high - low) if high > low else np.where(np.isfinite(means), 0.5, np.nan)
    places = [int(share * (len(levels) - 1) + 0.5) if np.isfinite(share) else -1 for share in shares]
    return "".join(levels[place] if place >= 0 else " " for place in places)


def setting_lines(values: Mapping[str, Any]) -> list[str]:
    """Return settings as they would be given, in lines of a terminal's width."""
    text = " ".join(f"--{name}={value}".replace(" ", "\0") for name, value in values.items())
    options = {"width": 100, "break_long_words": False, "break_on_hyphens": False}
    return [line.replace("\0", " ") for line in textwrap.wrap(text, **options)]  # type: ignore[arg-type]
