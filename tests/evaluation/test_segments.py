"""Segments of test rows, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recbole_dynamicpo.evaluation.report import VIEWS, Contestant
from recbole_dynamicpo.evaluation.segments import ALL, COLD, WARM, by_segment, segment_lines, segments


def test_rows_by_popularity_and_length() -> None:
    """Twenty items seen 1 to 20 times, two never: the tenth of 20 and 19 is the first, that of 1 the last."""
    counts = np.array([0, *range(1, 21), 0])
    seen, lengths = np.array([20, 19, 18, 1, 0]), np.array([0, 5, 6, 20, 21])
    found = {name: rows.tolist() for name, rows in segments(counts, seen, lengths).items()}
    assert found == {
        ALL: [True] * 5,
        COLD: [False, False, False, False, True],
        WARM: [True, True, True, True, False],
        "target in popularity tenth 1": [True, True, False, False, False],
        "target in popularity tenth 2": [False, False, True, False, False],
        "target in popularity tenth 10": [False, False, False, True, False],
        "history of 0 to 5": [True, True, False, False, False],
        "history of 6 to 10": [False, False, True, False, False],
        "history of 11 to 20": [False, False, False, True, False],
        "history of 21 or more": [False, False, False, False, True],
    }


def test_items_seen_equally_often_share_a_tenth() -> None:
    counts = np.full(10, 3)
    found = [ALL, "target in popularity tenth 1", "history of 0 to 5"]
    assert list(segments(counts, counts, counts)) == found


def test_figures_of_a_segment() -> None:
    """Ranks 1, 2, 4 and log-probabilities that are .5, 1 and 0 above those of the counts."""
    base, users = np.array([-2.0, -3.0, -4.0, -9.0]), np.arange(4)
    contestants = [
        Contestant("counts", np.array([2, 2, 2, 1]), users, base),
        Contestant("model", np.array([1, 2, 4, 1]), users, base + np.array([0.5, 1.0, 0.0, 7.0])),
        Contestant("popularity", np.array([1, 1, 1, 9]), users),
    ]
    rows = np.array([True, True, True, False])
    (line,) = by_segment(contestants, {"some": rows}, VIEWS["candidates"], "counts")
    counts, model, popular = line["contestants"]
    assert (line["segment"], line["rows"]) == ("some", 3)
    assert model["hr_at_1"] == pytest.approx(1 / 3)
    assert model["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert model["nats_gained"] == pytest.approx(0.5)
    assert 0 <= model["nats_gained_low"] <= 0.5 <= model["nats_gained_high"] <= 1
    assert "nats_gained" not in counts
    assert "nats_gained" not in popular
    assert popular["hr_at_1"] == 1
    assert math.isclose(counts["nll"], 3.0)
    text = list(segment_lines([line], VIEWS["candidates"]))
    assert text[0] == "some, 3 rows"
    assert "nats gained +0.500" in text[2]
