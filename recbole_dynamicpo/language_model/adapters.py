"""The layers that carry LoRA: one product each instead of peft's general forward, switched without a walk.

A layer's output is W x + s B A x, with s alpha over the rank. Peft's forward takes that apart into some ten
calls a layer, and its switches walk over all modules of the model; with a GPU the host then lags behind.
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

Parts = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def _product(
    x: Tensor, given: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    a: Tensor, b: Tensor, scale: float,
) -> tuple[Tensor, Parts]:  # fmt: skip
    """Return (..., out) the sum, and what its gradient needs: rows, their products with A, W, A and B."""
    rows = x.reshape(-1, x.shape[-1])
    if a.dtype != x.dtype:
        a, b = a.to(x.dtype), b.to(x.dtype)
    if weight is None:
        assert given is not None
        out = given.clone(memory_format=torch.contiguous_format)
    else:
        out = x.new_empty(*x.shape[:-1], b.shape[0])  # linear's would be a view, not to be changed in place
    flat = out.view(rows.shape[0], b.shape[0])
    if weight is not None and bias is not None:
        torch.addmm(bias, rows, weight.t(), out=flat)
    elif weight is not None:
        torch.mm(rows, weight.t(), out=flat)
    low = rows.mm(a.t())
    flat.addmm_(low, b.t(), alpha=scale)
    return out, (rows, low, weight, a, b)


class _Sum(torch.autograd.Function):
    """x W' + bias + s (x A') B' for a frozen W: three products forward, five backward.

    Where a layer is none of torch's own, or sees another input because of dropout, what it returned is given
    instead of W.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, given: Tensor | None, weight: Tensor | None, bias: Tensor | None,
        a: Tensor, b: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        out, parts = _product(x, given, weight, bias, a, b, scale)
        ctx.save_for_backward(*parts)
        ctx.shape, ctx.scale, ctx.kept = x.shape, scale, a.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        scale, gradient = ctx.scale, gradients[0].reshape(rows.shape[0], b.shape[0])
        inner = gradient.mm(b)
        # With beta 0 the first argument says the shape alone, so that s costs no operation.
        of_a = torch.addmm(a, inner.t(), rows, beta=0, alpha=scale)
        of_b = torch.addmm(b, gradient.t(), low, beta=0, alpha=scale)
        if of_a.dtype != ctx.kept:
            of_a, of_b = of_a.to(ctx.kept), of_b.to(ctx.kept)
        of_x = None
        if ctx.needs_input_grad[0]:
            if weight is None:
                of_x = torch.addmm(rows, inner, a, beta=0, alpha=scale)
            else:
                of_x = gradient.mm(weight).addmm_(inner, a, alpha=scale)
            of_x = of_x.view(ctx.shape)
        return of_x, gradients[0] if weight is None else None, None, None, of_a, of_b, None


class _Fused:
    """Stands before a peft LoRA layer's class: the way of a single plain adapter in few operations."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., out); what is not a single plain adapter goes peft's way."""
        parts, names = self._modules, self._active_adapter
        layer, part = parts["base_layer"], parts["lora_A"]._modules.get(names[0]) if len(names) == 1 else None
        if self._disable_adapters and not self.merged_adapters:
            found: Tensor = layer(x, *args, **kwargs)
            return found
        if part is None or args or kwargs or self.merged_adapters or self.lora_variant:
            found = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return found
        name = names[0]
        a, b, scale = part.weight, parts["lora_B"]._modules[name].weight, self.scaling[name]
        drop = parts["lora_dropout"]._modules[name]
        low = dropout(x, drop.p, True) if drop.training and isinstance(drop, nn.Dropout) else x
        if low is x and type(layer) is nn.Linear and not layer.weight.requires_grad:
            given: tuple[Any, ...] = (x, None, layer.weight, layer.bias, a, b, scale)
        else:
            given = (low, layer(x), None, None, a, b, scale)
        found = _Sum.apply(*given) if torch.is_grad_enabled() else _product(*given)[0]
        return found


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
