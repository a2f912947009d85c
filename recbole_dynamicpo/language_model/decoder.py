"""Where a Hugging Face causal language model keeps its decoder and the decoder's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def decoder_of(model: Any) -> Any:
    """Return the part of a causal language model that turns tokens into the states that its head reads."""
    # Some call their head the decoder, and some have no other word for it than themselves.
    ways = (model.get_decoder(), model.base_model, getattr(model, "model", None))
    found = (
        part for part in ways if part is not None and part is not model and not isinstance(part, nn.Linear)
    )
    return next(found, model)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder's layers, lowest first; an empty list where they cannot be told.

    Args:
        model: a Hugging Face causal language model, with or without LoRA layers.
    """
    decoder = decoder_of(model)
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    children = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
    own = [found for found in lists if len(found) == depth]
    return next(iter([*own, *children]), nn.ModuleList())


@contextmanager
def decoder_returns(model: Any, output: Any) -> Iterator[None]:
    """Let the decoder return ``output`` inside the block, whatever comes in."""
    decoder = decoder_of(model)
    own = decoder.__dict__.get("forward")
    decoder.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own
