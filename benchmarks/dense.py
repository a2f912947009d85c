"""Rows a second and tokens a row of windows, against rows of one title each with listed candidates.

    python benchmarks/dense.py [--json FILE] [--quick] [--dataset ml-100k] [--titles 400] [--listed 16]

Both protocols train adapters of one shape on one backbone in one process, in turns; a step is the trainer's
own, and the learning rate is 0, so that each measurement meets the same weights. What the preference stage
takes is reference and steps together, the reference computed anew.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import common
import torch
from workload import LISTED

from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.steps.ahead import Ready
from recbole_dynamicpo.steps.step import take_step
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import StagePlan, plan_stages
from recbole_dynamicpo.training.rows import ListedRows, StageRows

NEGATIVES = (1, 15, 19)


class Stage:
    """A stage of one protocol over some rows.

    Args:
        model: of the protocol.
        name: of the stage.
        count: rows.
        negatives: K.
    """

    def __init__(self, model: DynamicPO, name: str, count: int, negatives: int = 15) -> None:
        self.model, self.name = model, name
        self.settings = dataclasses.replace(model.settings, num_negatives=negatives)
        (plan,) = (plan for plan in plan_stages(model.settings) if plan.name == name)
        self.plan: StagePlan = dataclasses.replace(plan, rows=count)
        self.optimizer = torch.optim.AdamW(model.policy.trainable(), lr=0.0, weight_decay=0.0)
        self.rows, self.tokens = 0, 0

    def __call__(self) -> None:
        """Pass the rows once."""
        model = self.model
        model.settings, model.stage = self.settings, self.name
        rows: StageRows = (DenseRows if self.settings.positions == "all" else ListedRows)(model, self.plan)
        if self.name == "preference":
            rows.add_reference(0, lambda wanted: wanted.score(wanted.rows))
        self.rows, self.tokens = rows.count, 0
        for batches in rows.batches(0, 0):
            taken = take_step(model, self.optimizer, Ready(model, batches), None)
            self.tokens += taken.numbers.tokens
            taken.numbers.read()


def model_of(dataset: str, settings: dict[str, Any]) -> DynamicPO:
    """Return a model as a run makes it, its reference frozen."""
    model: DynamicPO = load(PlainConfig("DynamicPO", dataset, [], settings)).model
    model.policy.freeze_reference()
    return model


def measure(dense: DynamicPO, listed: DynamicPO, options: Any) -> dict[str, Any]:
    """Return rows a second, tokens a row and their ratios."""
    ways = {
        "sft, windows": Stage(dense, "sft", options.titles),
        "sft, listed": Stage(listed, "sft", options.listed),
        **{f"K = {k}, windows": Stage(dense, "preference", options.titles // 2, k) for k in NEGATIVES},
        "K = 15, listed": Stage(listed, "preference", options.listed),
    }
    calls: dict[str, Callable[[], object]] = dict(ways)
    times = common.interleave(calls, options.rounds)
    per_row = {name: [time / ways[name].rows for time in found] for name, found in times.items()}
    figures: dict[str, Any] = {
        "rows_per_second": {
            name: common.Spread.of([1 / time for time in found])._asdict() for name, found in per_row.items()
        },
        "tokens_per_row": {name: stage.tokens / stage.rows for name, stage in ways.items()},
        "rows": {name: stage.rows for name, stage in ways.items()},
    }
    for name, above, below in (
        ("sft_speedup", "sft, listed", "sft, windows"),
        ("preference_speedup", "K = 15, listed", "K = 15, windows"),
        ("most_over_least", "K = 19, windows", "K = 1, windows"),
    ):
        figures[name] = common.ratios(per_row[above], per_row[below])._asdict()
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    common.print_machine(figures["machine"])
    speeds, tokens, rows = (figures[name] for name in ("rows_per_second", "tokens_per_row", "rows"))
    common.print_table(
        "training rows; median (least..greatest)",
        ["way", "rows", "tokens a row", "rows/s"],
        [[name, rows[name], f"{tokens[name]:.1f}", common.Spread(**speed)] for name, speed in speeds.items()],
    )
    for name in ("sft_speedup", "preference_speedup", "most_over_least"):
        print(f"{name.replace('_', ' ')}: {common.Spread(**figures[name])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("training rows of windows against listed rows")
    parser.add_argument("--titles", type=int, default=400, help="titles of SFT; half of it after (400)")
    parser.add_argument("--listed", type=int, default=16, help="listed rows (16)")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.titles, options.listed = 48, 4
    common_to_both = {"dtype": "float32", "valid_rows": 1, "eval_rows": 1, **settings}
    dense = model_of(options.dataset, common_to_both)
    listed = model_of(options.dataset, {**LISTED, **common_to_both})
    figures = measure(dense, listed, options)
    figures["machine"] = common.machine(dense.policy.backbone.dtype)
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
