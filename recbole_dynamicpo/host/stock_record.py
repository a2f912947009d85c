"""The record of a stock RecBole model's run, in the same terms as that of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from ..evaluation.report import metric_name
from ..tracking.journal import Journal
from ..tracking.record import JOURNAL_FILE, describe, write_record
from ..tracking.run_folder import new_run_folder
from ..tracking.sync import Tracker, open_tracker
from ..tracking.system import peak_memory_mb
from ..training.data_files import data_digest
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


@contextmanager
def recorded(config: Any, loaded: Any) -> Iterator[StockRun]:
    """Record what happens in the block as a run of the stock model of ``config``.

    Args:
        config: RecBole's configuration.
        loaded: the loaders of the three splits.
    """
    name = f"{config['model']}-{config['dataset']}-{get_local_time()}"
    folder = new_run_folder(Path(config["checkpoint_dir"]), name)
    parts = {"train": loaded.train, "valid": loaded.valid, "test": loaded.test}
    rows = {phase: len(part._dataset) for phase, part in parts.items() if part is not None}
    data = {"name": config["dataset"], "digest": data_digest(config), "rows": rows}
    write_record(
        folder, describe(config.final_config_dict, data=data, tags={"version": __version__}, stages={})
    )
    uri = config.final_config_dict.get("mlflow_tracking_uri", "auto")
    run = StockRun(folder, open_tracker(folder, uri))
    started = time.perf_counter()
    run.journal.write("train", 0, "status", {"status": "running"})
    try:
        yield run
    except BaseException:
        run.journal.write("train", 0, "status", {"status": "failed"})
        run.tracker.close("FAILED")
        raise
    spent = {"seconds": round(time.perf_counter() - started, 3), "peak_memory_mb": peak_memory_mb()}
    for stage in ("train", "evaluate"):
        run.journal.write(stage, 0, "status", {"status": "finished", **(spent if stage == "train" else {})})
    run.tracker.close("FINISHED")
