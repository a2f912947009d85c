"""Objectives by name and by the dotted path of a user's own class."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.evaluation.statistics import compare_runs
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.names import OBJECTIVES, REFERENCE_FREE
from recbole_dynamicpo.objectives.preference import preference_loss
from recbole_dynamicpo.objectives.strategies import (
    SDPO,
    STRATEGIES,
    Objective,
    RecPO,
    find_objective,
    source_digest,
)
from recbole_dynamicpo.storage import load_json

from ..helpers.made_extras import made_extras, with_ratings
from ..test_examples import EXAMPLES
from ..training.test_dense_rows import DENSE

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
    recpo = find_objective("recpo", {"rating_margin": 0.25, "beta": 3.0})
    assert isinstance(recpo, RecPO)
    assert recpo.rating_margin == 0.25


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


RATED = """
import torch
from recbole_dynamicpo.objectives import Objective, sdpo_loss


class Rated(Objective):
    needs = ("ratings", "lengths")
    reads = ("beta", "target_margin")

    def __init__(self, beta=1.0, target_margin=0.0):
        self.margin = target_margin / beta

    def loss(self, policy, reference, mask, extras):
        assert reference.shape == extras["ratings"].shape == extras["lengths"].shape
        gaps = (policy - reference) / extras["lengths"].clamp(min=1)
        margin = self.margin * extras["ratings"][:, :1]
        return sdpo_loss(gaps[:, 0], gaps[:, 1:], extras["beta"], mask, margin)
"""


@pytest.mark.parametrize("dense", [False, True])
def test_an_own_class_that_needs_more_trains_is_loaded_and_compared(
    dense: bool, toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rated.py").write_text(RATED, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rated", raising=False)
    settings = {**with_ratings(toy_settings), **(DENSE if dense else {}), "compare_stages": False}
    folders = []
    for number, objective in enumerate(("dmpo", "rated.Rated")):
        own = {**settings, "objective": objective, "checkpoint_dir": str(tmp_path / str(number))}
        run("DynamicPO", "toy", overrides=own)
        folders.append(next((tmp_path / str(number)).iterdir()))
    loaded = [load_recommender(folder / "preference") for folder in folders]
    scores = [
        [item.score for item in one.rank(["amber bear"], ["ocean pearl", "iron kite"])] for one in loaded
    ]
    assert scores[0] != scores[1]
    comparison = compare_runs(*folders)
    assert comparison.n == 12
    identity = load_json(folders[1] / "run.json")
    assert identity["fact.objective"] == source_digest("rated.Rated")
    assert "fact.objective" not in load_json(folders[0] / "run.json")


def test_the_code_of_an_own_class_is_digested(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module and those of its bases, ours left out."""
    assert [source_digest(name) for name in OBJECTIVES] == [None] * len(OBJECTIVES)
    file = EXAMPLES / "own_objective.py"
    assert source_digest(own) == hashlib.sha256(file.read_bytes() + b"\0").hexdigest()
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "below_it.py").write_text("from own_objective import Hinge\nclass Mine(Hinge):\n    pass\n")
    (tmp_path / "beside_it.py").write_text("from below_it import Mine\n")
    found = source_digest("beside_it.Mine")
    for name in ("below_it", "beside_it"):
        path = tmp_path / f"{name}.py"
        path.write_text(path.read_text() + "# another word\n")
        assert source_digest("beside_it.Mine") != found
        found = source_digest("beside_it.Mine")
    with pytest.raises(SettingsError, match="cannot be imported"):
        source_digest("nowhere.Loss")


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
