"""What else was tried to lighten the host's work in a pass: cheaper parts of layers, joint products.

    python benchmarks/host_tries.py [--json FILE] [--quick] [--rounds 15]

On the narrow model of ``host.py``. Each way stands on the ones before it but for the last, which takes the
layers that read the same states (query, key and value; gate and up) in one product with a gradient of its
own. Nothing of this is in the package, since none of it gains enough.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import common
import torch
from host import LAYERS, World, processor_seconds
from torch import Tensor, nn

from recbole_dynamicpo.language_model.policy import POLICY


class _Rotated(torch.autograd.Function):
    """Rotary positions in three operations: x cos + roll(x) sin, with half of the sines turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (cos, sin) = gradients, ctx.saved_tensors
        return (gradient * cos).add_((gradient * sin).roll(gradient.shape[-1] // 2, -1)), None, None


class _Joint(torch.autograd.Function):
    """LoRA layers that read the same states, in one product of the weights and one of the A."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: float, *pairs: Tensor) -> tuple[Tensor, ...]:
        count = len(pairs) // 2
        a, b = torch.cat(pairs[:count]), pairs[count:]
        rows, rank = x.view(-1, x.shape[-1]), pairs[0].shape[0]
        low = rows.mm(a.t())
        bare = rows.mm(weight.t()).split([own.shape[0] for own in b], 1)
        parts = zip(bare, low.split(rank, 1), b, strict=True)
        found = [torch.addmm(out, own, up.t(), alpha=scale) for out, own, up in parts]
        ctx.save_for_backward(rows, low, weight, a, *b)
        ctx.scale, ctx.shape, ctx.rank = scale, x.shape, rank
        return tuple(out.view(*x.shape[:-1], -1) for out in found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, *b = ctx.saved_tensors
        each = [gradient.reshape(rows.shape[0], -1) for gradient in gradients]
        inner = torch.cat([gradient.mm(up) for gradient, up in zip(each, b, strict=True)], 1)
        of_a = torch.addmm(a, inner.t(), rows, beta=0, alpha=ctx.scale).split(ctx.rank)
        parts = zip(each, low.split(ctx.rank, 1), b, strict=True)
        of_b = [torch.addmm(up, g.t(), own, beta=0, alpha=ctx.scale) for g, own, up in parts]
        of_x = torch.cat(each, 1).mm(weight).addmm_(inner, a, alpha=ctx.scale).view(ctx.shape)
        return of_x, None, None, *of_a, *of_b


@contextmanager
def _without_hooks() -> Iterator[None]:
    """Let modules be called without looking for hooks."""
    with patch.object(nn.Module, "__call__", lambda self, *args, **named: self.forward(*args, **named)):
        yield


@contextmanager
def _torchs_norm() -> Iterator[None]:
    """Let torch compute the norms in one operation."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: Any, states: Tensor) -> Tensor:
        return nn.functional.rms_norm(states, self.weight.shape, self.weight, self.variance_epsilon)

    with patch.object(LlamaRMSNorm, "forward", forward):
        yield


@contextmanager
def _short_rotation() -> Iterator[None]:
    """Let positions be turned by ``_Rotated``; sines are made ready once a pass."""
    from transformers.models.llama import modeling_llama

    kept: dict[str, Any] = {}

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if kept.get("of") is not sin:
            turned = sin.clone()
            turned[..., : sin.shape[-1] // 2].neg_()
            kept.update(of=sin, pair=(cos.unsqueeze(1), turned.unsqueeze(1)))
        return _Rotated.apply(query, *kept["pair"]), _Rotated.apply(key, *kept["pair"])

    with patch.object(modeling_llama, "apply_rotary_pos_emb", rotate):
        yield


@contextmanager
def _joint(world: World) -> Iterator[None]:
    """Let layers that read the same states share their products."""
    with ExitStack() as stack:
        for layer in world.policy.peft.get_base_model().get_decoder().layers:
            attention, inner = layer.self_attn, layer.mlp
            for group in (
                [attention.q_proj, attention.k_proj, attention.v_proj], [inner.gate_proj, inner.up_proj]
            ):  # fmt: skip
                for part, forward in zip(group, _in_one(group), strict=True):
                    stack.enter_context(patch.object(part, "forward", forward))
        yield


def _in_one(group: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    """Return forwards of some layers: the first one computes for all, and the others hand on."""
    weight = torch.cat([part.base_layer.weight for part in group]).detach()
    pairs = [part.lora_A[POLICY].weight for part in group] + [part.lora_B[POLICY].weight for part in group]
    scale, found = group[0].scaling[POLICY], []

    def first(x: Tensor) -> Tensor:
        found[:] = _Joint.apply(x, weight, scale, *pairs)
        return found[0]

    return [first, *(lambda x, number=number: found[number] for number in range(1, len(group)))]


def measure(world: World, rounds: int) -> dict[str, Any]:
    """Return seconds of forward and backward each way, ratios, and how far gradients are from those as is."""
    world.step()
    wanted = [leaf.grad.clone() for leaf in world.leaves if leaf.grad is not None]
    largest = max(gradient.abs().max().item() for gradient in wanted)
    ways: list[tuple[str, Callable[[], list[Any]]]] = [
        ("as it is", list),
        ("modules without hooks", lambda: [_without_hooks()]),
        ("and torch's norm", lambda: [_without_hooks(), _torchs_norm()]),
        ("and rotation in three operations", lambda: [_without_hooks(), _torchs_norm(), _short_rotation()]),
        ("joint products", lambda: [_joint(world)]),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in ways}
    apart: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, means in ways:
            with ExitStack() as stack:
                for one in means():
                    stack.enter_context(one)
                world.step()  # warm
                spent = processor_seconds(world.step)
            found = [leaf.grad for leaf in world.leaves if leaf.grad is not None]
            pairs = zip(found, wanted, strict=True)
            apart[name] = max((one - other).abs().max().item() for one, other in pairs) / largest
            if number:
                times[name].append(spent)
    return {
        name: {
            "seconds": common.Spread.of(spent)._asdict(),
            "ratio": common.ratios(spent, times["as it is"])._asdict(),
            "gradient_difference": apart[name],
        }
        for name, spent in times.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a way disagrees."""
    options, _ = common.parse(common.options("cheaper ways of a pass", rounds=15), arguments)
    figures: dict[str, Any] = {"machine": common.machine(torch.float32)}
    figures["ways"] = measure(World(2 if options.quick else LAYERS), options.rounds)
    common.print_machine(figures["machine"])
    rows = []
    for name, line in figures["ways"].items():
        spread = common.Spread(*(round(1e3 * value, 3) for value in line["seconds"].values()))
        rows.append([name, spread, common.Spread(**line["ratio"])])
    common.print_table(
        "Forward and backward, milliseconds of processor time; median (least..greatest)",
        ["way", "time", "over as it is"],
        rows,
    )
    common.save(options.json, figures)
    return int(any(line["gradient_difference"] > 1e-5 for line in figures["ways"].values()))


if __name__ == "__main__":
    sys.exit(main())
