"""Test rows per second: log-probabilities of 20 candidates against greedy generation of 20 tokens.

    python benchmarks/evaluate.py [--json FILE] [--quick] [--rows 32] [--batch_size 32]

Both read the same prompts. Beside the time stands the number of token passes, that is of tokens for which the
decoder runs, padding included: it does not depend on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import common
import torch
from workload import Bench, Rows, build, read_dataset

from recbole_dynamicpo.evaluation.protocols import ANSWER_TOKENS
from recbole_dynamicpo.scoring.answers import write_answers
from recbole_dynamicpo.scoring.batches import PromptRow


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """Collect the number of tokens of each forward pass of the decoder inside the block."""
    passes: list[int] = []

    def count(_: object, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids")
        passes.append((positional[0] if ids is None else ids).numel())

    handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def measure(bench: Bench, rows: list[PromptRow], batch_size: int, rounds: int) -> dict[str, Any]:
    """Return rows per second and token passes per row of both protocols."""
    scorer, model = bench.scorer, bench.policy.peft.get_base_model()
    ways: dict[str, Callable[[], object]] = {
        "likelihood": lambda: scorer(rows),
        "generation": lambda: write_answers(
            scorer, rows, ANSWER_TOKENS, batch_size=batch_size, progress=False
        ),
    }
    found: dict[str, Any] = {"rows": len(rows)}
    for name, way in ways.items():
        with counted_tokens(model) as passes:
            way()  # warm
        found[name] = {"token_passes_per_row": sum(passes) / len(rows), "forward_passes": len(passes)}
    times = common.interleave(ways, rounds, bench.device)
    for name, values in times.items():
        found[name]["rows_per_second"] = common.Spread.of([len(rows) / t for t in values])._asdict()
    found["likelihood_over_generation"] = common.ratios(times["generation"], times["likelihood"])._asdict()
    return found


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    common.print_machine(figures["machine"])
    common.print_table(
        f"{figures['rows']} rows, at most {ANSWER_TOKENS} tokens an answer; median (least..greatest)",
        ["protocol", "rows/s", "token passes/row", "forward passes"],
        [[name, common.Spread(**f["rows_per_second"]), f"{f['token_passes_per_row']:.0f}",
          f["forward_passes"]] for name, f in figures.items() if name in ("likelihood", "generation")],
    )  # fmt: skip
    print(f"\nlikelihood over generation, rows/s: {common.Spread(**figures['likelihood_over_generation'])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("evaluation by likelihood against evaluation by generation")
    parser.add_argument("--rows", type=int, default=32, help="test rows (32)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows that are generated at once (32)")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.rows = 4
    wanted = {"dtype": "float32", "num_negatives": 1, "eval_rows": options.rows, **settings}
    dataset = read_dataset(options.dataset, wanted)
    bench = build(dataset.settings)
    rows = Rows(dataset, dataset.built["test"].inter_feat).candidates()
    with torch.no_grad():
        figures = measure(bench, rows, options.batch_size, options.rounds)
    figures["machine"] = common.machine(bench.policy.backbone.dtype, bench.device)
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
