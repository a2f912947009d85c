"""Ranking a whole catalogue exactly, against twenty listed candidates and against constrained beam search.

    python benchmarks/catalogue.py [--json FILE] [--quick] [--dataset ml-100k] [--users 20] [--beam_users 3]

One voice, one dtype, the same histories. Listed candidates are scored behind a prompt that shows them, as the
published protocol does. Beams are those of transformers' generate, held to the trie by
``prefix_allowed_tokens_fn``, one user at a time. The adapters are drawn; no time depends on them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
from beams import allowed, beam_titles
from workload import Bench, Rows, build, read_dataset

from recbole_dynamicpo.language_model.policy import POLICY
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.title_trie.catalogue_likelihood import Mixture
from recbole_dynamicpo.title_trie.catalogue_scorer import CatalogueScorer
from recbole_dynamicpo.title_trie.catalogue_search import CatalogueSearch

TOP, BEAMS = 20, 20


def measure(
    bench: Bench, listed: Bench, rows: Sequence[PromptRow], scorer: CatalogueScorer, options: Any
) -> dict[str, Any]:
    """Return times of the ways, and what beams miss."""
    search, histories = CatalogueSearch(scorer), [row._replace(candidates=[], completions=[]) for row in rows]
    few = histories[: options.beam_users]
    nodes: list[int] = []

    def best_first(of: Sequence[PromptRow]) -> None:
        nodes[:] = [search.top(row, TOP).nodes for row in of]

    ways = {
        "20 listed": lambda: listed.scorer(rows),
        "all titles": lambda: scorer.all_in_voices(histories, [POLICY]),
        "best first": lambda: best_first(histories),
    }
    times = common.interleave(ways, options.rounds, bench.device)
    following = allowed(scorer.trie)
    missed = []
    beams: list[set[int]] = []

    def search_beams() -> None:
        model, prompts = bench.policy.peft.get_base_model(), scorer.prompts(few)
        beams[:] = [beam_titles(model, scorer.trie, prompt, following, BEAMS) for prompt in prompts]

    own = common.interleave(
        {
            "beams": search_beams,
            "all titles": lambda: [scorer.all_in_voices([row], [POLICY]) for row in few],
            "best first": lambda: best_first(few),
        },
        1,
        bench.device,
    )
    for row, found in zip(few, beams, strict=True):
        exact = set(search.top(row, TOP).titles.tolist())
        missed.append(len(exact - found) / len(exact))
    return {
        "users": len(rows),
        "beam_users": len(few),
        "titles": scorer.trie.num_titles,
        "nodes": len(scorer.trie.forward_nodes()),
        "nodes_best_first": float(np.mean(nodes)),
        "users_per_second": {
            name: common.Spread.of([len(rows) / t for t in values])._asdict()
            for name, values in times.items()
        },
        "all_over_listed": common.ratios(times["all titles"], times["20 listed"])._asdict(),
        "beams_over_all": common.ratios(own["beams"], own["all titles"])._asdict(),
        "beams_over_best_first": common.ratios(own["beams"], own["best first"])._asdict(),
        "missed_by_beams": float(np.mean(missed)),
    }


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    common.print_machine(figures["machine"])
    speeds = figures["users_per_second"]
    common.print_table(
        f"{figures['titles']} titles, {figures['nodes']} nodes to forward, {figures['users']} users; "
        "median (least..greatest)",
        ["way", "users/s"],
        [[name, common.Spread(**speed)] for name, speed in speeds.items()],
    )
    print(f"\nall titles over 20 listed, time: {common.Spread(**figures['all_over_listed'])}")
    print(f"nodes visited best first for the top {TOP}: {figures['nodes_best_first']:.0f}")
    for name in ("beams_over_all", "beams_over_best_first"):
        print(
            f"{name.replace('_', ' ')}, time, {figures['beam_users']} users: {common.Spread(**figures[name])}"
        )
    print(f"share of the exact top {TOP} that {BEAMS} beams miss: {figures['missed_by_beams']:.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("exact ranking of a whole catalogue")
    parser.add_argument("--users", type=int, default=20, help="histories (20)")
    parser.add_argument("--beam_users", type=int, default=3, help="histories that beams are searched for (3)")
    options, settings = common.parse(parser, arguments)
    if options.quick:
        options.users, options.beam_users = 3, 1
    wanted = {
        "dtype": "float32",
        "num_negatives": 1,
        "eval_rows": options.users,
        "max_history": 20,
        **settings,
    }
    dataset = read_dataset(options.dataset, wanted)
    listed = build(dataset.settings)
    bench = dataclasses.replace(listed, collator=build_collator(listed))
    scorer = CatalogueScorer(
        bench.policy, bench.collator, dataset.catalogue.titles,
        priors=lambda trie: [], mixtures={POLICY: Mixture(1.0, [])},
        budget=TokenBudget(dataset.settings.tokens_per_batch),
    )  # fmt: skip
    rows = Rows(dataset, dataset.built["test"].inter_feat).candidates()
    figures = measure(bench, listed, rows, scorer, options)
    figures["machine"] = common.machine(bench.policy.backbone.dtype, bench.device)
    report(figures)
    common.save(options.json, figures)
    return 0


def build_collator(bench: Bench) -> Any:
    """Return a collator of sequences with the limits of another."""
    from recbole_dynamicpo.scoring.collate import Collator
    from recbole_dynamicpo.scoring.prompts import load_templates
    from recbole_dynamicpo.settings import properties_folder

    own = bench.collator
    templates = load_templates("sequence", properties_folder() / "prompts")
    return Collator(own.tokenizer, templates, max_length=own.max_length, max_history=own.max_history)


if __name__ == "__main__":
    sys.exit(main())
