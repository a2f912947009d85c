"""What a ranking of the whole catalogue shows, beyond hits: how much of it, how evenly, how well known.

All of it follows from how often each title stands among the first k of a row, which is counted as rows go by;
no list is kept. Titles are distinct ones; what the history leaves out of a row is shown to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .segments import LENGTHS, length_name, tenths

IntArray = NDArray[np.int64]

KEY = "beyond"  # of the lines in a report
_FIGURES = ("coverage", "gini", "novelty")


class Exposure:
    """How often each of Y titles was among the first k, by length of the row's history.

    Attributes:
        depth: k.
        shown: (groups, Y) rows in which a title was; groups as ``LENGTHS`` has them.
        rows: (groups,) rows that were counted.

    Args:
        titles: Y.
        depth: k.
    """

    def __init__(self, titles: int, depth: int) -> None:
        self.depth = depth
        self.shown: IntArray = np.zeros((len(LENGTHS), titles), dtype=np.int64)
        self.rows: IntArray = np.zeros(len(LENGTHS), dtype=np.int64)

    def add(self, best: IntArray, lengths: IntArray) -> None:
        """Count some rows.

        Args:
            best: (B, at least k) numbers of titles, best first; -1 where a row has no more.
            lengths: (B,) titles of each row's history.
        """
        groups = np.searchsorted([most for _, most in LENGTHS if most is not None], lengths)
        some = best[:, : self.depth]
        there = some >= 0
        np.add.at(self.shown, (np.broadcast_to(groups[:, None], some.shape)[there], some[there]), 1)
        np.add.at(self.rows, groups, 1)

    def join(self, parts: Iterable[tuple[IntArray, IntArray]]) -> None:
        """Become the sum of what several processes counted, each its own rows: ``shown`` and ``rows``."""
        found = list(parts)
        self.shown = np.sum([shown for shown, _ in found], axis=0)
        self.rows = np.sum([rows for _, rows in found], axis=0)


def coverage(shown: IntArray) -> float:
    """Return the share of the catalogue that stands in somebody's first k.

    |union of all lists| / Y: catalogue coverage (Ge, Delgado-Battenfeld and Jannach, RecSys 2010). At most
    rows times k / Y, so figures of different numbers of rows cannot be compared.

    Args:
        shown: (Y,) rows in which a title was.
    """
    return float((shown > 0).mean()) if len(shown) else 0.0


def gini(shown: IntArray) -> float:
    """Return the Gini coefficient of how often titles are shown: 0 where all are equally often.

    Sum over i of (2 i - Y - 1) c_i / (Y sum of c), c ascending, over all titles, those never shown too: the
    definition of RecBole's GiniIndex (of sales: Fleder and Hosanagar, Management Science 2009).
    The same k titles for everybody make 1 - k / Y.

    Args:
        shown: (Y,) rows in which a title was.
    """
    total, count = int(shown.sum()), len(shown)
    if not total:
        return 0.0
    places = 2 * np.arange(1, count + 1, dtype=np.float64) - count - 1
    return float((places * np.sort(shown)).sum() / (count * total))


def novelty(shown: IntArray, taken: IntArray) -> float:
    """Return how little known the titles shown are: the mean of -log2 of their share, over all places, bits.

    A title's share is (c + 1) / (N + Y), c its training interactions and N those of all titles; one is added
    so that a title nobody took is of finite novelty (self-information: Zhou et al., PNAS 2010; Castells,
    Hurley and Vargas, Recommender Systems Handbook, 2015).

    Args:
        shown: (Y,) rows in which a title was.
        taken: (Y,) training interactions of each.
    """
    bits = np.log2(taken.sum() + len(taken)) - np.log2(taken + 1.0)
    return float((shown * bits).sum() / shown.sum()) if shown.any() else 0.0


def beyond_accuracy(name: str, found: Exposure, taken: IntArray) -> dict[str, Any]:
    """Return the figures of a contestant as plain numbers.

    ``tenths`` has for each popularity tenth of the titles that training knew, the first the most popular, and
    ``cold`` for those that it did not, how many ``titles`` there are, what share of all places goes to them
    (``share``) and what share of them is shown at all (``coverage``); ``lengths`` the figures of the rows
    with histories of each length.

    Args:
        name: of the contestant.
        found: what it showed.
        taken: (Y,) training interactions of each title.
    """
    everything = found.shown.sum(axis=0)
    tenth = tenths(taken, taken)
    parts = {f"{number + 1}": (tenth == number) & (taken > 0) for number in range(10)}
    lengths = [
        {"segment": length_name(*ends), "rows": int(rows), **_figures(shown, taken)}
        for ends, shown, rows in zip(LENGTHS, found.shown, found.rows, strict=True)
        if rows
    ]
    return {
        "name": name,
        "rows": int(found.rows.sum()),
        "depth": found.depth,
        "titles": len(taken),
        **_figures(everything, taken),
        "tenths": {number: _part(everything, titles) for number, titles in parts.items() if titles.any()},
        "cold": _part(everything, taken == 0),
        "lengths": lengths,
    }


def recorded(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one contestant as records name them: ``all_coverage_at_10``."""
    return {f"all_{key}_at_{found['depth']}": float(found[key]) for key in _FIGURES}


def _figures(shown: IntArray, taken: IntArray) -> dict[str, float]:
    return dict(zip(_FIGURES, (coverage(shown), gini(shown), novelty(shown, taken)), strict=True))


def _part(shown: IntArray, titles: NDArray[np.bool_]) -> dict[str, float]:
    share = float(shown[titles].sum() / max(1, shown.sum()))
    return {"titles": int(titles.sum()), "share": share, "coverage": coverage(shown[titles])}


def beyond_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of ``beyond_accuracy`` as lines of text; none where there is nothing to show."""
    if not found:
        return
    depth, rows, titles = (found[0][key] for key in ("depth", "rows", "titles"))
    width = max(len(line["name"]) for line in found) + 2
    most = min(1.0, rows * depth / titles)
    yield f"the first {depth} of all titles, {rows} rows (coverage is at most {most:.3f})"
    head = f"{f'coverage@{depth}':>12}{f'Gini@{depth}':>9}{f'novelty@{depth}, bits':>18}"
    cold = any(line["cold"]["titles"] for line in found)
    yield f"{'':{width}}{head}{'to the top tenth':>18}{'to cold titles' if cold else '':>16}".rstrip()
    for line in found:
        figures = f"{line['coverage']:12.4f}{line['gini']:9.4f}{line['novelty']:18.3f}"
        shares = [f"{line['tenths'].get('1', {'share': 0.0})['share']:18.4f}"]
        shares += [f"{line['cold']['share']:16.4f}"] if cold else []
        yield f"{line['name']:{width}}{figures}{''.join(shares)}"


def beyond_segment_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the parts of ``beyond_accuracy`` as lines of text: by popularity, by length of the history."""
    for line in found:
        yield f"{line['name']}: places by popularity tenth of the title (titles of it that are shown at all)"
        parts = {f"tenth {number}": part for number, part in line["tenths"].items()}
        for name, part in {**parts, "cold": line["cold"]}.items():
            if part["titles"]:
                shown = f"{part['coverage']:.4f} of {part['titles']}"
                yield f"  {name:10}{part['share']:8.4f}  ({shown})"
        for part in line["lengths"]:
            figures = ", ".join(f"{key} {part[key]:.4f}" for key in _FIGURES)
            yield f"  {part['segment']}, {part['rows']} rows: {figures}"
