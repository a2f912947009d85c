"""The record of a stock RecBole model's run, in the same terms as that of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from ..dataset.data_files import data_digest
from ..evaluation.report import metric_name
from ..ingredients import Ingredients, flat_settings
from ..tracking.journal import Journal
from ..tracking.live import Tracker, Tracking
from ..tracking.record import JOURNAL_FILE, describe, write_record
from ..tracking.run_folder import new_run_folder
from ..version import __version__


class StockRun:
    """Journal of one run of a stock model; its stages are ``train`` and ``evaluate``.

    Args:
        folder: of the run, with its record.
        tracker: told of what is new.
    """

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.journal = Journal(folder / JOURNAL_FILE)
        self.tracker = tracker

    def epoch(self, number: int, score: float) -> None:
        """Note the validation score of an epoch; RecBole counts them from 0."""
        self.journal.write("train", number + 1, "valid", {"valid_score": float(score)})
        self.tracker.changed()

    def results(self, valid: Mapping[str, Any] | None, test: Mapping[str, Any] | None) -> None:
        """Note RecBole's metrics of the best model."""
        for kind, found in (("valid", valid), ("test", test)):
            if found:
                figures = {metric_name(name): float(value) for name, value in found.items()}
                self.journal.write("evaluate", 0, kind, figures)


class Unrecorded:
    """What the other processes of a run have, which the first one records."""

    def epoch(self, number: int, score: float) -> None:
        """Do nothing."""

    def results(self, valid: Mapping[str, Any] | None, test: Mapping[str, Any] | None) -> None:
        """Do nothing."""


def is_first(config: Any) -> bool:
    """Say whether this process is the first of a run's, on all machines."""
    values = config.final_config_dict
    return int(values.get("local_rank") or 0) + int(values.get("offset") or 0) == 0


@contextmanager
def recorded(config: Any, loaded: Any, tracking: Tracking) -> Iterator[StockRun | Unrecorded]:
    """Record what happens in the block as a run of the stock model of ``config``, in its first process.

    Args:
        config: RecBole's configuration.
        loaded: the loaders of the three splits.
        tracking: of the run's folder.
    """
    if not is_first(config):
        yield Unrecorded()
        return
    name = f"{config['model']}-{config['dataset']}-{get_local_time()}"
    folder = new_run_folder(Path(config["checkpoint_dir"]), name)
    parts = {"train": loaded.train, "valid": loaded.valid, "test": loaded.test}
    rows = {phase: len(part._dataset) for phase, part in parts.items() if part is not None}
    data = {"name": config["dataset"], "digest": data_digest(config), "rows": rows}
    params = flat_settings(config.final_config_dict)
    ingredients = Ingredients.of(params, {"data": data["digest"]})
    write_record(folder, describe(params, ingredients, data=data, tags={"version": __version__}))
    uri = config.final_config_dict.get("mlflow_tracking_uri", "auto")
    run = StockRun(folder, tracking.open(folder, uri))
    try:
        with run.journal.stage("train"):
            yield run
        run.journal.finished("evaluate", 0.0)
    except BaseException:
        run.tracker.close("FAILED")
        raise
    run.tracker.close("FINISHED")
