"""The least detectable difference and Holm's correction, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_dynamicpo.evaluation.by_user import sign_flip
from recbole_dynamicpo.evaluation.power import detectable_difference, holm


def test_detectable_difference_by_hand() -> None:
    """(1.96 + 0.84) sqrt(0.1 / 999); with few rows at least six have to differ, at 0.01 eight (2 / 2^8)."""
    assert detectable_difference(999, 99) == pytest.approx(0.028030, abs=1e-6)
    assert detectable_difference(50, 0) == 6 / 50
    assert detectable_difference(3, 0) == 1.0
    assert detectable_difference(500, 0, 0.01) == pytest.approx(3.4173 * (1 / 501 / 500) ** 0.5, abs=8 / 500)
    assert detectable_difference(50, 0, 0.01) == 8 / 50
    assert detectable_difference(999, 99, 0.05 / 54) > detectable_difference(999, 99)


def test_a_detectable_difference_is_found_about_four_times_in_five() -> None:
    """400 rows of which 80 differ; those that B alone wins are drawn with the share that makes it so."""
    level = 0.01
    least = detectable_difference(400, 80, level)
    draw = np.random.default_rng(0)
    wins = draw.binomial(80, 0.5 + least * 400 / 80 / 2, size=2000)
    found = np.mean([sign_flip(np.repeat([-1, 1], [80 - count, count])) < level for count in wins])
    assert 0.72 < found < 0.92


def test_holm_by_hand() -> None:
    """Of four: 0.01 x 4, 0.02 x 3, 0.03 x 2 (below the one before), 0.5 x 1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
