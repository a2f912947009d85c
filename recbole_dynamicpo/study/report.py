"""What a study shows of its cells: the table with paired tests, the figure, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import atomic_file
from .comparisons import Paired, arm_name, compare_cells, verdict
from .figure import draw
from .grid import kind_of
from .results import Result, kept_cells

TABLE_FILE, FIGURE_FILES = "table.md", ("figure.png", "figure.svg")
_SHOWN = ("objective", "dynamic", "num_negatives", "seed")
_FIGURES = ("hr_at_1", "hr_at_1_low", "hr_at_1_high", "ndcg_at_5", "mrr", "rows", "training_loss", "violated")


def table_row(result: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return one line of a table: the cell, its figures, and which run it is."""
    return {**{name: result[name] for name in (*_SHOWN, *_FIGURES)}, "run": run}


def write_study(home: Path, dataset: str) -> str:
    """Write table and figure of the cells that there are, and return the verdict."""
    every = list(kept_cells(home))
    results = [found for found in every if "error" not in found]
    tested = compare_cells(results)
    said = verdict(tested)
    failed = [found for found in every if "error" in found]
    with atomic_file(home / TABLE_FILE) as handle:
        handle.write(table(results, tested, failed, dataset))
    if results:
        figure = draw(results, dataset)
        for name in FIGURE_FILES:
            kind = name.rpartition(".")[2]
            with atomic_file(home / name, "wb") as handle:
                figure.savefig(handle, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return said


def table(results: Sequence[Result], tested: Sequence[Paired], failed: Sequence[Result], dataset: str) -> str:
    """Return the page with cells and tests as Markdown."""
    lines = [f"# Study on {dataset}", "", verdict(tested), "", "## Cells", "", *_cell_lines(results)]
    lines += ["", "## Paired tests", "", *_test_lines(tested)]
    if failed:
        names = ("objective", "kind", "K", "seed")
        lines += ["", "## Failed", ""]
        lines += [
            f"- {', '.join(f'{n} {v}' for n, v in zip(names, _arm(one), strict=True))}: {one['error']}"
            for one in failed
        ]
    return "\n".join([*lines, ""])


def _arm(found: Result) -> tuple[Any, ...]:
    return found["objective"], kind_of(found["dynamic"]), found["num_negatives"], found["seed"]


def _cell_lines(results: Sequence[Result]) -> list[str]:
    head = ("objective", "form", "K", "seed", "HR@1", "NDCG@5", "MRR", "rows", "loss at the end", "violated")
    lines = [_line(head), _line(["---"] * len(head))]
    for found in sorted(results, key=lambda one: (one["objective"], *(one[name] for name in _SHOWN[1:]))):
        figures = [_with_interval(found, name) for name in ("hr_at_1", "ndcg_at_5", "mrr")]
        ends = [_number(found[name]) for name in ("training_loss", "violated")]
        lines.append(_line([*_arm(found), *figures, found["rows"], *ends]))
    lines += [
        "",
        "95 % intervals in brackets: Wilson's of HR@1, the bootstrap's of NDCG@5 and MRR. Loss: mean of the "
        "last quarter of the steps, nats. Violated: share of the plain objective's gradient on negatives "
        "that are at least as likely as the positive, mean of all steps.",
    ]
    versions = {found["code"] for found in results}
    if len(versions) > 1:
        lines += ["", f"The cells were made by {len(versions)} versions of the code."]
    if count := sum(found["ranked"] == "after SFT" for found in results):
        lines += [
            "",
            f"Validation of {count} cells chose the SFT adapter, whose ranks stand here; `eval_step: 0` "
            "ranks what the preference stage ended with.",
        ]
    return lines


def _test_lines(tested: Sequence[Paired]) -> list[str]:
    head = (
        "first",
        "second",
        "seeds",
        "rows",
        "HR@1",
        "difference",
        "alone",
        "p",
        "Holm",
        "the second is",
    )
    lines = [_line(head), _line(["---"] * len(head))]
    for one in tested:
        hits = f"{one.hit_first:.4f}, {one.hit_second:.4f}"
        alone = f"{one.only_first}, {one.only_second}"
        numbers = (f"{one.difference:+.4f}", alone, f"{one.p:.3g}", f"{one.corrected:.3g}", one.says())
        lines.append(_line([arm_name(one.first), arm_name(one.second), one.seeds, one.rows, hits, *numbers]))
    return [
        *lines,
        "",
        "Exact test of HR@1 on the same rows, two-sided: a user's rows of all seeds are one observation, "
        "whose sign is flipped; with a row a user it is McNemar's. It speaks of users, given these trained "
        f"models. p corrected by Holm for {len(tested)} comparisons. Alone: rows that only the first, only "
        "the second ranks first. Not detectable below: a difference of that size is found four times in "
        "five, by the rows that differ, at the strictest level of the correction; a smaller one may exist.",
    ]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _with_interval(found: Result, name: str) -> str:
    return f"{found[name]:.4f} [{found[f'{name}_low']:.4f}, {found[f'{name}_high']:.4f}]"
