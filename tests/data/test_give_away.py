"""The audit finds each planted artefact, and nothing in clean data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recbole_dynamicpo.data.give_away import GiveAway, audit_give_away

from ..helpers.made_rows import ITEMS, made_rows


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
    assert all(any(line.startswith(rule.replace("_", " ")) for line in audit.findings()) for rule in rules)


def test_an_order_is_found_although_rows_are_shuffled_inside() -> None:
    """The pairs within histories are those of a coin; those of history and target are not."""
    audit = found("set order")
    assert audit.order_agreement == pytest.approx(audit.order_coin, abs=0.02)
    assert audit.target_order_agreement == 1.0
    assert any("pairs of history and target follow one direction" in line for line in audit.findings())


def test_overlapping_rows_of_one_user_count_once() -> None:
    """One user's drawn order, seen in ten rows, is no order of all users."""
    rows = made_rows(300, 1)
    same = [np.random.default_rng(n // 10).permutation(np.arange(1, 12)) for n in range(300)]
    rows = type(rows)([order[:10] for order in same], rows.candidates, rows.targets, np.arange(300) // 10)
    audit = audit_give_away(rows, {"valid": rows, "test": rows}, ITEMS, seed=1)
    assert audit.order_agreement == pytest.approx(audit.order_coin, abs=0.05)


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
    assert set(said) >= {"valid", "test", "all", "order_agreement", "order_coin", "target_order_agreement"}
    assert said["time_ties"] is None
    for split, rows in (("valid", 250), ("test", 250), ("all", 500)):
        assert said[split]["place_rule"]["rows"] == rows
        assert {"place_rule", "company_rule", "place_and_company_rule", "order_rule"} < set(said[split])
        assert 0 <= said[split]["targets_seen"] <= 1
    halves = [said[split]["place_rule"]["hr_at_1"] for split in ("valid", "test")]
    assert said["all"]["place_rule"]["hr_at_1"] == pytest.approx(sum(halves) / 2)
