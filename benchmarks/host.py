"""What the host does for a step: a model so narrow that its products cost nothing, with many LoRA layers.

    python benchmarks/host.py [--json FILE] [--quick] [--rounds 15]

On a GPU the host must stay ahead of the device. Here 32 layers of width 32 carry LoRA on 7 linear layers
each, 224 in all, so that nearly all of a pass is the host's work. Peft's general forward is timed against
ours in turns on the same layers, the bare decoder beside them, and peft's switch of adapters against ours.
Times are the processor's. Beside ours stands the same with a gradient of its own, an ``autograd.Function`` of
the fewest operations, and the same with each layer compiled (setting ``compile_layers``), which takes a
compiler and a minute before the first pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import common
import torch
from torch import Tensor

from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.decoder import compile_layers, decoder_layers
from recbole_dynamicpo.language_model.policy import POLICY, REFERENCE, Policy

LAYERS, WIDTH, HEADS, TOKENS, VOCABULARY = 32, 32, 4, 8, 257
Ways = dict[str, Callable[[], object]]


class _Products(torch.autograd.Function):
    """The three products with a gradient of our own: five products and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        low = rows.mm(a.t())
        out = rows.mm(weight.t()).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.shape, ctx.scale = x.shape, scale
        return out.view(*x.shape[:-1], b.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].view(rows.shape[0], b.shape[0])
        inner = gradient.mm(b)
        # With beta 0 the first argument says the shape alone.
        of_a = torch.addmm(a, inner.t(), rows, beta=0, alpha=ctx.scale)
        of_b = torch.addmm(b, gradient.t(), low, beta=0, alpha=ctx.scale)
        of_x = gradient.mm(weight).addmm_(inner, a, alpha=ctx.scale).view(ctx.shape)
        return of_x, None, of_a, of_b, None


class _OwnGradient:
    """A layer by ``_Products``."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.lora_A[POLICY].weight, self.lora_B[POLICY].weight
        found: Tensor = _Products.apply(x, self.base_layer.weight, a, b, self.scaling[POLICY])
        return found


class World:
    """The narrow model with two adapters on all of its linear layers.

    Args:
        layers: of the decoder.
    """

    def __init__(self, layers: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=layers, num_attention_heads=HEADS,
            vocab_size=VOCABULARY, max_position_embeddings=64, attn_implementation="sdpa",
        )  # fmt: skip
        model = LlamaForCausalLM(config).requires_grad_(False).eval()
        backbone = Backbone(model, None, "narrow", "random", shares_prompt=True)
        self.policy = Policy(backbone, LoraShape(8, 16.0, 0.0, ("all-linear",), 0), seed=0)
        with torch.no_grad():  # a new adapter's second matrix is 0, and so is the gradient of the first
            for weight in self.policy.trainable():
                weight.add_(torch.randn(weight.shape), alpha=0.1)
        self.policy.freeze_reference()
        self.embedded = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
        self.mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
        self.leaves = [self.embedded, *self.policy.trainable()]
        # Ours stands before peft's class of the same layer.
        ours = type(self.policy.adapters.layers[0])
        theirs = ours.__mro__[2]
        own_gradient = type("OwnGradient", (_OwnGradient, theirs), {})
        self.classes = {"ours": ours, "peft": theirs, "own gradient": own_gradient}

    def states(self) -> Tensor:
        """Return (1, T, D) states of one pass."""
        found: Tensor = self.policy.peft.get_base_model().get_decoder()(
            inputs_embeds=self.embedded, attention_mask=self.mask,
            position_ids=torch.arange(TOKENS)[None], use_cache=False,
        ).last_hidden_state  # fmt: skip
        return found

    def step(self) -> None:
        """Pass forward and backward."""
        for leaf in self.leaves:
            leaf.grad = None
        self.states().sum().backward()

    def by(self, way: str, work: Callable[[], object]) -> None:
        """Do something while the layers take one of the ways."""
        for layer in self.policy.adapters.layers:
            layer.__class__ = self.classes[way]
        work()
        for layer in self.policy.adapters.layers:
            layer.__class__ = self.classes["ours"]

    @cached_property
    def compiled_layers(self) -> list[tuple[Any, Callable[..., Any]]]:
        """The decoder's layers, each with its compiled call."""
        model = self.policy.peft.get_base_model()
        compile_layers(model)
        return [(layer, layer.__dict__.pop("forward")) for layer in decoder_layers(model)]

    def compiled(self, work: Callable[[], object]) -> None:
        """Do something while each layer is one compiled call."""
        for layer, forward in self.compiled_layers:
            layer.forward = forward
        work()
        for layer, _ in self.compiled_layers:
            del layer.forward

    def bare(self, work: Callable[[], object]) -> None:
        """Do something while no adapter is active."""
        with self.policy.speaking_as("backbone"):
            work()

    def ready(self) -> None:
        """Ask what each optimizer step asks: training mode, and what is trained."""
        self.policy.train()
        self.policy.trainable()

    def ready_by_walks(self) -> None:
        """Do the same by walks over all modules."""
        peft = self.policy.peft
        peft.train()
        peft.get_base_model().eval()
        for layer in peft.modules():
            if hasattr(layer, "lora_dropout"):
                layer.lora_dropout.train()
        [weight for name, weight in peft.named_parameters() if f".{POLICY}." in name]

    def whole(self) -> None:
        """Do all that a preference step asks of the policy: readied, referred to, taught."""
        self.ready()
        with torch.no_grad(), self.policy.speaking_as(REFERENCE):
            self.states()
        self.step()

    def whole_by_peft(self) -> None:
        """Do the same by peft's own means."""
        self.ready_by_walks()
        self.policy.peft.set_adapter(REFERENCE, inference_mode=True)
        with torch.no_grad():
            self.states()
        self.policy.peft.set_adapter(POLICY)
        self.step()

    def switch(self, voice: str) -> None:
        """Let another voice speak, and the policy again."""
        with self.policy.speaking_as(voice):
            pass

    def switch_by_peft(self, voice: str) -> None:
        """Do the same by peft's own means."""
        peft = self.policy.peft
        if voice == REFERENCE:
            peft.set_adapter(REFERENCE, inference_mode=True)
            peft.set_adapter(POLICY)
        else:
            with peft.disable_adapter():
                pass


