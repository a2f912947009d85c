"""One optimizer step: the mean loss over its rows, whichever process has them.

Nothing in it waits for the device: what the host has to decide (is memory short, did a process fail, is the
run to stop) it knows without, and the numbers of a step are read when the next one is on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..dataset.columns import losses_of
from ..errors import PeerError
from ..interrupt import StopRequest
from ..language_model.decoder import recompute_layers
from ..language_model.packed import Moment
from ..likelihoods.losses import LaidOut
from ..likelihoods.vocabulary import PassSize
from ..objectives.diagnostics import BETA_BINS, Diagnostics, merge_diagnostics
from ..parallel import Processes, here
from ..scoring.token_budget import Shortage, if_memory_allows
from .ahead import Learner, Ready
from .numbers import HIGH, LOW, Numbers

logger = logging.getLogger(__name__)


class Taken(NamedTuple):
    """What a step says of itself."""

    numbers: Numbers  # for the journal, on their way from the device
    stop: bool  # whether a process had been asked to end when all had their gradients


class _Told(NamedTuple):
    """What a process tells the others of its share before gradients are added up; the host knows it all."""

    short: bool  # of memory; all try again
    failed: bool
    asked: bool  # to end
    tokens: int
    gradients: list[bool]  # whether there is one, of each parameter


class _Own(NamedTuple):
    """What the rows of this process say, on the device."""

    loss: Tensor  # 0-d, their part of the mean over all rows
    tokens: int
    diagnostics: Tensor | None = None  # (D,) their part of the means
    extremes: Tensor | None = None  # (2,) least and greatest beta
    betas: Tensor | None = None  # (BETA_BINS,)


def take_step(
    model: Learner,
    optimizer: torch.optim.Optimizer,
    ready: Ready,
    clip: Mapping[str, Any] | None,
    stop: StopRequest | None = None,
    give_up: Callable[[], object] = lambda: None,
) -> Taken:
    """Take one optimizer step; its numbers are read later, which is where a loss that is not finite shows.

    Each process of the run takes a share of the rows; which rows a step has does not depend on how many
    processes there are. Batches that exceed the model's token budget pass it in parts; where memory runs
    out, the budget is halved and the step begun again by all.

    Args:
        model: in the stage to train.
        optimizer: over the adapter, its learning rate set.
        ready: the rows, accumulated into one step.
        clip: arguments of ``clip_grad_norm_``; None does not clip.
        stop: of this process.
        give_up: called before an error is raised, after which the weights are as they were.

    Raises:
        PeerError: another process failed.
    """
    try:
        taken = _gradients(model, optimizer, ready, clip, stop)
    except Exception:
        give_up()
        raise
    optimizer.step()
    return taken


def _gradients(
    model: Learner,
    optimizer: torch.optim.Optimizer,
    ready: Ready,
    clip: Mapping[str, Any] | None,
    stop: StopRequest | None,
) -> Taken:
    """Give the adapter the gradients of a step, the same in every process; see ``take_step``."""
    model.train()
    processes, adapter = here(), model.policy.trainable()
    total, begun = sum(map(losses_of, ready.batches)), Moment(adapter[0].device)
    while True:
        optimizer.zero_grad()
        done = _attempt(model, ready, total)
        told = processes.gather(_told(done, adapter, stop))
        if any(one.failed for one in told):
            raise done if isinstance(done, Exception) else PeerError("another process of this run failed")
        if not any(one.short for one in told):
            break
        begun = Moment(adapter[0].device)
    assert isinstance(done, _Own)
    numbers = _add_up(adapter, _numbers(done, model, processes), processes)
    norm = clip_grad_norm_(adapter, **(clip or {"max_norm": float("inf")}))
    for number, parameter in enumerate(adapter):
        if not any(one.gradients[number] for one in told):
            parameter.grad = None
    found = Numbers(torch.cat([norm[None], numbers]), begun, sum(one.tokens for one in told), ready.batches)
    return Taken(found, any(one.asked for one in told))


def _told(done: _Own | Exception | None, adapter: Sequence[nn.Parameter], stop: StopRequest | None) -> _Told:
    return _Told(
        short=done is None,
        failed=isinstance(done, Exception),
        asked=stop is not None and stop.received,
        tokens=done.tokens if isinstance(done, _Own) else 0,
        gradients=[parameter.grad is not None for parameter in adapter],
    )


def _attempt(model: Learner, ready: Ready, total: int) -> _Own | Exception | None:
    """Return what the rows of this process say; None where they are to be tried again in smaller passes."""
    begun: list[LaidOut] = []
    try:
        done = if_memory_allows(partial(_backward, model, ready.passes(), total, begun))
    except Exception as error:  # the other processes are told of it before it is raised
        return error
    if not isinstance(done, Shortage):
        return done
    return None if _makes_room(model, begun[-1].asked.size) else done.error()


def _makes_room(model: Learner, size: PassSize) -> bool:
    """Let the next passes take less memory than one that ran out of it; say whether that helps.

    Activations are computed again before passes get smaller, since the device is then kept busy.
    """
    policy = model.policy
    if policy.backbone.recomputes is None and recompute_layers(
        policy.peft.get_base_model(), policy.bare_layers
    ):
        logger.warning(
            "out of memory with %d tokens in one pass: now computing activations again", size.padded
        )
        return True
    return model.budget.shrink(size.parts, size.padded, "out of memory")


def _backward(model: Learner, passes: Sequence[LaidOut], total: int, begun: list[LaidOut]) -> _Own:
    """Add up the gradients of some rows' part of the mean over all ``total`` losses."""
    losses, diagnostics, betas, tokens = [], [], [], 0
    for laid_out in passes:
        begun.append(laid_out)
        loss = model.losses_of(laid_out).sum() / total
        loss.backward()
        losses.append(loss.detach())
        size = laid_out.asked.size
        tokens += size.tokens
        model.budget.check(size.parts, size.padded)
        if model.stage == "preference" and model.diagnostics is not None:
            diagnostics.append(model.diagnostics)
            betas.append(model.beta_counts)
    loss = torch.stack(losses).sum() if losses else torch.zeros((), device=model.policy.device)
    if not diagnostics:
        return _Own(loss, tokens)
    merged = torch.stack(merge_diagnostics(diagnostics, [one.losses for one in passes], total))
    extremes = torch.stack([merged[LOW], merged[HIGH]])  # a list as an index would be copied over
    return _Own(loss, tokens, merged, extremes, torch.stack(betas).sum(dim=0))


