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

from recbole_dynamicpo.batches import PromptRow
from recbole_dynamicpo.logps import pack
from recbole_dynamicpo.objectives import preference_loss

NEGATIVES = (1, 3, 5, 10, 15, 19)

# What rounding in float32 explains: of a loss in nats, and of a gradient relative to its norm. A wrong
# boundary, beta or token shows in the first decimals.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


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


def against_naive(step: Step, second: Any, rounds: int) -> dict[str, Any]:
    """Return times, tokens, peak memory and results of both ways over the same rows."""
    peaks: dict[str, list[int]] = {"naive": [], "ours": []}
    results: dict[str, tuple[float, Tensor]] = {}

    def watched(name: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with common.PeakMemory(step.bench.device) as memory:
                work()
            peaks[name].append(memory.bytes)
            results[name] = step.result()

        return run

    ways = {"naive": watched("naive", lambda: step.naive(second)), "ours": watched("ours", step.ours)}
    step.ours()  # warm
    times = common.interleave(ways, rounds, step.bench.device)
    found: dict[str, Any] = {"rows": len(step.rows)}
    for way, count in zip(ways, step.tokens(), strict=True):
        found[way] = {
            "seconds_per_row": common.Spread.of([t / len(step.rows) for t in times[way]])._asdict(),
            "peak_bytes": max(peaks[way]),
            "tokens_per_row": count / len(step.rows),
        }
    found["speedup"] = common.ratios(times["naive"], times["ours"])._asdict()
    found["memory_ratio"] = found["ours"]["peak_bytes"] / found["naive"]["peak_bytes"]
    found["agreement"] = differences(results["naive"], results["ours"])
    return found


def agreement_in_float32(step: Step, second: Any) -> dict[str, float]:
    """Return how far both ways differ, without measuring anything else."""
    step.naive(second)
    expected = step.result()
    step.ours()
    return differences(expected, step.result())


def alone(steps: dict[int, Step], rounds: int) -> dict[str, Any]:
    """Return our times at several K, with and without a known reference."""
    device = next(iter(steps.values())).bench.device
    ways = {}
    for negatives, step in steps.items():
        ways[f"{negatives}"], ways[f"{negatives} cached"] = step.ours, step.ours_cached
        step.ours()  # warm
    times = common.interleave(ways, rounds, device)
    found: dict[str, Any] = {"rows": len(next(iter(steps.values())).rows)}
    for negatives in steps:
        plain, cached = times[f"{negatives}"], times[f"{negatives} cached"]
        found[f"{negatives}"] = {
            "seconds_per_row": common.Spread.of([t / found["rows"] for t in plain])._asdict(),
            "cached_seconds_per_row": common.Spread.of([t / found["rows"] for t in cached])._asdict(),
            "cached_ratio": common.ratios(cached, plain)._asdict(),
        }
    least, most = min(steps), max(steps)
    found["most_over_least"] = {
        "negatives": [most, least],
        "uncached": common.ratios(times[f"{most}"], times[f"{least}"])._asdict(),
        "cached": common.ratios(times[f"{most} cached"], times[f"{least} cached"])._asdict(),
    }
    return found


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
    figures["against_naive"] = {
        f"{k}": against_naive(Step(bench, few.scored(k)), second, options.rounds) for k in options.negatives
    }
    del second
    chosen = sorted({min(options.negatives), 15, max(options.negatives)} & set(options.negatives))
    figures["ours"] = alone({k: Step(bench, many.scored(k)) for k in chosen}, options.rounds)
    judged = [found["agreement"] for found in figures["against_naive"].values()]
    figures["agree"] = all(map(agrees, [figures["agreement"]] if "agreement" in figures else judged))
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    common.print_machine({**figures["machine"], **figures["model"]})
    _report_agreement(figures)
    measured = figures["against_naive"]
    rows = next(iter(measured.values()))["rows"]
    common.print_table(
        f"A step over {rows} row(s): naive against ours, no reference known; median (least..greatest)",
        ["K", "naive, s/row", "ours, s/row", "naive / ours", "naive, MB", "ours, MB", "ours / naive",
         "naive, tokens/row", "ours, tokens/row"],
        [[k, _spread(f["naive"]), _spread(f["ours"]), common.Spread(**f["speedup"]),
          *(f"{f[way]['peak_bytes'] / common.MEGABYTE:.0f}" for way in ("naive", "ours")),
          f"{f['memory_ratio']:.3f}", *(f"{f[way]['tokens_per_row']:.0f}" for way in ("naive", "ours"))]
         for k, f in measured.items()],
    )  # fmt: skip
    second = figures["second_model_bytes"] / common.MEGABYTE
    print(f"\nMemory is the peak above all weights; the naive way's second model is another {second:.0f} MB.")
    own = figures["ours"]
    common.print_table(
        f"Ours over {own['rows']} row(s): the reference computed, or from the cache as from epoch 2 on",
        ["K", "s/row", "cached, s/row", "cached / computed"],
        [[k, _spread(f), common.Spread(**f["cached_seconds_per_row"]), common.Spread(**f["cached_ratio"])]
         for k, f in own.items() if k.isdigit()],
    )  # fmt: skip
    most = own["most_over_least"]
    high, low = most["negatives"]
    uncached, cached = common.Spread(**most["uncached"]), common.Spread(**most["cached"])
    if high > low:
        print(f"\nK = {high} over K = {low}: {uncached}; with a cached reference {cached}")


def _report_agreement(figures: dict[str, Any]) -> None:
    """Print how far both ways differ."""
    losses = {f"{k}": found["agreement"] for k, found in figures["against_naive"].items()}
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
