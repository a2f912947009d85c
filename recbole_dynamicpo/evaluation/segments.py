"""Where a contestant ranks well: by how often a target was seen, and by how long its history is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .report import Contestant, View, summarize
from .statistics import paired_bootstrap

IntArray = NDArray[np.int64]

ALL = "all rows"
COLD, WARM = "target never seen in training", "target seen in training"
# History lengths, both ends included; the last group is open.
LENGTHS = ((0, 5), (6, 10), (11, 20), (21, None))


def segments(counts: IntArray, seen: IntArray, lengths: IntArray) -> dict[str, NDArray[np.bool_]]:
    """Return name -> (n,) rows of each segment that has any.

    Args:
        counts: (items,) training interactions of every item.
        seen: (n,) those of each row's target.
        lengths: (n,) titles of each row's history.
    """
    tenth, cold = tenths(counts, seen), seen == 0
    found = {ALL: np.ones(len(seen), dtype=bool), COLD: cold}
    if cold.any():
        found[WARM] = ~cold
    for number in range(10):
        found[f"target in popularity tenth {number + 1}"] = (tenth == number) & (seen > 0)
    for low, high in LENGTHS:
        found[length_name(low, high)] = (lengths >= low) & (lengths <= (np.inf if high is None else high))
    return {name: rows for name, rows in found.items() if rows.any()}


def length_name(low: int, high: int | None) -> str:
    """Return what a group of history lengths is called."""
    return f"history of {low} to {high}" if high is not None else f"history of {low} or more"


def tenths(counts: IntArray, seen: IntArray) -> IntArray:
    """Return (n,) popularity tenths, 0 to 9, the most popular first; of no meaning where nothing was seen.

    An item's tenth is how many of the known items were seen more often, so that equals share one.

    Args:
        counts: (items,) training interactions of every item.
        seen: (n,) those of the items asked for.
    """
    known = np.sort(counts[counts > 0])[::-1]
    found: IntArray = np.searchsorted(-known, -seen, side="left") * 10 // max(1, len(known))
    return found


def by_segment(
    contestants: Sequence[Contestant], parts: dict[str, NDArray[np.bool_]], view: View, counted: str
) -> list[dict[str, Any]]:
    """Return a line for each segment: its name, rows and contestants, each with its figures.

    Where a contestant has log-probabilities and so has the one named ``counted``, ``nats_gained`` is the mean
    by which its own are higher, with a bootstrap interval of 95 %.
    """
    by_name = {contestant.name: contestant for contestant in contestants}
    base = by_name.get(counted)
    lines = []
    for segment, rows in parts.items():
        part = []
        for contestant in contestants:
            logps = None if contestant.logps is None else contestant.logps[rows]
            some = Contestant(contestant.name, contestant.ranks[rows], contestant.users[rows], logps)
            figures = summarize(some, view, intervals=False)
            if logps is not None and base is not None and base.logps is not None and contestant is not base:
                names = ("nats_gained", "nats_gained_low", "nats_gained_high")
                gained = paired_bootstrap(base.logps[rows], logps, some.users)
                figures |= dict(zip(names, gained, strict=True))
            part.append(figures)
        lines.append({"segment": segment, "rows": int(rows.sum()), "contestants": part})
    return lines


def segment_lines(found: Sequence[dict[str, Any]], view: View) -> Iterator[str]:
    """Yield the segments of a report as lines of text.

    Args:
        found: of ``by_segment``.
        view: that they were made for.
    """
    rate = f"hr_at_{view.hits}"
    for part in found:
        yield f"{part['segment']}, {part['rows']} rows"
        width = max(len(line["name"]) for line in part["contestants"]) + 4
        for line in part["contestants"]:
            interval = f"[{line[rate + '_low']:.3f}, {line[rate + '_high']:.3f}]"
            gained = ""
            if "nats_gained" in line:
                ends = f"[{line['nats_gained_low']:+.3f}, {line['nats_gained_high']:+.3f}]"
                gained = f"  nats gained {line['nats_gained']:+.3f} {ends}"
            hits = f"HR@{view.hits} {line[rate]:.3f} {interval}"
            yield f"{'  ' + line['name']:{width}}{hits}  MRR {line['mrr']:.3f}{gained}"
