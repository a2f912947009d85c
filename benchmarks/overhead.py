"""What DynamicPO costs over the plain objective: selection of the boundary, its betas, the objective.

    python benchmarks/overhead.py [--json FILE] [--quick] [--rows 8]

The parts alone are some small tensor operations, timed by themselves over B x K numbers, forward and
backward. Their difference is set against the time of a whole step at K = 15; the whole step with and without
``dynamic`` is measured too, but varies by more than the difference.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import common
import torch
from step import Step
from torch import Tensor
from workload import Bench, Rows, build, read_dataset

from recbole_dynamicpo.objectives.boundary import find_boundary
from recbole_dynamicpo.objectives.losses import dmpo_loss
from recbole_dynamicpo.objectives.preference import preference_loss

SIZES = ((1, 15), (8, 5), (8, 15), (8, 19), (64, 15))
REPEATS = 50  # calls per measurement, so that one takes some ten milliseconds
NEGATIVES = 15


def parts(rows: int, negatives: int, device: str) -> dict[str, Callable[[], None]]:
    """Return the ways to come from (B, 1 + K) log-probabilities to the gradient of the loss."""
    draw = torch.Generator().manual_seed(rows * 100 + negatives)
    policy = (-10 * torch.rand(rows, 1 + negatives, generator=draw)).to(device).requires_grad_()
    reference = (-10 * torch.rand(rows, 1 + negatives, generator=draw)).to(device)
    mask = torch.ones(rows, negatives, dtype=torch.bool, device=device)

    def finish(loss: Tensor) -> None:
        policy.grad = None
        loss.mean().backward()

    def plain() -> None:
        ratios = policy - reference
        finish(dmpo_loss(ratios[:, 0], ratios[:, 1:], 1.0 * mask, mask))

    def dynamic() -> None:
        found = find_boundary(policy[:, 0], policy[:, 1:], mask, beta=1.0, margin=6.0, clusters=3)
        ratios = policy - reference
        finish(dmpo_loss(ratios[:, 0], ratios[:, 1:], found.beta, found.members))

    def whole(dynamic: bool) -> Callable[[], None]:
        return lambda: finish(preference_loss(policy, reference, dynamic=dynamic, mask=mask).loss)

    ways = {"plain": plain, "dynamic": dynamic, "diagnosed_plain": whole(False), "diagnosed": whole(True)}

    def repeated(way: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(REPEATS):
                way()

        return run

    return {name: repeated(way) for name, way in ways.items()}


def measure_parts(rows: int, negatives: int, rounds: int, device: str) -> dict[str, Any]:
    """Return the seconds of a call of each part."""
    ways = parts(rows, negatives, device)
    for way in ways.values():
        way()  # warm
    times = common.interleave(ways, rounds, device)
    found: dict[str, Any] = {
        name: common.Spread.of([t / REPEATS for t in values])._asdict() for name, values in times.items()
    }
    added = [(d - p) / REPEATS for d, p in zip(times["dynamic"], times["plain"], strict=True)]
    return {"rows": rows, "negatives": negatives, **found, "added": common.Spread.of(added)._asdict()}


def measure_step(bench: Bench, rows: Rows, rounds: int) -> dict[str, Any]:
    """Return the seconds of whole steps, with and without ``dynamic`` and a known reference."""
    prompts = rows.scored(NEGATIVES)
    plain = dataclasses.replace(bench, settings=dataclasses.replace(bench.settings, dynamic=False))
    with_boundary, without = Step(bench, prompts), Step(plain, prompts)
    ways = {
        "dynamic": with_boundary.ours,
        "plain": without.ours,
        "dynamic_cached": with_boundary.ours_cached,
        "plain_cached": without.ours_cached,
    }
    with_boundary.ours()  # warm
    times = common.interleave(ways, rounds, bench.device)
    found: dict[str, Any] = {name: common.Spread.of(values)._asdict() for name, values in times.items()}
    found["dynamic_over_plain"] = common.ratios(times["dynamic"], times["plain"])._asdict()
    return {"rows": len(prompts), **found}


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    common.print_machine(figures["machine"])
    names = ("plain", "dynamic", "added", "diagnosed_plain", "diagnosed")
    common.print_table(
        "Forward and backward from log-probabilities, microseconds a call; median (least..greatest)",
        ["B", "K", "plain objective", "selection + beta + objective", "added",
         "plain with diagnostics", "dynamic with diagnostics"],
        [[f["rows"], f["negatives"], *(_micro(f[name]) for name in names)] for f in figures["parts"]],
    )  # fmt: skip
    step = figures["step"]
    common.print_table(
        f"Share of a step of {step['rows']} rows at K = {NEGATIVES}",
        ["reference", "step, s", "added by DynamicPO, % of the step", "diagnostics and all, % of the step"],
        [[name, common.Spread(**step[key]), f"{100 * share['added']:.3f}", f"{100 * share['all']:.3f}"]
         for name, key, share in (("computed", "dynamic", figures["share"]),
                                  ("cached", "dynamic_cached", figures["share_cached"]))],
    )  # fmt: skip
    print(f"\nwhole step, dynamic over plain: {common.Spread(**step['dynamic_over_plain'])}")


def _micro(found: dict[str, float]) -> common.Spread:
    return common.Spread(*(round(1e6 * found[name], 1) for name in common.Spread._fields))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("DynamicPO against the plain objective", rounds=5)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step (8)")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.rows = 2
    wanted = {"dtype": "float32", "num_negatives": 1, **settings}
    dataset = read_dataset(options.dataset, wanted)
    bench = build(dataset.settings)
    figures: dict[str, Any] = {"machine": common.machine(bench.policy.backbone.dtype, bench.device)}
    sizes = dict.fromkeys([*SIZES, (options.rows, NEGATIVES)])
    figures["parts"] = [measure_parts(b, k, options.rounds, bench.device) for b, k in sizes]
    figures["step"] = measure_step(bench, Rows.take(dataset, options.rows), options.rounds)
    part = next(f for f in figures["parts"] if (f["rows"], f["negatives"]) == (options.rows, NEGATIVES))
    for name, key in (("share", "dynamic"), ("share_cached", "dynamic_cached")):
        whole = figures["step"][key]["median"]
        figures[name] = {
            "added": part["added"]["median"] / whole,
            "all": part["diagnosed"]["median"] / whole,
        }
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
