"""Paired tests between cells: which, on which rows, corrected; the verdict follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.evaluation.by_user import sign_flip
from recbole_dynamicpo.evaluation.power import detectable_difference
from recbole_dynamicpo.study.comparisons import compare_cells, verdict
from recbole_dynamicpo.study.grid import Cell

from .made_cells import made_cell, ranks_with


def cells_with(home: Path, hits: dict[tuple[bool, int], int], seeds: tuple[int, ...] = (7,)) -> list[Any]:
    """Return cells of DMPO that rank so many of 200 rows first."""
    return [
        made_cell(home, Cell("dmpo", dynamic, width, seed), ranks_with(count))
        for (dynamic, width), count in hits.items()
        for seed in seeds
    ]


def test_pairs_counts_and_corrections_by_hand(tmp_path: Path) -> None:
    """Hits are nested, so that rows alone are differences of hits; four tests, Holm by 4, 3, 2 and 1."""
    hits = {(False, 1): 100, (False, 19): 40, (True, 1): 95, (True, 19): 90}
    found = {(one.first[1:], one.second[1:]): one for one in compare_cells(cells_with(tmp_path, hits))}
    assert list(found) == [
        ((False, 1), (True, 1)),
        ((False, 19), (True, 19)),
        ((False, 1), (False, 19)),
        ((True, 1), (True, 19)),
    ]
    cure, fall = found[(False, 19), (True, 19)], found[(False, 1), (False, 19)]
    assert (cure.only_first, cure.only_second, fall.only_first, fall.only_second) == (0, 50, 60, 0)
    assert (fall.rows, fall.hit_first, fall.hit_second) == (200, 0.5, 0.2)
    assert fall.difference == pytest.approx(-0.3)
    assert fall.corrected == pytest.approx(4 * sign_flip([-1] * 60))
    assert cure.corrected == pytest.approx(3 * sign_flip([1] * 50))
    none = found[(False, 1), (True, 1)]
    assert none.corrected == pytest.approx(2 * sign_flip([-1] * 5))
    assert not none.found
    assert none.detectable == detectable_difference(200, 5, 0.05 / 4)
    assert none.says() == f"not detectable below {none.detectable:.4f}"
    assert (fall.says(), cure.says()) == ("lower by 0.3000", "higher by 0.2500")


def test_seeds_are_counted_together(tmp_path: Path) -> None:
    """Those that both arms have; the 50 users who gain do so with both seeds, and are 50 observations."""
    plain = cells_with(tmp_path, {(False, 19): 40}, seeds=(7, 8, 9))
    dynamic = cells_with(tmp_path, {(True, 19): 90}, seeds=(8, 9))
    (found,) = compare_cells([*plain, *dynamic])
    assert (found.seeds, found.rows, found.only_second) == (2, 400, 100)
    assert found.p == pytest.approx(2 * 0.5**50)
    assert found.spread == 50 * 2**2
    assert found.detectable == detectable_difference(400, 200)


def test_other_rows_are_not_compared(tmp_path: Path) -> None:
    plain = made_cell(tmp_path, Cell("dmpo", False, 3, 7), ranks_with(5, 20))
    dynamic = made_cell(tmp_path, Cell("dmpo", True, 3, 7), ranks_with(5, 21))
    with pytest.raises(DataError, match="same rows"):
        compare_cells([plain, dynamic])


@pytest.mark.parametrize(
    ("hits", "said"),
    [
        ({(False, 1): 100, (False, 19): 40, (True, 19): 90},
         ["collapses from K = 1 to K = 19 (HR@1 0.5000 to 0.2000", "the dynamic form is better", "2 show"]),
        ({(False, 1): 100, (False, 19): 40, (True, 19): 41},
         ["collapses", "at K = 19 a difference of the dynamic form is not detectable below", "1 show"]),
        ({(False, 1): 100, (False, 19): 99, (True, 19): 40},
         ["shows no collapse from K = 1 to K = 19", "not detectable below", "is worse"]),
        ({(False, 1): 40, (False, 19): 100, (True, 19): 100}, ["does not collapse but gains"]),
        ({(False, 1): 100, (True, 1): 90}, ["no collapse can be told", "at K = 1 "]),
        ({(False, 1): 100, (False, 19): 40}, ["collapses", "no cure can be told"]),
        ({(False, 1): 100}, ["Nothing can be said yet"]),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_tests(
    hits: dict[tuple[bool, int], int], said: list[str], tmp_path: Path
) -> None:
    text = verdict(compare_cells(cells_with(tmp_path, hits)))
    assert [part for part in said if part not in text] == []
