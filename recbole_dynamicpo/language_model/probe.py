"""What a backbone can do, found out on a miniature of it, in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BackboneError
from .decoder import decoder_layers, lower_layers_once, mask_forms
from .logps import separate_logps, shared_logps
from .miniature import VOCABULARY, miniatures
from .packed import TokenBatch

logger = logging.getLogger(__name__)

# Largest difference per token, in nats, that rounding explains, by the precision of the probed weights.
TOLERANCE = 0.002
_ROUNDING = {torch.float64: TOLERANCE, torch.float32: TOLERANCE}
# What a model raises where it cannot do what is asked.
_CANNOT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Abilities(NamedTuple):
    """What a backbone can do.

    Attributes:
        shares_prompt: score all completions of a prompt in one pass.
        plain_head: its logits are its states times its output embedding, and nothing more.
        replays: several voices can share what the layers below the lowest adapter return.
        mask_forms: in which its decoder can take the mask of that pass, simplest first.
    """

    shares_prompt: bool
    plain_head: bool
    replays: bool
    mask_forms: tuple[str, ...] = ()


@torch.no_grad()
def find_abilities(model: Any, name: str) -> Abilities:
    """Return what ``model`` can do.

    Args:
        model: a Hugging Face causal language model, as loaded.
        name: what the user calls it, for messages.

    Raises:
        BackboneError: it cannot be scored at all.
    """
    drawn = miniatures(model)
    try:
        first = next(drawn)
    except _CANNOT as error:
        # Its own weights may hide what it cannot do, so that it is only asked whether it can be scored.
        logger.info("backbone '%s': no miniature of it (%s: %s)", name, type(error).__name__, error)
        probe(model, name)
        return Abilities(shares_prompt=False, plain_head=False, replays=False)
    found = [probe(first, name)]
    for small in drawn:  # a form that fits the first may not fit the next
        found.append(probe(small, name, found[-1].mask_forms))
    return Abilities(
        all(each.shares_prompt for each in found),
        all(each.plain_head for each in found),
        all(each.replays for each in found),
        found[-1].mask_forms,
    )


@torch.no_grad()
def probe(model: Any, name: str = "model", forms: tuple[str, ...] | None = None) -> Abilities:
    """Return what a model with weights like those of ``miniatures`` can do.

    Args:
        model: in float32 or wider; in a narrower type it is only asked whether it can be scored at all.
        name: what the user calls it, for messages.
        forms: of the mask that are tried; None: all that its configuration allows.

    Raises:
        BackboneError: it cannot be scored at all.
    """
    batch = _probe_batch(model)
    exact = model.dtype in _ROUNDING
    tolerance = _ROUNDING.get(model.dtype, 0.5)
    wanted = _alone(model, batch, name)

    def agrees(score: Callable[[], Tensor]) -> bool:
        return _gap(score, wanted, batch.completion_length) <= tolerance

    plain = exact and _has_matrix_head(model) and agrees(lambda: separate_logps(model, batch))
    if not plain and not agrees(lambda: separate_logps(model, batch, plain_head=False)):
        raise BackboneError(
            f"backbone '{name}' ({type(model).__name__}) cannot be scored: its head does not give the "
            "model's own log-probabilities of its decoder's states"
        )
    asked = () if not exact else mask_forms(model.config) if forms is None else forms
    shared = partial(shared_logps, model, batch, plain_head=plain)
    able = tuple(form for form in asked if agrees(partial(shared, form=form)))
    return Abilities(bool(able), plain, bool(able) and _replays(model, batch, plain, able[0]), able)


def _alone(model: Any, batch: TokenBatch, name: str) -> Tensor:
    """Return (B, C) log-probabilities of each completion alone, if the model is one that can give them."""
    try:
        wanted, reads_ahead = _one_by_one(model, batch), _reads_ahead(model, batch)
    except _CANNOT as error:
        raise BackboneError(
            f"backbone '{name}' ({type(model).__name__}) cannot be scored: {type(error).__name__}: "
            f"{str(error).strip().split(chr(10))[0]}"
        ) from error
    if reads_ahead:
        raise BackboneError(
            f"backbone '{name}' ({type(model).__name__}): its tokens see those behind them; wanted a causal "
            'language model (an encoder wants "is_decoder": true in its config.json)'
        )
    return wanted


def _has_matrix_head(model: Any) -> bool:
    head = model.get_output_embeddings()
    return isinstance(head, nn.Linear) and head.bias is None


def _probe_batch(model: Any) -> TokenBatch:
    """Return a small ragged batch of arbitrary tokens, with rows longer than ``WINDOW``."""
    head = model.get_output_embeddings()
    size = min(VOCABULARY, head.weight.shape[0]) if head is not None else VOCABULARY
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, size, (2, 7), generator=draw)
    completions = torch.randint(1, size, (2, 3, 5), generator=draw)
    completions[:, 1] = completions[:, 0]  # equal neighbours: one that sees the other is plainly off
    return TokenBatch(prompt, torch.tensor([7, 4]), completions, torch.tensor([[5, 5, 3], [4, 4, 0]]))


def _one_by_one(model: Any, batch: TokenBatch) -> Tensor:
    """Return (B, C) log-probabilities, each from an ordinary unpadded sequence through the whole model."""
    total = torch.zeros(batch.completion_length.shape, dtype=torch.float64)
    for row, start in enumerate(batch.prompt_length.tolist()):
        for column, count in enumerate(batch.completion_length[row].tolist()):
            title = batch.completions[row, column, :count]
            logits = _logits(model, torch.cat([batch.prompt[row, :start], title]))
            steps = logits[start - 1 : start - 1 + count].log_softmax(dim=1)
            total[row, column] = steps.gather(1, title[:, None]).sum()
    return total


def _reads_ahead(model: Any, batch: TokenBatch) -> bool:
    """Say whether the logits of a token change with the tokens behind it."""
    first, second = (_logits(model, torch.cat([batch.prompt[0], batch.completions[0, c]])) for c in (0, 2))
    known = len(batch.prompt[0])
    scale = first[:known].abs().max()
    return bool((first[:known] - second[:known]).abs().max() > 0.01 * scale)


def _logits(model: Any, ids: Tensor) -> Tensor:
    """Return (T, V) logits of one sequence in float64, on the CPU."""
    ids = ids[None].to(model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0].cpu().double()


def _gap(score: Callable[[], Tensor], wanted: Tensor, lengths: Tensor) -> float:
    """Return the largest difference per token in nats, infinite where the model cannot score so."""
    try:
        found = score().cpu().double()
    except _CANNOT as error:
        logger.info("the probe raised %s: %s", type(error).__name__, error)
        return math.inf
    return _gap_of(found, wanted, lengths)


def _gap_of(found: Tensor, wanted: Tensor, lengths: Tensor) -> float:
    gap = ((found - wanted).abs().cpu() / lengths.clamp(min=1)).max()
    return float(gap) if torch.isfinite(gap) else math.inf


def _replays(model: Any, batch: TokenBatch, plain_head: bool, form: str) -> bool:
    """Say whether a second voice, with other upper layers, may take over the lower layers' output."""
    layers = decoder_layers(model)

    def score() -> Tensor:
        return shared_logps(model, batch, plain_head=plain_head, form=form)

    for count in range(1, len(layers)):
        changed = [p for layer in layers[count:] for p in layer.parameters() if p.is_floating_point()]
        try:
            with lower_layers_once(model, count):
                first = score()
                _scale(changed, 1.25)
                second = score()
            alone = score()
        except _CANNOT as error:
            logger.info("with %d layers replayed the probe raised %s: %s", count, type(error).__name__, error)
            return False
        finally:
            _scale(changed, 0.8)
        told_apart = (first - second).abs().max() > 1e-3
        if not told_apart or _gap_of(second, alone, batch.completion_length) > TOLERANCE:
            return False
    return len(layers) > 1


def _scale(parameters: Iterable[Tensor], factor: float) -> None:
    for parameter in parameters:
        parameter.mul_(factor)
