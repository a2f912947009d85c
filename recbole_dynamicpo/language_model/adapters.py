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
        low = drop(rows) if drop.training and isinstance(drop, RowDropout) else rows
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


class Rows:
    """A number for each token of the pass at hand: of its row's tokens and its place among them.

    Attributes:
        seed: of a step; whoever trains sets it.
    """

    def __init__(self, decoder: nn.Module | None) -> None:
        self.seed = 0
        self.training = False
        self.keys: Tensor | None = None  # (B, T) int32
        if decoder is not None:
            decoder.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        if not self.training or ids is None:
            self.keys = None
            return
        place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        whole = (ids * (place * _ODD)).sum(dim=1, keepdim=True) ^ self.seed  # padding is 0 and adds nothing
        self.keys = _mixed(_folded(whole) + _mixed(_folded(place * _ODD)))


class RowDropout(nn.Module):
    """Dropout that a token meets in any company: decided by step, row, layer and place, by no generator.

    So it depends neither on the rows beside it in a pass nor on how many processes share them out, and a pass
    that is computed again for its gradient repeats it. Where a layer is handed other tokens than the pass
    has, as the experts of a mixture are, it is torch's.

    Args:
        p: share that is dropped.
        number: of the layer.
        rows: of the pass at hand.
    """

    def __init__(self, p: float, number: int, rows: Rows) -> None:
        super().__init__()
        self.p, self.number, self.rows = p, number, rows
        self._least = round((p - 0.5) * (1 << 32))  # kept is what is no less, of numbers of 32 bits
        self._features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x with a share p of its entries 0, and the others larger by 1 / (1 - p)."""
        if not self.training:
            return x
        keys = self.rows.keys
        if keys is None or keys.numel() * x.shape[-1] != x.numel():
            return dropout(x, self.p, True)
        if self._features is None or self._features.device != x.device:
            place = torch.arange(x.shape[-1], device=x.device) + (self.number << 20)
            self._features = _mixed(_folded(place * _ODD))
        kept = _mixed(keys.view(*x.shape[:-1], 1) ^ self._features) >= self._least
        return x * (kept.to(x.dtype) / (1 - self.p))


_ODD = 0x1E3779B97F4A7C15  # of no meaning but its many bits


def _folded(numbers: Tensor) -> Tensor:
    """Return int32 numbers of all bits of int64 ones."""
    return (numbers ^ (numbers >> 32)).to(torch.int32)


def _mixed(numbers: Tensor) -> Tensor:
    """Return int32 numbers, each bit of which depends on all of those given (by C. Wellons' constants)."""
    found = numbers ^ ((numbers >> 16) & 0xFFFF)  # a shift of signed numbers would bring ones in
    found.mul_(0x7FEB352D)
    found ^= (found >> 15) & 0x1FFFF
    found.mul_(0x846CA68B - (1 << 32))
    found ^= (found >> 16) & 0xFFFF
    return found


class Adapters:
    """The adapters of a peft model, made fast: found once, then switched by name.

    An adapter's matrices multiply in the dtype of the activations, as in mixed precision. Peft widens every
    activation to the adapter's float32 instead, which costs some 8 % of a bfloat16 step.

    Args:
        model: a ``PeftModel`` with plain LoRA, one adapter active.
        trained: name of the adapter that learns while it is active.
        decoder: takes the tokens of a pass, by which dropout knows their rows.
    """

    def __init__(self, model: Any, trained: str, decoder: nn.Module | None = None) -> None:
        self.model, self.trained = model, trained
        self.layers: list[Any] = [part for part in model.modules() if hasattr(part, "lora_A")]
        self.rows = Rows(decoder)
        self.speaking: str | None = trained
        for layer in self.layers:
            kind: Any = type(layer)
            layer.__class__ = _fused(kind)
            layer.cast_input_dtype_enabled = False
        self.see()

    def see(self) -> None:
        """Take in an adapter that peft has added; the one that learns is active afterwards."""
        self.parameters: list[nn.Parameter] = []  # of the adapter that learns
        for number, layer in enumerate(self.layers):
            for name, drop in layer.lora_dropout.items():
                if type(drop) is nn.Dropout:
                    layer.lora_dropout[name] = RowDropout(drop.p, number, self.rows)
            for name, part in (*layer.lora_A.items(), *layer.lora_B.items()):
                part.__class__ = _AdapterLinear
                part.requires_grad_(False)
                if name == self.trained:
                    self.parameters.append(part.weight)
        self._switch(self.trained)

    def train(self, mode: bool) -> None:
        """Let the adapters' own dropout act, or not."""
        self.rows.training = mode
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
