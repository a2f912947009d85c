"""Run the decoder layers below the lowest adapter once, where several voices score the same batch.

These layers carry no adapter, so policy, reference and bare backbone get the same hidden states out of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Replay(nn.Module):
    """Stands for layers whose output is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the known output, whatever comes in."""
        return self.hidden


@contextmanager
def lower_layers_once(model: Any, count: int) -> Iterator[None]:
    """Let the first of several passes over one batch run the lowest ``count`` layers, and the others not.

    Every pass inside the block must have the same input. A model whose layers are not in ``layers`` of its
    decoder, or return more than hidden states, runs them each time.

    Args:
        model: a Hugging Face causal language model.
        count: layers without an adapter; 0 changes nothing.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not count or not isinstance(layers, nn.ModuleList) or count >= len(layers):
        yield
        return

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            decoder.layers = nn.ModuleList([_Replay(output), *layers[count:]])

    handle = layers[count - 1].register_forward_hook(remember)
    try:
        yield
    finally:
        handle.remove()
        decoder.layers = layers
