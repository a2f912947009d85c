"""Where a causal language model keeps its decoder and the layers, and what the lower ones need not do.

Layers below the lowest adapter carry none, so policy, reference and bare backbone get the same hidden states
out of them: where several voices score the same batch, they run once. And no gradient flows through them, so
that only the layers above are worth recomputing in the backward pass.

Some layers see a window or a chunk alone. A mask of ours takes the place of the model's own, so it is
narrowed for such layers as the model would do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import BackboneError
from .configuration import look_back

# How a decoder takes a mask: one for all layers, one for each kind of layer, or one in whose window all look.
ONE, BY_KIND, WINDOWED = "one", "by_kind", "windowed"


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


@contextmanager
def lower_layers_once(model: Any, count: int) -> Iterator[None]:
    """Let the first of several passes over one batch run the lowest ``count`` layers, and the others not.

    Every pass inside the block must have the same input. Layers that return more than hidden states run each
    time. The layers stay where they are, as some decoders ask them for their kind and their place.

    Args:
        model: a Hugging Face causal language model.
        count: layers without an adapter; 0 changes nothing.
    """
    layers = list(decoder_layers(model)[:count])
    if not layers:
        yield
        return

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            for layer in layers:
                layer.forward = lambda *args, **kwargs: output

    own = [layer.__dict__.get("forward") for layer in layers]
    handle = layers[-1].register_forward_hook(remember)
    try:
        yield
    finally:
        handle.remove()
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def recomputes(wanted: bool | str, device: torch.device) -> bool | None:
    """Return whether activations are computed again; of ``auto`` None on a GPU: once its memory is short."""
    if isinstance(wanted, bool):
        return wanted
    return None if device.type == "cuda" else False


def recompute_layers(model: Any, lowest: int) -> bool:
    """Let the layers from ``lowest`` on compute their activations again in each backward pass.

    Returns:
        False if they do so already, or if there are none.
    """
    layers = [layer for layer in decoder_layers(model)[lowest:] if not hasattr(layer.forward, "recomputed")]
    for layer in layers:
        layer.forward = _recomputed(layer.forward)
    return bool(layers)


def compile_layers(model: Any) -> None:
    """Let torch make one compiled call of each layer, for a host that cannot stay ahead of its device.

    What a pass of another number of tokens or rows, another voice, or one without a gradient asks is compiled
    when it first comes; its sums may round otherwise. Passes with kept keys run as they are, since each layer
    knows its place among these and would be compiled alone.
    """
    import torch._dynamo  # takes a second, and few ask for it

    config: Any = torch._dynamo.config
    # All layers are one code, of which voices, gradients and kinds of layers are variants.
    config.recompile_limit = max(config.recompile_limit, 64)
    for layer in decoder_layers(model):
        layer.forward = _compiled(layer.forward)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    quick = torch.compile(forward, dynamic=True)

    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            return forward(*args, **kwargs)
        try:
            return quick(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            said = str(error).strip().splitlines()[0]
            raise BackboneError(f"compile_layers: torch cannot compile here: {said}; wanted False") from error

    return run


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    run.recomputed = True  # type: ignore[attr-defined]
    return run


def mask_forms(config: Any) -> tuple[str, ...]:
    """Return the forms of a mask that may fit a model of this configuration, simplest first."""
    near = look_back(config)
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    return (ONE, *((BY_KIND,) if near and kinds else ()), *((WINDOWED,) if near else ()))


def as_taken(
    model: Any, visible: Tensor, query: Tensor, key: Tensor | None = None, *, form: str = ONE
) -> Tensor | dict[str, Tensor]:
    """Return a mask in the form that the decoder takes.

    Args:
        model: a Hugging Face causal language model.
        visible: (B, 1, Tq, Tk) bool: may the query attend to the key, as far as it looks?
        query: (B, Tq) int64 positions.
        key: (B, Tk) int64 positions; None: those of the queries.
        form: one of ``mask_forms``.
    """
    near = look_back(model.config)

    def narrowed(kinds: Iterable[str]) -> Tensor:
        mask = visible
        for kind in kinds:
            if kind in near:
                mask = mask & _near(kind, near[kind][0], query, query if key is None else key)
        return _additive(mask, model.dtype) if model.config._attn_implementation == "eager" else mask

    if form == BY_KIND:
        return {kind: narrowed([kind]) for kind in {*model.config.get_text_config(decoder=True).layer_types}}
    return narrowed(near if form == WINDOWED else ())


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what eager attention adds to its scores: 0 where a key is visible, else the lowest number."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def _near(kind: str, size: int, query: Tensor, key: Tensor) -> Tensor:
    """Return (B, 1, Tq, Tk) bool: is the key in the query's window (or chunk) of ``size`` tokens?"""
    query, key = query[:, None, :, None], key[:, None, None, :]
    return query - key < size if kind == "sliding_attention" else query // size == key // size
