"""Tables where users have several rows: all of them say so, and their tests go by users."""

from __future__ import annotations

import numpy as np

from recbole_dynamicpo.evaluation.by_user import each_alone
from recbole_dynamicpo.evaluation.report import VIEWS, Contestant, markdown_lines, render, summarize

VIEW = VIEWS["candidates"]


def contestants(users: np.ndarray) -> list[Contestant]:
    """Return two of 60 rows: the second has ten rows of each of six users first, the other none."""
    return [Contestant("other", np.full(60, 2), users), Contestant("model", np.ones(60, int), users)]


def shown(users: np.ndarray) -> str:
    return render(contestants(users), chance=0.05, seconds={}, notes=["a note"])


def test_a_table_of_users_with_several_rows_says_so() -> None:
    users = np.repeat(np.arange(6), 10)
    lines = shown(users).splitlines()
    assert "60 rows of 6 users: a user's are one observation in intervals and tests" in lines
    against = "model against other: first in 60 rows that the other misses, 0 the other way round"
    assert lines[-2:] == [f"{against}, p by users = 0.031", "a note"]
    figures = [summarize(one) for one in contestants(users)]
    assert [(one["rows"], one["users"]) for one in figures] == [(60, 6)] * 2
    # Where all rows agree each user counts once: z^2 / (6 + z^2).
    assert f"{figures[0]['hr_at_1_high']:.4f}" == "0.3903"
    assert all(line.endswith("| 60 of 6 users |") for line in markdown_lines(figures, VIEW)[2:])


def test_a_table_of_users_with_a_row_each_does_not() -> None:
    text = shown(each_alone(60))
    assert "users" not in text
    assert text.splitlines()[-2].endswith("McNemar p = 1.7e-18")
    figures = [summarize(one) for one in contestants(each_alone(60))]
    assert all(line.endswith("| 60 |") for line in markdown_lines(figures, VIEW)[2:])


def test_reports_that_do_not_count_users_are_shown_as_they_were() -> None:
    figures = [summarize(one) for one in contestants(np.repeat(np.arange(6), 10))]
    for line in figures:
        del line["users"]
    assert all(line.endswith("| 60 |") for line in markdown_lines(figures, VIEW)[2:])
