"""What rankings show of a catalogue, by hand and against the definitions worked out list by list."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.evaluation.exposure import (
    Exposure,
    beyond_accuracy,
    beyond_lines,
    beyond_segment_lines,
    coverage,
    gini,
    novelty,
    recorded,
)


def test_the_three_figures_by_hand() -> None:
    """Five titles shown 0, 0, 1, 1 and 2 times, taken 7, 3, 0, 1 and 0 times.

    Coverage 3 / 5. Gini: (-4 * 0 - 2 * 0 + 0 * 1 + 2 * 1 + 4 * 2) / (5 * 4) = .5. Shares are (c + 1) / 16:
    of the four places one has 1/16, one 2/16 and two 1/16: (4 + 3 + 4 + 4) / 4 bits.
    """
    shown, taken = np.array([0, 0, 1, 1, 2]), np.array([7, 3, 0, 1, 0])
    assert coverage(shown) == pytest.approx(3 / 5)
    assert gini(shown) == pytest.approx(0.5)
    assert novelty(shown, taken) == pytest.approx(15 / 4)


def test_the_ends_of_the_scales() -> None:
    same, none = np.array([9, 9, 0, 0]), np.zeros(4, dtype=np.int64)
    assert gini(same) == pytest.approx(1 - 2 / 4)
    assert gini(np.full(4, 3)) == 0
    assert (coverage(none), gini(none), novelty(none, same)) == (0, 0, 0)
    # Where all are taken equally often, each is one of four: two bits.
    assert novelty(same, np.full(4, 5)) == pytest.approx(2)


def test_rows_are_counted_by_length_and_no_further_than_k() -> None:
    """-1 stands for no title: a row that leaves out all but one of four shows one."""
    found = Exposure(4, 2)
    found.add(np.array([[0, 1, 2], [3, -1, -1]]), np.array([5, 6]))
    found.add(np.array([[1, 0, 3]]), np.array([99]))
    assert found.shown.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert found.rows.tolist() == [1, 1, 0, 1]


# Rows of up to 12 titles in order, each with the length of its history.
ROWS = st.lists(st.tuples(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 30)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 5), st.lists(st.integers(0, 4), min_size=12, max_size=12), st.integers(1, 3))
def test_against_the_definitions_list_by_list(
    rows: list[Any], depth: int, taken: list[int], processes: int
) -> None:
    """Whatever batches rows come in, and however many processes they are dealt to."""
    lists = [order[:kept][:depth] for order, kept, _ in rows]
    found = [Exposure(12, depth) for _ in range(processes)]
    for number, (order, kept, length) in enumerate(rows):
        best = np.array([[*order[:kept], *[-1] * (12 - kept)]])
        found[number % processes].add(best, np.array([length]))
    parts = [(one.shown, one.rows) for one in found]
    for one in found:
        one.join(parts)
        assert (one.shown == found[0].shown).all()
    figures = beyond_accuracy("x", found[0], np.array(taken))
    assert figures["rows"] == len(rows)
    slow = definitions(lists, taken)
    for key in ("coverage", "gini", "novelty"):
        assert figures[key] == pytest.approx(slow[key], abs=1e-9), key
    places = sum(map(len, lists))
    parts_of_titles = [*figures["tenths"].values(), figures["cold"]]
    assert sum(part["titles"] for part in parts_of_titles) == 12
    assert sum(part["share"] for part in parts_of_titles) == pytest.approx(1 if places else 0)
    cold = [title for one in lists for title in one if not taken[title]]
    assert figures["cold"]["share"] == pytest.approx(len(cold) / places if places else 0)
    for part, (low, high) in zip(figures["lengths"], groups_with_rows(rows), strict=True):
        some = [one for one, (_, _, length) in zip(lists, rows, strict=True) if low <= length <= high]
        assert part["rows"] == len(some)
        assert part["coverage"] == pytest.approx(definitions(some, taken)["coverage"])
        assert part["novelty"] == pytest.approx(definitions(some, taken)["novelty"])


def groups_with_rows(rows: list[Any]) -> list[tuple[int, int]]:
    groups = [(0, 5), (6, 10), (11, 20), (21, 1000)]
    return [(low, high) for low, high in groups if any(low <= length <= high for *_, length in rows)]


def definitions(lists: list[list[int]], taken: list[int]) -> dict[str, float]:
    """Return coverage as a union of lists, Gini as the difference of all pairs, novelty place by place."""
    flat = [title for one in lists for title in one]
    counts = [flat.count(title) for title in range(len(taken))]
    pairs = sum(Fraction(abs(a - b)) for a in counts for b in counts)
    bits = [-math.log2((taken[title] + 1) / (sum(taken) + len(taken))) for title in flat]
    return {
        "coverage": len(set(flat)) / len(taken),
        "gini": float(pairs / (2 * len(taken) * sum(counts))) if flat else 0.0,
        "novelty": sum(bits) / len(bits) if bits else 0.0,
    }


def test_what_is_shown_and_recorded() -> None:
    """Twelve titles, the last two never taken; one list of the two best and the first of the cold ones."""
    taken = np.array([12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 0, 0])
    found = Exposure(12, 3)
    found.add(np.array([[0, 1, 10]]), np.array([7]))
    line = beyond_accuracy("model", found, taken)
    assert line["tenths"]["1"] == {"titles": 1, "share": pytest.approx(1 / 3), "coverage": 1.0}
    assert line["tenths"]["10"] == {"titles": 1, "share": 0.0, "coverage": 0.0}
    assert line["cold"] == {"titles": 2, "share": pytest.approx(1 / 3), "coverage": 0.5}
    assert recorded(line) == {
        "all_coverage_at_3": 0.25,
        "all_gini_at_3": pytest.approx(0.75),
        "all_novelty_at_3": line["novelty"],
    }
    table = list(beyond_lines([line]))
    assert table[0] == "the first 3 of all titles, 1 rows (coverage is at most 0.250)"
    assert table[1].split() == [
        *("coverage@3", "Gini@3", "novelty@3,", "bits", "to", "the", "top", "tenth", "to", "cold", "titles"),
    ]
    assert table[2].split() == ["model", "0.2500", "0.7500", f"{line['novelty']:.3f}", "0.3333", "0.3333"]
    parts = list(beyond_segment_lines([line]))
    assert "  tenth 1     0.3333  (1.0000 of 1)" in parts
    assert "  cold        0.3333  (0.5000 of 2)" in parts
    assert parts[-1].startswith("  history of 6 to 10, 1 rows: coverage 0.2500")
    assert list(beyond_lines([])) == []
