"""From rows to losses: what the host lays out goes over, and after that nothing waits for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_dynamicpo.dataset.columns import REFERENCE_LOGPS, SCORED
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.likelihoods.catalogue import CatalogueLikelihood
from recbole_dynamicpo.likelihoods.losses import (
    lay_out_pairs,
    lay_out_positives,
    preference_losses,
    scored_pairs,
    sft_losses,
)
from recbole_dynamicpo.objectives.diagnostics import merge_diagnostics
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.rows import scored_columns

from ..helpers.pretended_device import pretended_device

CATALOGUE = {
    "likelihood": "catalogue", "prompt": "sequence", "catalogue_prior": ["popularity", "transitions"],
    "lm_scale": 0.7, "centre": True, "max_history": 8,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "vocabulary": {},
    "catalogue": CATALOGUE,
    "windows": {**CATALOGUE, "positions": "all", "window": 4, "sft_rows": 0, "preference_rows": 0},
}


def model_of(settings: dict[str, Any], **more: Any) -> DynamicPO:
    model: DynamicPO = load(PlainConfig("DynamicPO", "toy", [], {**settings, **more})).model
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.policy.trainable():
            if weight.dim() > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    model.policy.freeze_reference()
    return model


def rows_of(model: DynamicPO, stage: str) -> Interaction:
    """Return a few rows, with all that the stage asks for."""
    if model.settings.positions == "all":
        plan = next(plan for plan in plan_stages(model.settings) if plan.name == stage)
        rows = next(DenseRows(model, plan).batches(0, 0))[0]
        if stage == "preference":
            assert isinstance(model.likelihood, CatalogueLikelihood)
            found = model.likelihood.windows.reference_logps(rows, model.settings.window)
            rows.update(Interaction({REFERENCE_LOGPS: found}))
        return rows
    rows = model.dataset.stage_rows(4)
    with model.speaking_as("reference"):
        rows.update(Interaction({REFERENCE_LOGPS: model.candidate_logps(rows)}))
    numbers = model.dataset.title_numbers.numpy()
    columns = scored_columns(rows, model.ITEM_ID, numbers, model.settings.num_negatives, 1, 0)
    rows.update(Interaction({SCORED: columns}))
    return rows


def loss_of(model: DynamicPO, rows: Interaction, stage: str) -> Tensor:
    if stage == "sft":
        laid_out = lay_out_positives(model.likelihood, rows, model.POS_ITEM_ID)
        return sft_losses(model.likelihood, laid_out).mean()
    titles, asks = model.dataset.title_numbers, model.objective.needs_reference
    laid_out = lay_out_pairs(model.likelihood, rows, titles, model.extras, asks=asks)
    scored = scored_pairs(model.likelihood, laid_out)
    result = preference_losses(scored, model.objective, model.settings)
    merged = merge_diagnostics([result.diagnostics, result.diagnostics], [1, 3], 4)
    return result.loss.mean() + 0 * torch.stack(merged).sum().float()


@pytest.mark.parametrize("stage", ["sft", "preference"])
@pytest.mark.parametrize("way", WAYS)
def test_the_host_waits_for_nothing(way: str, stage: str, toy_settings: dict[str, Any]) -> None:
    """Forward, boundary, objective, diagnostics and backward; the numbers are those without the watch."""
    model = model_of({**toy_settings, **WAYS[way]})
    model.train()
    rows = rows_of(model, stage)
    wanted = loss_of(model, rows, stage)
    wanted.backward()
    gradients = [weight.grad for weight in model.policy.trainable()]
    model.policy.zero_grad()
    with pretended_device(model.policy) as device:
        loss = loss_of(model, rows, stage)
        loss.backward()
    assert device.waits == []
    assert device.brought > 0
    assert device.has(loss)
    assert torch.equal(loss, wanted)
    for weight, gradient in zip(model.policy.trainable(), gradients, strict=True):
        assert (weight.grad is None) == (gradient is None)
        if gradient is not None and weight.grad is not None:
            assert device.has(weight.grad)
            assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("objective", ["dmpo", "sdpo", "mppo", "listwise", "simpo"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_no_objective_waits(objective: str, dynamic: bool, toy_settings: dict[str, Any]) -> None:
    model = model_of(toy_settings, objective=objective, dynamic=dynamic)
    rows = rows_of(model, "preference")
    with pretended_device(model.policy) as device:
        loss_of(model, rows, "preference").backward()
    assert device.waits == []


@pytest.mark.parametrize("way", ["vocabulary", "catalogue"])
def test_a_model_that_shares_no_prompt_and_has_its_own_head(way: str, toy_settings: dict[str, Any]) -> None:
    """Of sequences with padding transformers asks whether there is any: all that is left."""
    model = model_of({**toy_settings, **WAYS[way]})
    for name in ("shares_prompt", "plain_head"):
        object.__setattr__(model.policy.backbone, name, False)
    rows = rows_of(model, "preference")
    with pretended_device(model.policy) as device:
        loss_of(model, rows, "preference").backward()
    what = {wait.partition(":")[0] for wait in device.waits}
    assert what == {"aten._local_scalar_dense.default at masking_utils.py"}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: np.asarray(x),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.unique(),
        lambda x: x + torch.from_numpy(np.ones(3, np.float32)),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
    ],
)
def test_the_watch_sees_what_waits(wait: Any) -> None:
    from recbole_dynamicpo.language_model.packed import on_device

    x = torch.tensor([1.0, 2.0, 3.0])
    with pretended_device() as device:
        wait(x)  # on the host all is free
        there = on_device(x, torch.device("cpu"))
        (there * 2 + torch.zeros(3) + torch.arange(3)).sum()
        assert device.waits == []
        wait(there)
    assert device.waits
