"""One preference step (policy, reference, backward, optimizer) of this package against the naive way.

    python benchmarks/step.py [--json FILE] [--quick] [--negatives 1 15] [--dtype bfloat16] [--rows 4]

Both ways train the same adapter on the same rows from the same weights; the learning rate is 0, so that each
measurement meets the same weights while the optimizer does all of its work. Losses and gradients must agree
in float32 or the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import naive
import torch
from torch import Tensor, nn
from workload import SHAPES, Bench, Rows, build, read_dataset

from recbole_dynamicpo.language_model.packed import pack
from recbole_dynamicpo.objectives.preference import preference_loss
from recbole_dynamicpo.scoring.batches import PromptRow

NEGATIVES = (1, 3, 5, 10, 15, 19)

# What rounding in float32 explains: of a loss in nats, and of a gradient relative to its norm. A wrong
# boundary, beta or token shows in the first decimals.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3

# Ratios of seconds a row: name, above, below.
RATIOS = (("speedup", "naive", "ours"), ("speedup_many", "naive", "many"), ("cached_ratio", "cached", "many"))


@dataclass
class Step:
    """A preference step over some rows, both ways.

    Attributes:
        bench: policy and collator.
        rows: with the positive and K negatives as completions.
        loss: of the last step, nats.
    """

    bench: Bench
    rows: list[PromptRow]

    def __post_init__(self) -> None:
        self.loss = float("nan")
        self.optimizer = torch.optim.AdamW(self.bench.policy.trainable(), lr=0.0, weight_decay=0.0)
        self.batch = self.bench.collator(self.rows)
        self.reference = self.bench.scorer(self.rows, "reference")

    def ours(self) -> None:
        """Compute the reference of these rows, then take the step."""
        self._ours(self.bench.scorer(self.rows, "reference"))

    def ours_cached(self) -> None:
        """Take the step with reference log-probabilities that are known already."""
        self._ours(self.reference)

    def _ours(self, reference: Tensor) -> None:
        policy, settings = self.bench.policy, self.bench.settings
        policy.train()
        self.optimizer.zero_grad()
        batch = self.bench.collator(self.rows)
        logps = policy.logps(batch)
        result = preference_loss(
            logps,
            reference.to(logps),
            dynamic=settings.dynamic,
            beta=settings.beta,
            margin=settings.margin,
            clusters=settings.num_clusters,
            mask=(batch.completion_length[:, 1:] > 0).to(logps.device),
        )
        self._finish(result.loss.mean())

    def naive(self, second: Any) -> None:
        """Take the step the naive way, with ``second`` as the reference model."""
        bench = self.bench
        bench.policy.train()
        self.optimizer.zero_grad()
        batch = bench.collator(self.rows)
        with torch.no_grad():
            reference = naive.logps(second, batch, bench.device)
        policy = naive.logps(bench.policy.peft, batch, bench.device)
        self._finish(naive.loss(policy, reference, bench.settings))

    def _finish(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.bench.policy.trainable(), float("inf"))
        self.loss = loss.item()
        self.optimizer.step()

    def result(self) -> tuple[float, Tensor]:
        """Return loss and gradient, as one vector, of the last step."""
        parts = [p.grad.flatten() for p in self.bench.policy.trainable() if p.grad is not None]
        return self.loss, torch.cat(parts).double()

    def tokens(self) -> tuple[int, int]:
        """Return the tokens of one forward pass, padding included: naive, ours."""
        return naive.copies(self.batch)[0].numel(), pack(self.batch).input_ids.numel()


def differences(naive_step: tuple[float, Tensor], our_step: tuple[float, Tensor]) -> dict[str, float]:
    """Return both losses, how far they differ in nats, and how far the gradients do, of their norm."""
    (loss, gradient), (our_loss, our_gradient) = naive_step, our_step
    return {
        "loss_naive": loss,
        "loss_ours": our_loss,
        "loss_difference": abs(our_loss - loss),
        "gradient_difference": ((our_gradient - gradient).norm() / gradient.norm()).item(),
    }


def agrees(found: dict[str, float]) -> bool:
    """Say whether rounding explains the differences."""
    return found["loss_difference"] <= LOSS_TOLERANCE and found["gradient_difference"] <= GRADIENT_TOLERANCE


class Measured:
    """What is measured at one K: the naive way and ours over a few rows, ours alone over more.

    Args:
        few: the rows that both ways take.
        many: the rows of ours alone; None: not at this K.
        second: the naive way's reference model.
    """

    def __init__(self, few: Step, many: Step | None, second: Any) -> None:
        self.few, self.many = few, many
        self.peaks: dict[str, list[int]] = {"naive": [], "ours": []}
        self.results: dict[str, tuple[float, Tensor]] = {}
        self.ways = {"naive": self._watched("naive", lambda: few.naive(second)), "ours": few.ours}
        # What a training run finds in memory was left by a step like the last one, so ours is measured after
        # one of its own. The naive way takes its memory anew from the system each time, warm or not.
        self.before = {"ours": self._watched("ours", few.ours)}
        if many is not None:
            self.ways |= {"many": many.ours, "cached": many.ours_cached}
            self.before["many"] = many.ours

    def _watched(self, name: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with common.PeakMemory(self.few.bench.device) as memory:
                work()
            self.peaks[name].append(memory.bytes)
            self.results[name] = self.few.result()

        return run

    def figures(self, times: dict[str, list[float]]) -> dict[str, Any]:
        """Return times per row, tokens, peak memory, ratios and agreement."""
        rows = {way: len((self.many if way in ("many", "cached") else self.few).rows) for way in times}
        per_row = {way: [t / rows[way] for t in measured] for way, measured in times.items()}
        found: dict[str, Any] = {
            way: {"rows": rows[way], "seconds_per_row": common.Spread.of(values)._asdict()}
            for way, values in per_row.items()
        }
        for way, count in zip(("naive", "ours"), self.few.tokens(), strict=True):
            found[way] |= {"peak_bytes": max(self.peaks[way]), "tokens_per_row": count / rows[way]}
        found["memory_ratio"] = found["ours"]["peak_bytes"] / found["naive"]["peak_bytes"]
        for name, above, below in RATIOS:
            if above in times and below in times:
                found[name] = common.ratios(per_row[above], per_row[below])._asdict()
        found["agreement"] = differences(self.results["naive"], self.results["ours"])
        return found


def agreement_in_float32(step: Step, second: Any) -> dict[str, float]:
    """Return how far both ways differ, without measuring anything else."""
    step.naive(second)
    expected = step.result()
    step.ours()
    return differences(expected, step.result())


def in_turns(measured: dict[int, Measured], rounds: int) -> dict[str, Any]:
    """Measure all ways in turns; return the figures of each K, and of the greatest over the least."""
    ways = {(k, way): work for k, one in measured.items() for way, work in one.ways.items()}
    before = {(k, way): work for k, one in measured.items() for way, work in one.before.items()}
    device = next(iter(measured.values())).few.bench.device
    times = common.interleave(ways, rounds, device, before)
    figures: dict[str, Any] = {
        "steps": {
            f"{k}": one.figures({way: times[k, way] for way in one.ways}) for k, one in measured.items()
        }
    }
    alone = sorted(k for k, one in measured.items() if one.many is not None)
    least, most = alone[0], alone[-1]
    figures["most_over_least"] = {
        "negatives": [most, least],
        "computed": common.ratios(times[most, "many"], times[least, "many"])._asdict(),
        "cached": common.ratios(times[most, "cached"], times[least, "cached"])._asdict(),
    }
    return figures


def measure(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Check that both ways agree, and measure them."""
    wanted = {"dtype": options.dtype, "lora_layers": options.layers, "num_negatives": 1, **settings}
    dataset = read_dataset(options.dataset, wanted)
    few, many = Rows.take(dataset, options.naive_rows), Rows.take(dataset, options.rows)
    figures: dict[str, Any] = {}
    if options.dtype != "float32":  # where rounding alone can move a boundary, so this is done apart
        bench = build(dataclasses.replace(dataset.settings, dtype="float32"), options.shapes)
        middle = Step(bench, few.scored(sorted(options.negatives)[len(options.negatives) // 2]))
        figures["agreement"] = agreement_in_float32(middle, naive.second_model(bench.policy))
        del bench, middle
    bench = build(dataset.settings, options.shapes)
    figures["machine"] = common.machine(bench.policy.backbone.dtype, bench.device)
    figures["model"] = {"backbone": bench.policy.backbone.name, "lora_layers": dataset.settings.lora_layers}
    second = naive.second_model(bench.policy)
    figures["second_model_bytes"] = sum(p.numel() * p.element_size() for p in second.parameters())
    chosen = {min(options.negatives), 15, max(options.negatives)} & set(options.negatives)
    measured = {
        k: Measured(Step(bench, few.scored(k)), Step(bench, many.scored(k)) if k in chosen else None, second)
        for k in options.negatives
    }
    figures |= in_turns(measured, options.rounds)
    judged = [found["agreement"] for found in figures["steps"].values()]
    figures["agree"] = all(map(agrees, [figures["agreement"]] if "agreement" in figures else judged))
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    common.print_machine({**figures["machine"], **figures["model"]})
    _report_agreement(figures)
    steps = figures["steps"]
    rows = next(iter(steps.values()))["naive"]["rows"]
    common.print_table(
        f"Seconds a row of a step over {rows} row(s), no reference known; median (least..greatest)",
        ["K", "naive", "ours", "naive / ours", "naive, MB", "ours, MB", "ours / naive",
         "naive, tokens/row", "ours, tokens/row"],
        [[k, _spread(f["naive"]), _spread(f["ours"]), common.Spread(**f["speedup"]),
          *(f"{f[way]['peak_bytes'] / common.MEGABYTE:.0f}" for way in ("naive", "ours")),
          f"{f['memory_ratio']:.3f}", *(f"{f[way]['tokens_per_row']:.0f}" for way in ("naive", "ours"))]
         for k, f in steps.items()],
    )  # fmt: skip
    second = figures["second_model_bytes"] / common.MEGABYTE
    print(f"\nMemory is the peak above all weights; the naive way's second model is another {second:.0f} MB.")
    alone = {k: f for k, f in steps.items() if "many" in f}
    rows = next(iter(alone.values()))["many"]["rows"]
    common.print_table(
        f"Ours over {rows} row(s), seconds a row: the reference computed, or known as from epoch 2 on",
        ["K", "computed", "cached", "cached / computed", "naive / computed"],
        [[k, _spread(f["many"]), _spread(f["cached"]), common.Spread(**f["cached_ratio"]),
          common.Spread(**f["speedup_many"])] for k, f in alone.items()],
    )  # fmt: skip
    most = figures["most_over_least"]
    high, low = most["negatives"]
    computed, cached = common.Spread(**most["computed"]), common.Spread(**most["cached"])
    if high > low:
        print(f"\nK = {high} over K = {low}: {computed}; with a cached reference {cached}")


def _report_agreement(figures: dict[str, Any]) -> None:
    """Print how far both ways differ."""
    losses = {k: found["agreement"] for k, found in figures["steps"].items()}
    if "agreement" in figures:
        losses["float32"] = figures["agreement"]
    common.print_table(
        f"Agreement; wanted in float32: {LOSS_TOLERANCE:g} nats, {GRADIENT_TOLERANCE:g} of the gradient",
        ["K", "loss, naive", "loss, ours", "difference", "gradient difference"],
        [[k, f"{f['loss_naive']:.6f}", f"{f['loss_ours']:.6f}", f"{f['loss_difference']:.2g}",
          f"{f['gradient_difference']:.2g}"] for k, f in losses.items()],
    )  # fmt: skip


def _spread(found: dict[str, Any]) -> common.Spread:
    return common.Spread(**found["seconds_per_row"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("one preference step of ours against the naive way")
    parser.add_argument("--negatives", type=int, nargs="+", default=[*NEGATIVES], help="values of K")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step of ours alone (4)")
    parser.add_argument("--naive_rows", type=int, default=1, help="rows of a step of either way (1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--layers", type=int, default=0, help="topmost layers with LoRA; 0: all")
    parser.add_argument("--shapes", choices=sorted(SHAPES), help="random weights of these shapes, for a GPU")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.rows, options.negatives = 2, [k for k in options.negatives if k in (1, 3)] or [1]
    figures = measure(options, settings)
    report(figures)
    common.save(options.json, figures)
    if not figures["agree"]:
        print("\nerror: the two ways disagree by more than rounding explains", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
