"""The audit finds each planted artefact, and nothing in clean data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recbole_dynamicpo.data.give_away import Found, GiveAway, audit_give_away
from recbole_dynamicpo.data.rules import Rows

from ..helpers.made_rows import ITEMS, made_rows


@cache
def found(artefact: str, seed: int = 1) -> GiveAway:
    held = {"valid": made_rows(250, seed + 100, artefact), "test": made_rows(250, seed + 200, artefact)}
    return audit_give_away(made_rows(3000, seed, artefact), held, ITEMS, seed=4)


def rules_found(audit: GiveAway) -> set[str]:
    return {name for name, rule in audit.splits["all"].items() if rule.is_finding()}


@pytest.mark.parametrize("seed", range(5))
def test_clean_data_raise_no_alarm(seed: int) -> None:
    audit = found("", seed)
    assert rules_found(audit) == set()
    assert [line for line in audit.findings() if "held-out rows stand in training" not in line] == []
    assert audit.order_agreement == pytest.approx(audit.order_coin, abs=0.03)


@pytest.mark.parametrize(
    ("artefact", "rules"),
    [
        ("place", {"place_rule"}),
        ("company", {"company_rule", "place_and_company_rule"}),
        ("order", {"order_rule"}),
    ],
)
def test_a_planted_artefact_is_found(artefact: str, rules: set[str]) -> None:
    audit = found(artefact)
    assert rules <= rules_found(audit)
    lines = "\n".join(audit.findings())
    assert all(rule.replace("_", " ") in lines for rule in rules)


def test_an_order_is_found_although_rows_are_shuffled_inside() -> None:
    """Pairs within rows are those of a coin, but for the pairs with the target, which agree."""
    audit = found("set order")
    assert audit.order_agreement is not None
    assert audit.order_coin is not None
    assert audit.order_agreement < audit.order_coin + 0.1
    assert audit.target_order_agreement == 1.0
    assert any("pairs of history and target follow one direction" in line for line in audit.findings())


def test_overlapping_rows_of_one_user_count_once() -> None:
    """One user's drawn order, seen in ten rows, is no order of all users."""
    rows = made_rows(300, 1)
    same = [np.random.default_rng(n // 10).permutation(np.arange(1, 12)) for n in range(300)]
    targets = np.array([order[10] for order in same])
    rows = Rows([order[:10] for order in same], np.zeros((300, 0), np.int64), targets, np.arange(300) // 10)
    audit = audit_give_away(rows, {}, ITEMS, seed=1)
    assert audit.order_agreement == pytest.approx(audit.order_coin, abs=0.05)
    assert (audit.splits, audit.one_order, audit.findings()) == ({}, False, [])


def test_repeated_rows_and_targets_in_histories_are_counted() -> None:
    train, held = made_rows(50, 1), made_rows(10, 2)
    held.histories[0], held.targets[0] = train.histories[3], train.targets[3]
    held.candidates[0, 0] = train.targets[3]
    held.histories[1] = np.append(held.histories[1], held.targets[1])
    audit = audit_give_away(train, {"valid": held, "test": made_rows(10, 3)}, ITEMS, seed=1)
    assert (audit.repeated, audit.target_in_history) == (1, 1)
    text = "\n".join(audit.findings())
    assert "1 of 20 held-out rows stand in training too" in text
    assert "1 of 20 held-out rows have their target in their own history" in text


def test_ties_in_time_are_a_finding() -> None:
    rows = made_rows(50, 1)
    held = {"valid": made_rows(9, 2), "test": made_rows(9, 3)}
    assert any(
        "50% of a user's neighbours" in x for x in audit_give_away(rows, held, ITEMS, 1, 0.5).findings()
    )
    assert audit_give_away(rows, held, ITEMS, 1, 0.01).findings() == []


def test_the_json_has_the_named_figures() -> None:
    audit = found("place")
    said = json.loads(json.dumps(audit.to_json()))
    orders = {"order_agreement", "order_coin", "target_order_agreement", "time_ties"}
    assert set(said) == {"valid", "test", "all", *orders}
    assert said["time_ties"] is None
    for split, rows in (("valid", 250), ("test", 250), ("all", 500)):
        assert said[split]["place_rule"]["rows"] == rows
        rules = {"place_rule", "company_rule", "place_and_company_rule", "order_rule"}
        assert set(said[split]) == {*rules, "targets_seen"}
        assert all(set(said[split][rule]) == {"hr_at_1", "rows"} for rule in rules)
        assert 0 <= said[split]["targets_seen"] <= 1
    halves = [said[split]["place_rule"]["hr_at_1"] for split in ("valid", "test")]
    assert said["all"]["place_rule"]["hr_at_1"] == pytest.approx(sum(halves) / 2)


def test_the_interval_of_chance_by_hand() -> None:
    """Of 4 rows at a chance of none, none; of 8 at 1/2 +- 2 x .177, all is possible."""
    assert Found(0.0, 0.0, 4).interval() == (0.0, 0.0)
    assert Found(0.0, 0.5, 8).interval() == (0.0, 1.0)
    low, high = Found(0.0, 0.05, 2000).interval()
    share = 0.05 + 2 * (0.05 * 0.95 / 2000) ** 0.5
    tail = sum(_binomial(2000, k, share) for k in range(round(high * 2000) + 1, 2001))
    assert tail <= 1e-3 < tail + _binomial(2000, round(high * 2000), share)
    assert low < 0.05 < high
    assert not Found(high, 0.05, 2000).is_finding()
    assert Found(high + 1 / 2000, 0.05, 2000).is_finding()


def _binomial(n: int, k: int, p: float) -> float:
    return math.exp(
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )


def test_an_order_without_a_circle_is_said() -> None:
    (line,) = [line for line in found("order").findings() if line.startswith("order: ")]
    assert "; one order holds all neighbours: targets are the next titles of one global order" in line
    assert not found("").one_order


def test_an_order_in_time_may_be_that_of_a_series_and_is_said_in_one_line() -> None:
    """What was measured stays; that there is nothing of users in it is not known then."""
    untimed = found("order")
    lines = {timed: replace(untimed, in_time=timed).findings() for timed in (False, True)}
    assert [line[:7] for line in lines[True]].count("order: ") == 1
    (line,) = [line for line in lines[True] if "history_order" in line]
    (other,) = [line for line in lines[False] if "history_order" in line]
    assert line.split(": ")[:2] == other.split(": ")[:2]
    for part in (
        "by the order rule on 500 held-out rows",
        "of pairs within histories",
        "of pairs of history and target",
    ):
        assert part in line
    assert "such as that of a series, looks the same" in line
    assert "nothing to do with users" not in line
    assert "not time" not in line


def test_the_table_says_every_figure() -> None:
    text = found("place").table()
    for word in (
        "place rule",
        "company rule",
        "place and company rule",
        "order rule",
        "targets seen",
        "a coin",
    ):
        assert word in text
    assert "of 500 held-out rows:" in text
