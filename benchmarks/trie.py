"""Building a catalogue's trie and searching it, without a language model.

    python benchmarks/trie.py [--json FILE] [--quick] [--titles 1000000 100000] [--tokens 12]

Titles are made: tokens are drawn by Zipf's law, so that many titles begin alike. Tokenizing is not counted.
The search for the top 20 reads drawn logits of some nats; what is timed is the search alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import common
import numpy as np
import torch
from numpy.typing import NDArray

from recbole_dynamicpo.title_trie.best_first import TopTitles, top_titles
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trie import Trie
from recbole_dynamicpo.title_trie.trie_builder import build_trie

VOCABULARY = 49_152
ZIPF = 1.3
SPREAD = 3.0  # standard deviation of the logits, nats
TOP = 20


def draw_tokens(titles: int, tokens: int) -> NDArray[np.int32]:
    """Return (titles, tokens) distinct rows of tokens from 1 on."""
    draw = np.random.default_rng(1)
    rows = np.zeros((0, tokens), np.int32)
    while len(rows) < titles:
        more = draw.zipf(ZIPF, size=(titles, tokens)) % (VOCABULARY - 1) + 1
        rows = np.unique(np.concatenate([rows, more.astype(np.int32)]), axis=0)
    return np.ascontiguousarray(draw.permutation(rows)[:titles])


def as_lists(rows: NDArray[np.int32]) -> Iterator[list[int]]:
    """Yield each title's tokens as a tokenizer returns them."""
    for row in rows:
        yield row.tolist()


def drawn_logits(trie: Trie) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Return what a search asks for the logits of children."""
    logits = SPREAD * torch.randn(len(trie.edge_node), generator=torch.Generator().manual_seed(2))

    def child_logits(numbers: NDArray[np.int64]) -> torch.Tensor:
        return torch.cat([logits[trie.edge_start[n] : trie.edge_start[n + 1]] for n in numbers])

    return child_logits


def measure(titles: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Return what a catalogue of one size costs."""
    rows = draw_tokens(titles, tokens)
    names = [f"title {index}" for index in range(titles)]
    start = time.perf_counter()
    with common.PeakMemory() as memory:
        trie = build_trie(names, as_lists(rows), 0)
    built = time.perf_counter() - start
    chosen = np.arange(trie.num_titles)[None]
    ask = drawn_logits(trie)
    found: list[TopTitles] = []
    ways: dict[str, Callable[[], object]] = {
        "lay_out": lambda: lay_out(trie, chosen),
        "search": lambda: found.append(top_titles(trie, ask, TOP)),
    }
    times = common.interleave(ways, rounds)
    return {
        "titles": trie.num_titles,
        "tokens": tokens,
        "nodes": len(trie.parent),
        "branching": len(trie.branching),
        "forward": len(trie.forward_nodes()),
        "edges": len(trie.edge_node),
        "build_s": built,
        "build_bytes": memory.bytes,
        "visited": found[0].nodes,
        **{name: common.Spread.of(values)._asdict() for name, values in times.items()},
    }


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    common.print_machine(figures["machine"])
    sizes = figures["sizes"]
    common.print_table(
        "Building",
        ["titles", "tokens a title", "nodes", "branching", "nodes to forward", "edges", "s", "peak, MB"],
        [[f["titles"], f["tokens"], f["nodes"], f["branching"], f["forward"], f["edges"],
          f"{f['build_s']:.2f}", f"{f['build_bytes'] / common.MEGABYTE:.0f}"] for f in sizes],
    )  # fmt: skip
    common.print_table(
        f"Using; median (least..greatest) of {figures['rounds']}",
        ["titles", "layout of all titles, s", f"search for the top {TOP}, s", "nodes visited", "of"],
        [[f["titles"], common.Spread(**f["lay_out"]), common.Spread(**f["search"]),
          f["visited"], f["forward"]] for f in sizes],
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("a catalogue's trie")
    parser.add_argument("--titles", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of a title (12)")
    options, _ = common.parse(parser, arguments)
    if options.quick:
        options.titles = [1_000]
    figures = {
        "machine": common.machine(torch.float32),
        "rounds": options.rounds,
        "sizes": [measure(titles, options.tokens, options.rounds) for titles in options.titles],
    }
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
