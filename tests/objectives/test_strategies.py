"""Objectives by name and by the dotted path of a user's own class."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.names import OBJECTIVES, REFERENCE_FREE
from recbole_dynamicpo.objectives.preference import preference_loss
from recbole_dynamicpo.objectives.strategies import SDPO, STRATEGIES, Objective, find_objective

from ..helpers.made_extras import made_extras
from ..test_examples import EXAMPLES

POLICY = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.5, -4.0, -2.5]], dtype=torch.float64)
REFERENCE = POLICY.flip(1) * 0.9


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "own_objective", raising=False)
    return "own_objective.Hinge"


def test_the_table_holds_every_name() -> None:
    assert tuple(STRATEGIES) == OBJECTIVES
    assert tuple(name for name, kind in STRATEGIES.items() if not kind.needs_reference) == REFERENCE_FREE
    assert isinstance(find_objective("sdpo"), SDPO)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weights_that_are_shown_are_autograds(name: str) -> None:
    """What a class says of its gradient in closed form, and what the base class finds."""
    strategy, mask = find_objective(name), torch.tensor([[True, True, False], [True, True, True]])
    extras = {**made_extras(POLICY), "beta": 0.7 * mask.to(POLICY.dtype)}
    closed = strategy.gradient_weight(POLICY, REFERENCE, mask, extras).to(POLICY.dtype)
    torch.testing.assert_close(closed, Objective.gradient_weight(strategy, POLICY, REFERENCE, mask, extras))


def test_an_own_class_by_hand(own: str) -> None:
    """beta 2, r_w - r_i = 1 and -1/8: max(0, 1 - 2) and 1 + 1/4; their mean is 5/8."""
    policy = torch.tensor([[-1.0, -2.0, -4.0]], dtype=torch.float64, requires_grad=True)
    reference = policy.detach() - torch.tensor([[0.5, -0.5, 0.625]], dtype=torch.float64)
    found = preference_loss(policy, reference, objective=own, dynamic=False, beta=2.0)
    assert found.loss.tolist() == [pytest.approx(0.625)]
    found.loss.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[pytest.approx(-1.0), 0.0, pytest.approx(1.0)]]
    whole = preference_loss(POLICY, REFERENCE, objective=own, beta=0.8, margin=2.0, clusters=2)
    assert (
        whole.boundary.tolist() == preference_loss(POLICY, REFERENCE, beta=0.8, clusters=2).boundary.tolist()
    )
    assert torch.isfinite(whole.diagnostics.boundary_gradient_share)


def test_an_own_class_trains_and_is_saved(own: str, toy_settings: dict[str, Any]) -> None:
    more = {**toy_settings, "compare_stages": False, "objective": own}
    result = run("DynamicPO", "toy", overrides=more)
    assert 0 <= result["test_result"]["hit@1"] <= 1
    (folder,) = Path(more["checkpoint_dir"]).iterdir()
    assert (folder / "preference" / "adapter_model.safetensors").is_file()
    assert own in (folder / "record.json").read_text()


class NoObjective:
    """A class that is none."""


class OneNumber(Objective):
    """Forgets the rows."""

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        return policy.sum()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmop", r"got 'dmop', wanted one of dmpo, mppo, .*, simpo \(did you mean 'dmpo'\?\)"),
        ("nowhere.Loss", r"'nowhere\.Loss' cannot be imported .*PYTHONPATH"),
        ("json.Loss", r"'json\.Loss' cannot be imported"),
        (f"{__name__}.NoObjective", r"is no subclass of recbole_dynamicpo\.objectives\.Objective"),
        ("os.system", "is no subclass of"),
    ],
)
def test_what_is_none_is_named_before_the_run(name: str, message: str, toy_settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message):
        find_objective(name)
    if "." in name:
        with pytest.raises(SettingsError, match=message):
            run("DynamicPO", "toy", overrides={**toy_settings, "objective": name})
        assert not Path(toy_settings["checkpoint_dir"]).exists()


def test_losses_are_a_number_a_row() -> None:
    with pytest.raises(ValueError, match=r"objective OneNumber: wanted losses \(2,\), got \(\)"):
        preference_loss(POLICY, REFERENCE, objective=OneNumber())


def test_no_code_is_named_over_a_wire() -> None:
    from recbole_dynamicpo.flows.parameters import make_job

    for given in ({"objective": "os.system"}, {"overrides": {"objective": "os.system"}}):
        with pytest.raises(SettingsError, match=r"objective: got 'os\.system', wanted one of dmpo"):
            make_job(**given)  # type: ignore[arg-type]
