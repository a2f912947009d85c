"""One optimizer step, and the reference's log-probabilities that its rows need."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..dataset.columns import ROW_ID, TOKENS, losses_of
from ..errors import NumericsError
from ..objectives.diagnostics import BETA_BINS, Diagnostics, merge_diagnostics
from ..scoring.token_budget import Shortage, TokenBudget, if_memory_allows
from .model import DynamicPO

logger = logging.getLogger(__name__)


def take_step(
    model: DynamicPO,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Interaction],
    clip: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Take one optimizer step over ``batches`` and return its numbers, read from the device once.

    Batches that exceed the model's token budget pass it in parts; where memory runs out, the budget is
    halved and the step begun again.

    Args:
        model: in the stage to train.
        optimizer: over the adapter, its learning rate set.
        batches: accumulated into one step.
        clip: arguments of ``clip_grad_norm_``; None does not clip.

    Raises:
        NumericsError: the loss or the gradient is not finite; the weights stay as they were.
    """
    model.train()
    while True:
        parts = [part for batch in batches for part in _parts(batch, model.budget)]
        started = time.perf_counter()
        optimizer.zero_grad()
        done = if_memory_allows(partial(_backward, model, parts))
        if not isinstance(done, Shortage):
            found, tokens = done
            break
        if not model.budget.shrink(*model.pass_size, "out of memory"):
            raise done.error()
    norm = clip_grad_norm_(model.policy.trainable(), **(clip or {"max_norm": float("inf")}))
    loss_value, norm_value, *rest = torch.cat([found[0], norm[None], *found[1:]]).tolist()
    if not np.isfinite([loss_value, norm_value]).all():
        rows = sorted(int(row) for batch in batches for row in batch[ROW_ID])
        raise NumericsError(f"loss {loss_value}, gradient norm {norm_value} in rows {rows}")
    optimizer.step()
    values: dict[str, Any] = {"loss": loss_value, "grad_norm": norm_value}
    values["rows"] = sum(map(losses_of, parts))
    values["tokens_per_second"] = tokens / (time.perf_counter() - started)
    if rest:
        values.update(zip(Diagnostics._fields, rest, strict=False))
        values["beta_counts"] = [int(count) for count in rest[-BETA_BINS:]]
    return values


def summary(values: Mapping[str, Any]) -> str:
    """Return what a progress bar shows of the numbers of a step."""
    text = f"loss {values['loss']:.3f}"
    if "violation_rate" in values:
        text += f", violations {values['violation_rate']:.2f}, wins {values['reward_win_rate']:.2f}"
    return text


def _parts(batch: Interaction, budget: TokenBudget) -> list[Interaction]:
    """Return a batch in parts that fit the budget; its rows are sorted by size."""
    groups = budget.split(batch[TOKENS].tolist())
    return [batch] if len(groups) == 1 else [batch[group] for group in groups]


def _backward(model: DynamicPO, parts: Sequence[Interaction]) -> tuple[list[Tensor], int]:
    """Add up the gradients of the mean row loss over all parts.

    Returns:
        The loss (1,), and in the preference stage the diagnostics and the betas' histogram, all float32
        on the device; and the tokens that passed.
    """
    sizes = list(map(losses_of, parts))
    losses, diagnostics, betas, tokens = [], [], [], 0
    for part in parts:
        loss = model.row_losses(part).sum() / sum(sizes)
        loss.backward()
        losses.append(loss.detach())
        tokens += model.tokens
        model.budget.check(*model.pass_size)
        if model.stage == "preference" and model.diagnostics is not None:
            diagnostics.append(model.diagnostics)
            betas.append(model.beta_counts)
    found = [torch.stack(losses).sum()[None]]
    if diagnostics:
        found += [torch.stack(merge_diagnostics(diagnostics, sizes)), torch.stack(betas).sum(dim=0)]
    return [part.float() for part in found], tokens
