"""Run folders as training leaves them, without training: a record and a journal with known times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_dynamicpo.evaluation.ranks import RANKS_FILE, write_ranks
from recbole_dynamicpo.evaluation.report import REPORT_FILE
from recbole_dynamicpo.storage import write_json
from recbole_dynamicpo.tracking.record import AUDIT_FILE, JOURNAL_FILE, Record, write_record

BEGIN = 1_800_000_000.0  # seconds since 1970

PARAMS = {
    "valid_metric": "NDCG@5",
    "valid_metric_bigger": True,
    "num_candidates": 6,
    "topk": [1, 5],
    "clip_grad_norm.max_norm": 1.0,
    "unload_col": None,
}


def toy_record(**changes: Any) -> Record:
    """Return the record of a DynamicPO run on the toy data set."""
    values: dict[str, Any] = {
        "name": "DynamicPO-toy-0123abcd-s7",
        "model": "DynamicPO",
        "dataset": "toy",
        "seed": 7,
        "config_hash": "0123abcd" * 8,
        "data": {"name": "toy", "digest": "d" * 64, "rows": {"train": 60, "valid": 12, "test": 12}},
        "params": PARAMS,
        "tags": {"backbone": "tiny", "backbone_sha256": "b" * 64, "git_commit": "c" * 40},
    }
    return Record(**{**values, **changes})


class RunFolder:
    """A run that grows entry by entry; the entry number n is written n seconds after ``BEGIN``.

    Args:
        path: of the folder.
        record: of the run; None: that of ``toy_record``.
    """

    def __init__(self, path: Path, record: Record | None = None) -> None:
        self.path = path
        self.record = record or toy_record()
        path.mkdir(parents=True, exist_ok=True)
        write_record(path, self.record)
        self.seconds = 0

    def add(self, stage: str, step: int, kind: str, place: Path | None = None, **values: Any) -> None:
        """Append an entry, to the journal of another folder if ``place`` is given."""
        self.seconds += 1
        entry = {"stage": stage, "step": step, "kind": kind, "time": BEGIN + self.seconds, **values}
        with ((place or self.path) / JOURNAL_FILE).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")

    def begin(self, stage: str, **more: Any) -> None:
        """Note that a stage runs."""
        self.add(stage, 0, "status", status="running", **more)

    def end(self, stage: str, step: int = 0, **more: Any) -> None:
        """Note that a stage ended."""
        self.add(stage, step, "status", status="finished", seconds=2.5, peak_memory_mb=300.0, **more)

    def train(self, stage: str, first: int, last: int, **more: Any) -> None:
        """Note the steps of a stage from ``first`` to ``last``; the loss of step n is n / 8."""
        for step in range(first, last + 1):
            self.add(stage, step, "train", loss=step / 8, learning_rate=0.5, **more)

    def evaluate(self, hit: float = 0.25, step: int = 0, place: Path | None = None) -> None:
        """Note a test result, with report and ranks."""
        folder = place or self.path
        line = {"name": "after DynamicPO", "rows": 12, "hr_at_1": hit, "hr_at_1_low": hit / 2}
        line |= {"hr_at_1_high": hit * 2, "ndcg_at_5": 0.5, "mrr": 0.375}
        write_json(folder / REPORT_FILE, {"contestants": [{**line, "name": "popularity"}, line]})
        write_ranks(folder / RANKS_FILE, ["1", "2"], ["u1", "u2"], [1, 2])
        self.add("evaluate", step, "test", place, hit_at_1=hit, hr_at_1_low=hit / 2, hr_at_1_high=hit * 2)

    def whole(self) -> RunFolder:
        """Add all of a run of 3 and 4 steps and return it."""
        write_json(self.path / AUDIT_FILE, {"items": 38})
        self.begin("prepare")
        self.end("prepare")
        self.begin("sft")
        self.train("sft", 1, 3)
        self.add("sft", 3, "valid", ndcg_at_5=0.5)
        self.add("sft", 3, "system", cpu_utilization_percentage=50.0)
        self.end("sft", 3)
        self.begin("preference")
        self.train("preference", 1, 4, **PREFERENCE)
        self.add("preference", 4, "valid", ndcg_at_5=0.75)
        self.end("preference", 4)
        self.begin("evaluate")
        self.evaluate()
        self.end("evaluate")
        return self


PREFERENCE: Mapping[str, Any] = {
    "reward_win_rate": 0.5,
    "reward_margin": 1.5,
    "violation_rate": 0.25,
    "boundary_size": 2.0,
    "beta_counts": [0] * 9 + [3, 1] + [0] * 9,
}
