"""One optimizer step: the mean loss over its rows, whichever process has them, and what it says of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..dataset.columns import ROW_ID, TOKENS, losses_of
from ..errors import NumericsError, PeerError
from ..interrupt import StopRequest
from ..objectives.diagnostics import BETA_BINS, Diagnostics, merge_diagnostics
from ..parallel import Processes, here
from ..scoring.token_budget import Shortage, TokenBudget, if_memory_allows
from .model import DynamicPO

logger = logging.getLogger(__name__)

_LOW, _HIGH = Diagnostics._fields.index("beta_min"), Diagnostics._fields.index("beta_max")


class Taken(NamedTuple):
    """What a step says of itself."""

    values: dict[str, Any]  # for the journal
    stop: bool  # whether a process had been asked to end when all had their gradients


class _Own(NamedTuple):
    """What the rows of this process say, on the device."""

    loss: Tensor  # 0-d, their part of the mean over all rows
    tokens: int
    diagnostics: Tensor | None = None  # (D,) their part of the means
    extremes: Tensor | None = None  # (2,) least and greatest beta
    betas: Tensor | None = None  # (BETA_BINS,)


def take_step(
    model: DynamicPO,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Interaction],
    clip: Mapping[str, Any] | None,
    stop: StopRequest | None = None,
    give_up: Callable[[], object] = lambda: None,
) -> Taken:
    """Take one optimizer step over ``batches`` and return its numbers, read from the device once.

    Each process of the run takes a share of the rows; which rows a step has does not depend on how many
    processes there are. Batches that exceed the model's token budget pass it in parts; where memory runs
    out, the budget is halved and the step begun again by all.

    Args:
        model: in the stage to train.
        optimizer: over the adapter, its learning rate set.
        batches: accumulated into one step.
        clip: arguments of ``clip_grad_norm_``; None does not clip.
        stop: of this process.
        give_up: called before an error is raised after which the weights are as they were.

    Raises:
        NumericsError: the loss or the gradient is not finite.
        PeerError: another process failed.
    """
    try:
        taken = _gradients(model, optimizer, batches, clip, stop)
    except Exception:
        give_up()
        raise
    optimizer.step()
    return taken


def _gradients(
    model: DynamicPO,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Interaction],
    clip: Mapping[str, Any] | None,
    stop: StopRequest | None,
) -> Taken:
    """Give the adapter the gradients of a step, the same in every process; see ``take_step``."""
    model.train()
    processes, adapter = here(), model.policy.trainable()
    total, share = sum(map(losses_of, batches)), own_share(batches, processes)
    short = 1.0
    while short:
        started = time.perf_counter()
        optimizer.zero_grad()
        done = _attempt(model, share, total)
        flags = [done is None, isinstance(done, Exception), stop is not None and stop.received]
        numbers, there = _add_up(adapter, _numbers(done, model, flags, processes), processes)
        norm = clip_grad_norm_(adapter, **(clip or {"max_norm": float("inf")}))
        read = torch.cat([norm[None], numbers, there]).tolist()
        size, loss, tokens, short, failed, asked, *rest = read[: 1 + len(numbers)]
        if failed:
            raise done if isinstance(done, Exception) else PeerError("another process of this run failed")
    for parameter, has_gradient in zip(adapter, read[1 + len(numbers) :], strict=False):
        if not has_gradient:
            parameter.grad = None
    if not np.isfinite([loss, size]).all():
        rows = sorted(int(row) for batch in batches for row in batch[ROW_ID])
        raise NumericsError(f"loss {loss}, gradient norm {size} in rows {rows}")
    values: dict[str, Any] = {"loss": loss, "grad_norm": size, "rows": total}
    values["tokens_per_second"] = tokens / (time.perf_counter() - started)
    return Taken(values | (_diagnostics(rest) if rest else {}), bool(asked))


def summary(values: Mapping[str, Any]) -> str:
    """Return what a progress bar shows of the numbers of a step."""
    text = f"loss {values['loss']:.3f}"
    if "violation_rate" in values:
        text += f", violations {values['violation_rate']:.2f}, wins {values['reward_win_rate']:.2f}"
    return text


def own_share(batches: Sequence[Interaction], processes: Processes) -> Sequence[Interaction]:
    """Return the batches of this process's share of a step's rows, dealt by their tokens."""
    if processes.alone:
        return batches
    rows = batches[0] if len(batches) == 1 else cat_interactions(list(batches))
    own, most = processes.deal(rows[TOKENS].tolist()), max(map(len, batches))
    return [rows[torch.tensor(own[start : start + most])] for start in range(0, len(own), most)]


def _parts(batch: Interaction, budget: TokenBudget) -> list[Interaction]:
    """Return a batch in parts that fit the budget; its rows are sorted by size."""
    groups = budget.split(batch[TOKENS].tolist())
    return [batch] if len(groups) == 1 else [batch[group] for group in groups]


def _attempt(model: DynamicPO, share: Sequence[Interaction], total: int) -> _Own | Exception | None:
    """Return what the rows of this process say; None where they are to be tried again in smaller passes."""
    try:
        parts = [part for batch in share for part in _parts(batch, model.budget)]
        done = if_memory_allows(partial(_backward, model, parts, total))
    except Exception as error:  # the other processes are told of it before it is raised
        return error
    if not isinstance(done, Shortage):
        return done
    return None if model.budget.shrink(*model.pass_size, "out of memory") else done.error()


def _backward(model: DynamicPO, parts: Sequence[Interaction], total: int) -> _Own:
    """Add up the gradients of some rows' part of the mean over all ``total`` losses."""
    losses, diagnostics, betas, tokens = [], [], [], 0
    for part in parts:
        loss = model.row_losses(part).sum() / total
        loss.backward()
        losses.append(loss.detach())
        tokens += model.tokens
        model.budget.check(*model.pass_size)
        if model.stage == "preference" and model.diagnostics is not None:
            diagnostics.append(model.diagnostics)
            betas.append(model.beta_counts)
    loss = torch.stack(losses).sum() if losses else torch.zeros((), device=model.device)
    if not diagnostics:
        return _Own(loss, tokens)
    merged = torch.stack(merge_diagnostics(diagnostics, list(map(losses_of, parts)), total))
    return _Own(loss, tokens, merged, merged[[_LOW, _HIGH]], torch.stack(betas).sum(dim=0))


