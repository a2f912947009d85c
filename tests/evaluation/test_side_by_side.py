"""The table of one model under several protocols, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.evaluation.by_user import each_alone, share_interval
from recbole_dynamicpo.evaluation.side_by_side import Share, lost, side_by_side


def share(hits: int, rows: int) -> Share:
    """Return a share of rows of a user each."""
    right = np.arange(rows) < hits
    return Share(hits / rows, *share_interval(right, each_alone(rows)), rows)


def test_the_interval_of_a_difference_by_hand() -> None:
    """Newcombe 1998, table II, column (a): 56 of 70 against 48 of 80, by his method 10: .0524 to .3339."""
    fall, low, high = lost(share(56, 70), share(48, 80))
    assert fall == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_difference_lies_in_its_interval_and_turns_with_sides(n: int, m: int, data: st.DataObject) -> None:
    before, after = share(data.draw(st.integers(0, n)), n), share(data.draw(st.integers(0, m)), m)
    fall, low, high = lost(before, after)
    assert -1 - 1e-9 <= low <= fall <= high <= 1 + 1e-9
    assert lost(after, before) == pytest.approx((-fall, -high, -low))


def test_a_line_a_contestant_and_a_column_a_kind() -> None:
    published = {"popularity": share(2, 10), "rule: place": share(9, 10), "model": share(8, 10)}
    fresh = {"popularity": share(4, 20), "model": share(8, 20), "model, generated": share(0, 20)}
    lines = side_by_side({"published": published, "fresh": fresh})
    firsts = [line.split()[0] for line in lines[:6]]
    assert firsts == ["HR@1", "popularity", "rule:", "model", "model,", "rows"]
    head, _, rule, model, generated, rows, *falls = lines
    assert head.split()[-2:] == ["published", "fresh"]
    # Wilson's interval of 8 in 10, and of 8 in 20, as in any table of it.
    assert " ".join(model.split()) == "model 0.8000 [0.4902, 0.9433] 0.4000 [0.2188, 0.6134]"
    assert rule.count("[") == generated.count("[") == 1
    assert generated.index("0.0000") > rule.index("0.9000")
    assert rows.split() == ["rows", "10", "20"]
    assert falls == [
        "popularity: HR@1 0.0000 less on fresh lists than on published ones (-0.3320 to +0.2592)",
        "model: HR@1 0.4000 less on fresh lists than on published ones (-0.6310 to -0.0238)",
    ]
