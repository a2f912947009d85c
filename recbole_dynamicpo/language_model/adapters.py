"""The layers that carry LoRA: three products instead of peft's general forward, switched without a walk.

A layer's output is W x + s B A x, with s alpha over the rank: three products, the last of which adds itself.
Peft's forward takes more, and its switches walk over all modules of the model; the host of a GPU then lags.
What peft knows of itself (active adapters, what requires a gradient) is kept as its own switches leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear


class _Fused:
    """Stands before a peft LoRA layer's class: the way of a single plain adapter in few operations."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., out); what is not a single plain adapter goes peft's way."""
        parts, names = self._modules, self._active_adapter
        layer, part = parts["base_layer"], parts["lora_A"]._modules.get(names[0]) if len(names) == 1 else None
        found: Tensor
        if self._disable_adapters and not self.merged_adapters:
            found = layer(x, *args, **kwargs)
            return found
        if part is None or args or kwargs or self.merged_adapters or self.lora_variant:
            found = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return found
        a, b = part.weight, parts["lora_B"]._modules[names[0]].weight
        if a.dtype != x.dtype:
            a, b = a.to(x.dtype), b.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        drop = parts["lora_dropout"]._modules[names[0]]
        low = dropout(rows, drop.p, True) if drop.training and isinstance(drop, nn.Dropout) else rows
        # Autograd follows this faster than a gradient of our own, which takes fewer operations but Python.
        found = torch.addmm(layer(rows), linear(low, a), b.t(), alpha=self.scaling[names[0]])
        return found.view(*x.shape[:-1], b.shape[0])


@lru_cache
def _fused(kind: Any) -> type:
    """Return a class that is ``kind``, one of peft's LoRA layers, and takes the short way."""
    return type(f"Fused{kind.__name__}", (_Fused, kind), {})


class _AdapterLinear(nn.Linear):
    """A matrix of the adapter: float32 weights, which multiply in the dtype of the activations."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out) products."""
        return linear(input, self.weight.to(input.dtype))


class Adapters:
    """The adapters of a peft model, made fast: found once, then switched by name.

    An adapter's matrices multiply in the dtype of the activations, as in mixed precision. Peft widens every
    activation to the adapter's float32 instead, which costs some 8 % of a bfloat16 step.

    Args:
        model: a ``PeftModel`` with plain LoRA, one adapter active.
        trained: name of the adapter that learns while it is active.
    """

    def __init__(self, model: Any, trained: str) -> None:
        self.model, self.trained = model, trained
        self.layers: list[Any] = [part for part in model.modules() if hasattr(part, "lora_A")]
        self.speaking: str | None = trained
        for layer in self.layers:
            kind: Any = type(layer)
            layer.__class__ = _fused(kind)
            layer.cast_input_dtype_enabled = False
        self.see()

    def see(self) -> None:
        """Take in an adapter that peft has added; the one that learns is active afterwards."""
        self.parameters: list[nn.Parameter] = []  # of the adapter that learns
        for layer in self.layers:
            for name, part in (*layer.lora_A.items(), *layer.lora_B.items()):
                part.__class__ = _AdapterLinear
                part.requires_grad_(False)
                if name == self.trained:
                    self.parameters.append(part.weight)
        self._switch(self.trained)

    def train(self, mode: bool) -> None:
        """Let the adapters' own dropout act, or not."""
        for layer in self.layers:
            layer.lora_dropout.train(mode)

    @contextmanager
    def speaking_as(self, name: str | None) -> Iterator[None]:
        """Let the adapter ``name`` be active inside the block, or none."""
        before = self.speaking
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        """Do what peft's ``set_adapter`` and ``disable_adapter`` do, on the layers that are known."""
        if name is not None:
            self.model.active_adapter = self.model.base_model.active_adapter = name
        state: dict[str, Any] = {"_disable_adapters": name is None}
        for layer in self.layers:
            if name is not None:
                state["_active_adapter"] = [name]
            vars(layer).update(state)  # past the module's own check of what is set
        for parameter in self.parameters:
            parameter.requires_grad_(name == self.trained)
        self.model._adapters_disabled = name is None
        self.speaking = name