def _numbers(
    done: _Own | Exception | None, model: DynamicPO, flags: Sequence[bool], processes: Processes
) -> Tensor:
    """Return (n,) numbers of a step that add up over processes: each has places of its own for extremes."""
    device = model.policy.trainable()[0].device
    own = done if isinstance(done, _Own) else _Own(torch.zeros((), device=device), 0)
    counts = torch.tensor([own.tokens, *flags], dtype=torch.float32).to(device)
    found = [own.loss[None].float(), counts]
    if model.stage == "preference":
        none = torch.zeros(len(Diagnostics._fields) + BETA_BINS, device=device)
        parts = [own.diagnostics, own.betas]
        extremes = torch.zeros(processes.world, 2, device=device)
        extremes[processes.rank] = (
            torch.tensor([torch.inf, -torch.inf]) if own.extremes is None else own.extremes
        )
        found += [none] if own.diagnostics is None else [part.float() for part in parts if part is not None]
        found.append(extremes.flatten())
    return torch.cat(found)


def _add_up(adapter: Sequence[nn.Parameter], numbers: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """Add gradients and numbers up over all processes, in one exchange.

    Returns:
        The numbers, and how many processes have a gradient of each parameter; nothing of one process alone.
    """
    if processes.alone:
        return numbers, numbers[:0]
    there = torch.tensor([parameter.grad is not None for parameter in adapter])
    gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in adapter]
    flat = torch.cat([*gradients, there.to(numbers), numbers])  # in the widest of their dtypes
    processes.add(flat)
    sizes = [parameter.numel() for parameter in adapter]
    *summed, known, found = flat.split([*sizes, len(sizes), len(numbers)])
    for parameter, gradient in zip(adapter, summed, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
    return found, known


def _diagnostics(numbers: Sequence[float]) -> dict[str, Any]:
    """Return the diagnostics of a step from what follows the counts."""
    width = len(Diagnostics._fields)
    values: dict[str, Any] = dict(zip(Diagnostics._fields, numbers, strict=False))
    extremes = numbers[width + BETA_BINS :]
    values |= {"beta_min": min(extremes[::2]), "beta_max": max(extremes[1::2])}
    values["beta_mean"] /= values["boundary_size"]
    values["beta_counts"] = [int(count) for count in numbers[width : width + BETA_BINS]]
    return values
