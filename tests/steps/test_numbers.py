"""The numbers of a step: read when the next one is on its way, named, refused where they are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_dynamicpo.dataset.columns import ROW_ID
from recbole_dynamicpo.errors import NumericsError
from recbole_dynamicpo.language_model.packed import Moment, Sent
from recbole_dynamicpo.objectives.diagnostics import BETA_BINS, Diagnostics
from recbole_dynamicpo.steps.numbers import Numbers, ReadLater, summary

CPU = torch.device("cpu")


def numbers(*values: float, rows: tuple[int, ...] = (7, 3)) -> Numbers:
    batch = Interaction({ROW_ID: torch.tensor(rows)})
    return Numbers(torch.tensor(values), Moment(CPU), 10, [batch])


class Told:
    """What is said of steps, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[int, dict[str, Any]]] = []
        self.later = ReadLater("sft", Path("run/checkpoint"), lambda *said: self.said.append(said))

    def steps(self) -> list[int]:
        return [step for step, _ in self.said]


def test_each_step_is_told_one_step_later() -> None:
    told = Told()
    for step in (1, 2, 3):
        told.later.took(step, numbers(0.5, float(step)), {"learning_rate": 0.1 * step})
        assert told.steps() == [*range(1, step)]
    told.later.settle()
    told.later.settle()  # there is nothing left
    assert told.steps() == [1, 2, 3]
    for step, values in told.said:
        assert values["loss"] == step
        assert values["grad_norm"] == 0.5
        assert values["rows"] == 2
        assert values["learning_rate"] == pytest.approx(0.1 * step)
        assert values["tokens_per_second"] > 0


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.inf)])
def test_what_is_not_finite_names_its_own_step_and_rows(bad: tuple[float, float]) -> None:
    told = Told()
    told.later.took(4, numbers(*bad), {})
    with pytest.raises(
        NumericsError, match=r"^stage sft, step 4: .* in rows \[3, 7\]; stopped, the last .*run/checkpoint$"
    ):
        told.later.took(5, numbers(0.5, 1.0), {})
    told.later.settle()  # step 5 was taken from spoilt weights: nothing of it is told
    assert told.said == []


def test_numbers_of_a_preference_step_by_hand() -> None:
    """Of two processes: betas' sum is divided by the boundary's size, extremes are the outermost."""
    means = dict.fromkeys(Diagnostics._fields, 0.25) | {"boundary_size": 2.0, "beta_mean": 3.0}
    counts = [float(number) for number in range(BETA_BINS)]
    found = numbers(0.5, 1.0, *means.values(), *counts, 0.9, 1.2, math.inf, -math.inf).read()
    assert found["beta_mean"] == 1.5
    assert (found["beta_min"], found["beta_max"]) == pytest.approx((0.9, 1.2))
    assert found["beta_counts"] == [*range(BETA_BINS)]
    assert found["violation_rate"] == 0.25
    assert summary(found) == "loss 1.000, violations 0.25, wins 0.25"
    assert summary({"loss": 1.0}) == "loss 1.000"


def test_what_is_sent_is_what_was_there() -> None:
    there = torch.ones(3, requires_grad=True) * 2
    sent = Sent(there).read()
    assert not sent.requires_grad
    assert sent.tolist() == [2.0, 2.0, 2.0]
    before = Moment(CPU)
    assert Moment(CPU).seconds_since(before) >= 0