def _numbers(own: _Own, model: Learner, processes: Processes) -> Tensor:
    """Return (n,) numbers of a step that add up over processes: each has places of its own for extremes."""
    device = own.loss.device
    found = [own.loss[None].float()]
    if model.stage == "preference":
        none = torch.zeros(len(Diagnostics._fields) + BETA_BINS, device=device)
        extremes = torch.zeros(processes.world, 2, device=device)
        if own.extremes is None:
            extremes[processes.rank, 0], extremes[processes.rank, 1] = torch.inf, -torch.inf
        else:
            extremes[processes.rank] = own.extremes
        parts = [own.diagnostics, own.betas]
        found += [none] if own.diagnostics is None else [part.float() for part in parts if part is not None]
        found.append(extremes.flatten())
    return torch.cat(found)


def _add_up(adapter: Sequence[nn.Parameter], numbers: Tensor, processes: Processes) -> Tensor:
    """Add gradients and numbers up over all processes, in one exchange; return the numbers."""
    if processes.alone:
        return numbers
    gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in adapter]
    flat = torch.cat([*gradients, numbers])  # in the widest of their dtypes
    processes.add(flat)
    added: Tensor
    sizes = [parameter.numel() for parameter in adapter]
    *summed, added = flat.split([*sizes, len(numbers)])
    for parameter, gradient in zip(adapter, summed, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
    return added