def agree(world: World) -> float:
    """Return how far the ways are from peft's at most, relative to the largest gradient."""

    def gradients() -> list[Tensor]:
        return [leaf.grad.clone() for leaf in world.leaves if leaf.grad is not None]

    world.by("peft", world.step)
    theirs, apart = gradients(), 0.0
    for work in (world.step, partial(world.compiled, world.step)):
        work()
        apart = max(apart, *((a - b).abs().max().item() for a, b in zip(gradients(), theirs, strict=True)))
    return apart / max(gradient.abs().max().item() for gradient in theirs)


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call, which other processes touch less than the wall's."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(world: World, rounds: int) -> dict[str, Any]:
    """Return the processor seconds of each way, and the ratios."""

    def scored(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                work()

        return run

    passes: Ways = {"forward and backward": world.step, "forward": scored(world.states)}
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "a preference step": (lambda: world.by("peft", world.whole_by_peft), world.whole),
        "training mode and weights": (world.ready_by_walks, world.ready),
        "to the reference and back": (
            lambda: world.switch_by_peft(REFERENCE), lambda: world.switch(REFERENCE)
        ),
        "to the backbone and back": (
            lambda: world.switch_by_peft("backbone"), lambda: world.switch("backbone")
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    times: dict[str, list[float]]
    turns: dict[str, Ways] = {name: {"peft": pair[0], "ours": pair[1]} for name, pair in pairs.items()}
    turns["a preference step"]["compiled"] = partial(world.compiled, world.whole)
    for name, work in passes.items():
        turns[name] = {way: partial(world.by, way, work) for way in world.classes}
        turns[name] |= {"compiled": partial(world.compiled, work), "bare": partial(world.bare, work)}
    for name, ways in turns.items():
        for way in ways.values():
            way()  # warm
        times = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                times[way].append(processor_seconds(run))
        line = {way: common.Spread.of(values)._asdict() for way, values in times.items()}
        line["ratio"] = common.ratios(times["ours"], times["peft"])._asdict()
        if "compiled" in times:
            line["compiled ratio"] = common.ratios(times["compiled"], times["peft"])._asdict()
        found[name] = line
    return found


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    common.print_machine(figures["machine"])

    def milliseconds(found: dict[str, float]) -> common.Spread:
        return common.Spread(*(round(1e3 * found[name], 3) for name in common.Spread._fields))

    ways = ("peft", "ours", "own gradient", "compiled", "bare")
    rows = [
        [name, *(milliseconds(line[way]) if way in line else "" for way in ways),
         *(common.Spread(**line[ratio]) if ratio in line else "" for ratio in ("ratio", "compiled ratio"))]
        for name, line in figures["times"].items()
    ]  # fmt: skip
    common.print_table(
        f"{figures['lora_layers']} LoRA layers, milliseconds of processor time; median (least..greatest)",
        [
            "what",
            "peft",
            "ours",
            "with a gradient of its own",
            "compiled",
            "without adapter",
            "ours over peft",
            "compiled over peft",
        ],
        rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where both ways disagree."""
    options, _ = common.parse(common.options("the host's work for a step", rounds=15), arguments)
    world = World(2 if options.quick else LAYERS)
    figures: dict[str, Any] = {
        "machine": common.machine(torch.float32),
        "lora_layers": len(world.policy.adapters.layers),
        "gradient_difference": agree(world),
        "times": measure(world, options.rounds),
    }
    report(figures)
    common.save(options.json, figures)
    if figures["gradient_difference"] > 1e-5:
        print(f"the ways disagree by {figures['gradient_difference']:.2g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
