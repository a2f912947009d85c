"""A preference step at K = 15 against the time that its operations would take as plain matrix products.

    python benchmarks/floor.py [--json FILE] [--quick] [--rows 4] [--lora_layers=15]

What is counted, 2 operations per multiplication and addition, for rows without padding: all linear layers and
the adapter for every token of prompt and completions; attention for the visible (query, key) pairs alone; the
output layer where a completion token is predicted; in the backward pass the products for whatever carries or
needs a gradient, down to the lowest layer with an adapter, and none for frozen weights. Norms, activations,
softmax, rotations and the optimizer count as nothing.

The rate is measured on the frozen weights themselves: each linear layer of each transformer layer once as in
the forward and once as in the backward pass, with as many tokens as the step has. Layers are those of a
Llama-like model whose adapter touches at least the query, key or value projection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import torch
from step import Step
from torch import Tensor, nn
from workload import Rows, build, read_dataset

from recbole_dynamicpo.language_model.packed import TokenBatch, pack
from recbole_dynamicpo.language_model.policy import POLICY, Policy

NEGATIVES = 15
# They read the input of their layer: in the lowest layer with an adapter nobody needs its gradient.
FROM_INPUT = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Linear:
    """A frozen linear layer.

    Attributes:
        name: last part of its name.
        weight: (outputs, inputs).
        rank: of its adapter; 0 without one.
    """

    name: str
    weight: Tensor
    rank: int

    @property
    def products(self) -> int:
        """Operations of one token."""
        return 2 * self.weight.numel()

    @property
    def adapter(self) -> tuple[int, int]:
        """Operations of one token in the adapter's first and second matrix."""
        outputs, inputs = self.weight.shape
        return 2 * self.rank * inputs, 2 * self.rank * outputs


@dataclass(frozen=True)
class Sizes:
    """What the count depends on, summed over the rows of a batch.

    Attributes:
        tokens: that pass through the decoder, padding left out.
        pairs: (query, key) pairs that the block mask lets through.
        predictions: different positions that predict a completion token.
    """

    tokens: int
    pairs: int
    predictions: int


def sizes(batch: TokenBatch) -> Sizes:
    """Count tokens, visible pairs and predicting positions of a batch by its lengths."""
    tokens = pairs = 0
    for prompt, titles in zip(batch.prompt_length.tolist(), batch.completion_length.tolist(), strict=True):
        inputs = [length - 1 for length in titles if length]  # the last token is never an input
        tokens += prompt + sum(inputs)
        pairs += prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in inputs)
    return Sizes(tokens, pairs, len(pack(batch).sources))


def layers_of(policy: Policy) -> list[list[Linear]]:
    """Return the linear layers of each transformer layer, the lowest first."""
    found = []
    for layer in policy.peft.get_base_model().get_decoder().layers:
        linears = []
        for name, module in layer.named_modules():
            if hasattr(module, "lora_A"):
                linears.append(Linear(name.rpartition(".")[2], module.base_layer.weight, module.r[POLICY]))
            elif isinstance(module, nn.Linear) and "lora_" not in name and "base_layer" not in name:
                linears.append(Linear(name.rpartition(".")[2], module.weight, 0))
        found.append(linears)
    return found


def count(policy: Policy, size: Sizes) -> dict[str, int]:
    """Return the operations of a forward and of a backward pass of the policy."""
    model = policy.peft.get_base_model()
    layers, config = layers_of(policy), model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * size.pairs * config.num_attention_heads * width  # scores, and their mix of values
    head = 2 * size.predictions * model.get_output_embeddings().weight.numel()
    forward = head + sum(
        size.tokens * sum(linear.products + sum(linear.adapter) for linear in linears) + attention
        for linears in layers
    )
    adapted = [index for index, linears in enumerate(layers) if any(linear.rank for linear in linears)]
    backward = head
    for linears in layers[min(adapted) :]:
        lowest = linears is layers[min(adapted)]
        backward += 2 * attention
        for linear in linears:
            first, second = linear.adapter
            backward += size.tokens * (first + 2 * second)  # both matrices, and what lies between
            if not (lowest and linear.name in FROM_INPUT):
                backward += size.tokens * (linear.products + first)
    return {"forward": forward, "backward": backward}


def products(policy: Policy, tokens: int) -> tuple[Callable[[], None], int]:
    """Return the work that measures the rate, and its operations."""
    layers = layers_of(policy)
    weights = [linear.weight for linears in layers for linear in linears]
    draw = torch.Generator().manual_seed(0)
    sides = {side for weight in weights for side in weight.shape}
    states = {side: torch.randn(tokens, side, generator=draw).to(weights[0]) for side in sides}

    @torch.no_grad()
    def work() -> None:
        for weight in weights:
            nn.functional.linear(states[weight.shape[1]], weight)
            states[weight.shape[0]] @ weight

    return work, sum(4 * tokens * weight.numel() for weight in weights)


def measure(name: str, settings: dict[str, Any], rows: int, rounds: int) -> dict[str, Any]:
    """Return time and floor of a step in one dtype."""
    dataset = read_dataset(name, settings)
    bench = build(dataset.settings)
    step = Step(bench, Rows.take(dataset, rows).scored(NEGATIVES))
    size = sizes(step.batch)
    operations = count(bench.policy, size)
    work, work_operations = products(bench.policy, size.tokens)
    for warm in (step.ours, work):
        warm()
    ways = {"products": work, "computed": step.ours, "cached": step.ours_cached}
    times = common.interleave(ways, rounds, bench.device)
    found: dict[str, Any] = {
        "machine": common.machine(bench.policy.backbone.dtype, bench.device),
        "rows": rows,
        "tokens": size.tokens,
        "operations": operations,
        "operations_per_second": common.Spread.of([work_operations / t for t in times["products"]])._asdict(),
    }
    policy = sum(operations.values())
    for way, needed in (("computed", policy + operations["forward"]), ("cached", policy)):
        floors = [t * needed / work_operations for t in times["products"]]
        found[way] = {
            "operations": needed,
            "seconds": common.Spread.of(times[way])._asdict(),
            "floor_seconds": common.Spread.of(floors)._asdict(),
            "over_floor": common.ratios(times[way], floors)._asdict(),
        }
    return found


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    for found in figures.values():
        common.print_machine(found["machine"])
    first = next(iter(figures.values()))
    common.print_table(
        f"A step of {first['rows']} rows ({first['tokens']} tokens) at K = {NEGATIVES}; "
        "median (least..greatest)",
        ["dtype", "reference", "10^9 operations", "products, 10^9/s", "step, s", "floor, s", "step / floor"],
        [[dtype, way, f"{f[way]['operations'] / 1e9:.0f}",
          common.Spread(*(value / 1e9 for value in f["operations_per_second"].values())),
          *(common.Spread(**f[way][name]) for name in ("seconds", "floor_seconds", "over_floor"))]
         for dtype, f in figures.items() for way in ("computed", "cached")],
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("a preference step against the time of its matrix products", rounds=5)
    parser.add_argument("--rows", type=int, default=4, help="rows of the step (4)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the frozen weights")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.rows = 1
    wanted = {"num_negatives": 1, "lora_layers": 0, **settings}
    figures = {
        dtype: measure(options.dataset, {**wanted, "dtype": dtype}, options.rows, options.rounds)
        for dtype in options.dtypes
    }
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
