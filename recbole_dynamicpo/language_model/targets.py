"""Which linear layers carry LoRA: chosen by their full names, and every name that was asked for counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError, nearest
from .decoder import decoder_layers

ALL_LINEAR = ("all-linear",)
# Linear layers that decide where a token goes; an adapter there makes training unstable.
_ROUTERS = ("router", "gate", "wg")


def choose_targets(model: Any, name: str, wanted: tuple[str, ...], layers: int) -> dict[str, nn.Module]:
    """Return full name -> module of what carries LoRA, lowest layer first.

    Args:
        model: the backbone, without adapters.
        name: what the user calls it, for messages.
        wanted: names of linear layers, or the end of their full names; ``("all-linear",)`` for all of them.
        layers: only the topmost this many decoder layers; 0 means all.

    Raises:
        BackboneError: a name is none of a linear layer that can carry LoRA; says which can.
    """
    able = _able(model, layers)
    if not able:
        raise BackboneError(
            f"backbone '{name}' ({type(model).__name__}) has no linear layer in its decoder that can carry "
            "LoRA; wanted another backbone"
        )
    if wanted == ALL_LINEAR:
        return able
    missing = [target for target in wanted if not any(_ends(full, target) for full in able)]
    if missing:
        raise BackboneError(_not_there(model, name, missing, able))
    return {full: part for full, part in able.items() if any(_ends(full, target) for target in wanted)}


def lowest_layer(model: Any, chosen: dict[str, nn.Module]) -> int:
    """Return the index of the lowest decoder layer that holds one of the modules."""
    parts = {id(part) for part in chosen.values()}
    holds = [any(id(m) in parts for m in layer.modules()) for layer in decoder_layers(model)]
    return holds.index(True)


def describe(chosen: dict[str, nn.Module]) -> str:
    """Return the names of the modules and how many there are of each, like ``q_proj (24), v_proj (24)``."""
    counts: dict[str, int] = {}
    for full in chosen:
        last = full.rpartition(".")[2]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{last} ({count})" for last, count in counts.items())


def _ends(full: str, target: str) -> bool:
    return full == target or full.endswith(f".{target}")


def _able(model: Any, layers: int) -> dict[str, nn.Module]:
    """Return full name -> linear layer of the topmost ``layers`` decoder layers that peft can adapt."""
    names = {id(module): full for full, module in model.named_modules()}
    stack = decoder_layers(model)
    chosen = stack[len(stack) - layers :] if 0 < layers < len(stack) else stack
    inside = {names[id(m)]: m for layer in chosen for m in layer.modules() if _is_linear(m)}
    refused = {last for last in {full.rpartition(".")[2] for full in inside} if _refused(model, last)}
    able = {full: m for full, m in inside.items() if full.rpartition(".")[2] not in refused}
    silent = _silent(model, able) if able else set()
    return {full: m for full, m in able.items() if _kind(full) not in silent}


def _silent(model: Any, able: dict[str, nn.Module]) -> set[str]:
    """Return the kinds of layers that no gradient reaches, so that an adapter there would never learn.

    Some layers are never called: a kernel reads their weights, or they look at an encoder that is not there.
    Others only choose what is attended to, or are no plain product.
    """
    marks: dict[str, Tensor] = {}

    def marked(full: str) -> Callable[..., Tensor]:
        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            if output.shape[-1] != (module.nf if hasattr(module, "nf") else module.out_features):
                return output  # a layer of several products, which an adapter's one would not fit
            marks[full] = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            return output + marks[full]

        return add

    handles = [part.register_forward_hook(marked(full)) for full, part in able.items()]
    try:
        quiet = torch.autograd.set_detect_anomaly(False)  # which RecBole's SINE module turns on when imported
        with quiet, torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ids = torch.randint(1, min(200, model.get_input_embeddings().weight.shape[0]), (2, 16)).to(
                model.device
            )
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            weighted = logits * torch.randn(logits.shape[-1]).to(logits)
            if not weighted.requires_grad:
                return set(map(_kind, able))  # no gradient comes through its layers
            found = torch.autograd.grad(weighted.sum(), list(marks.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    heard = {_kind(full) for full, gradient in zip(marks, found, strict=True) if gradient is not None}
    return {_kind(full) for full in able} - heard


def _kind(full: str) -> str:
    """Return a full name without the number of the expert, as not every expert hears every token."""
    before, experts, behind = full.partition(".experts.")
    return before + experts + behind.lstrip("0123456789")


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _refused(model: Any, last: str) -> bool:
    """Say whether layers of this last name cannot carry LoRA: a router, or one that peft turns away.

    Peft moves some names to the joint weights of all experts, and knows layers that a fused kernel reads
    past the adapter.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    if last in _ROUTERS:
        return True
    config = LoraConfig(target_modules=[last])
    try:
        _check_lora_target_modules_mamba(config, model, last)
        tried = copy.copy(config)
        convert_peft_config_for_transformers(tried, model, None)
    except ValueError:
        return True
    return set(tried.target_modules or ()) != {last}


def _not_there(model: Any, name: str, missing: list[str], able: dict[str, nn.Module]) -> str:
    """Return the message about targets that are not among those that can carry LoRA."""
    there = {full.rpartition(".")[2] for full, _ in model.named_modules()}
    reasons = []
    for target in missing:
        known = target.rpartition(".")[2] in there
        why = "is there, but cannot carry LoRA here" if known else "is not there"
        reasons.append(f"{target} {why}{'' if known else nearest(target, _last(able))}")
    return (
        f"lora_targets: backbone '{name}' ({type(model).__name__}): {'; '.join(reasons)}; "
        f"wanted some of {', '.join(sorted(_last(able)))}, or all-linear"
    )


def _last(able: dict[str, nn.Module]) -> set[str]:
    return {full.rpartition(".")[2] for full in able}
