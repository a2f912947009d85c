"""The audit of a data set as a run would use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.host.audit import audit_data


@pytest.fixture
def series(tmp_path: Path) -> dict[str, Any]:
    """Settings for 80 users with times of their own, each of whom reads on in one series of 12 volumes."""
    draw = np.random.default_rng(1)
    rows = ["user,item,time"]
    for user in range(80):
        first, begins = draw.integers(0, 6), draw.integers(1_500_000_000, 1_600_000_000)
        rows += [f"u{user},volume{first + step:02d},{begins + 86_400 * step}" for step in range(7)]
        rows.append(f"u{user},other{user % 20},{begins - 1}")
    (tmp_path / "books.csv").write_text("\n".join(rows))
    prepare("books", tmp_path / "books.csv", tmp_path / "data", progress=False)
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    return {"data_path": str(tmp_path / "data"), "load_col": columns, "num_candidates": 5}


@pytest.mark.parametrize(("order", "timed"), [("time", True), ("given", False)])
def test_who_has_times_is_told_of_series(series: dict[str, Any], order: str, timed: bool) -> None:
    found, _ = audit_data("books", (), {**series, "history_order": order})
    (line,) = [line for line in found.findings() if line.startswith("order: ")]
    assert "order rule" in line
    assert "of pairs within histories follow one direction" in line
    assert ("such as that of a series" in line) == timed == ("nothing to do with users" not in line)


def test_a_shuffled_series_is_no_order(series: dict[str, Any]) -> None:
    found, _ = audit_data("books", (), {**series, "history_order": "shuffled"})
    assert [line for line in found.findings() if line.startswith("order")] == []
