"""A model of known shapes with drawn weights, and made-up rows for it: what ``gpu.py`` measures on.

Importing this needs torch, transformers and peft alone: the package's face, which would register with
RecBole, is left out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "recbole_dynamicpo" not in sys.modules:  # its face would register with RecBole, which need not be here
    package, spec = ModuleType("recbole_dynamicpo"), find_spec("recbole_dynamicpo")
    beside = ROOT / "recbole_dynamicpo"
    package.__path__ = (
        [str(beside)] if beside.is_dir() else [*(spec.submodule_search_locations if spec else [])]
    )
    sys.modules["recbole_dynamicpo"] = package

import numpy as np  # noqa: E402
import torch  # noqa: E402

from recbole_dynamicpo.language_model.adapter_folder import LoraShape  # noqa: E402
from recbole_dynamicpo.language_model.backbone import Backbone  # noqa: E402
from recbole_dynamicpo.language_model.packed import TokenBatch, on_device  # noqa: E402
from recbole_dynamicpo.language_model.policy import POLICY, REFERENCE, Policy  # noqa: E402
from recbole_dynamicpo.language_model.probe import find_abilities  # noqa: E402
from recbole_dynamicpo.objectives.preference import preference_loss  # noqa: E402
from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps, child_products  # noqa: E402
from recbole_dynamicpo.title_trie.title_layout import lay_out  # noqa: E402
from recbole_dynamicpo.title_trie.trie_builder import build_trie  # noqa: E402
from recbole_dynamicpo.title_trie.trunk import pack_whole  # noqa: E402

# hidden, intermediate, layers, heads, key and value heads, vocabulary.
SHAPES = {
    "tiny": (32, 48, 2, 4, 2, 100),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, 152064),
    "llama2-7b": (4096, 11008, 32, 32, 32, 32000),
}


# All linear layers carry LoRA, as in the paper.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class World:
    """A model of one of the shapes with two adapters that differ, and made-up rows.

    Args:
        name: of the shapes.
        dtype: of the frozen weights.
        device: where they are.
        quick: few tokens and titles.
        four_bits: cut the decoder's matrices to nf4, as ``load_in_4bit`` does.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, device: str, quick: bool, four_bits: bool = False
    ) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

        hidden, inner, layers, heads, kept, self.vocabulary = SHAPES[name]
        kind: Any = Qwen2Config if name.startswith("qwen") else LlamaConfig  # whose attention has biases
        config = kind(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kept, vocab_size=self.vocabulary, max_position_embeddings=4096,
            attn_implementation="sdpa", initializer_range=0.2 if quick else 0.02,
        )  # fmt: skip
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)
        parts = model.get_decoder().layers.modules()
        # Of the layers, where each weight multiplies each token; what peft adds is next to nothing.
        self.weights = sum(part.weight.numel() for part in parts if isinstance(part, torch.nn.Linear))
        abilities = find_abilities(model, name)._asdict()
        if four_bits:
            cut_to_four_bits(model, device)
        backbone = Backbone(model, None, name, "random", **abilities)
        self.policy = Policy(backbone, LoraShape(8, 32.0, 0.0, TARGETS, 0), seed=0)
        self._move(1)
        self.policy.freeze_reference()
        self._move(2)
        self.name, self.device, self.quick = name, device, quick
        self.dtype = str(dtype).removeprefix("torch.")
        self.draw = np.random.default_rng(0)

    @torch.no_grad()
    def _move(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for name, weight in self.policy.peft.named_parameters():
            if f"lora_B.{POLICY}." in name:
                weight.add_((torch.randn(weight.shape, generator=draw) * 0.01).to(weight))

    def batch(self, rows: int, negatives: int, seed: int = 0) -> TokenBatch:
        """Return rows of a prompt and 1 + K titles of 3 to 8 tokens."""
        prompt = 12 if self.quick else 200
        draw = torch.Generator().manual_seed(seed * 10_000 + rows * 100 + negatives)
        lengths = torch.randint(3, 9, (rows, 1 + negatives), generator=draw)
        ids = torch.randint(4, self.vocabulary, (rows, 1 + negatives, 8), generator=draw)
        ids[torch.arange(8) >= lengths[..., None]] = 0
        prompts = torch.randint(4, self.vocabulary, (rows, prompt), generator=draw)
        return TokenBatch(prompts, torch.full((rows,), prompt), ids, lengths)

    def trie(self) -> Any:
        """Return the trie of a made catalogue."""
        count = 30 if self.quick else 1659
        titles = {
            tuple(self.draw.integers(4, 24, self.draw.integers(2, 6)).tolist()) for _ in range(count * 2)
        }
        tokens = sorted(titles)[:count]
        return build_trie([str(title) for title in tokens], tokens, 2)

    def prompts(self, rows: int) -> list[list[int]]:
        length = 10 if self.quick else 150
        return self.draw.integers(4, min(24, self.vocabulary), (rows, length)).tolist()

    def all_titles(self, trie: Any, prompts: list[list[int]]) -> torch.Tensor:
        """Return (B, Y) log-probabilities of all titles, in one pass."""
        layout = lay_out(trie, np.arange(trie.num_titles)[None])
        found = self.policy.tree_states(pack_whole(prompts, layout))
        states = found.states.unflatten(0, (len(prompts), -1))
        products = child_products(states, self.policy.output_layer, on_device(layout.edges, states.device))
        return catalogue_logps(products, on_device(layout, products.device)).squeeze(1)


def cut_to_four_bits(model: Any, device: str) -> None:
    """Put bitsandbytes' layers of 4 bits in the place of the decoder's linear ones."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind: Any = {"quant_type": "nf4", "compress_statistics": True}
    for layer in model.get_decoder().layers:
        for name, part in list(layer.named_modules()):
            if isinstance(part, torch.nn.Linear):
                new = Linear4bit(
                    part.in_features, part.out_features, bias=False, compute_dtype=torch.bfloat16, **kind
                )
                new.weight = Params4bit(part.weight.data.cpu(), requires_grad=False, **kind)
                layer.set_submodule(name, new.to(device))
    model.is_loaded_in_4bit = True  # what peft asks


def clock(world: World, work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median seconds of a call, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        if world.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def peak_memory(world: World, work: Callable[[], object]) -> int | None:
    """Return the bytes that a call takes above what is there; None on a CPU."""
    if world.device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def preference_step(world: World, batch: TokenBatch, reference: torch.Tensor | None = None) -> torch.Tensor:
    """Take a preference step without the optimizer; return the loss.

    Args:
        world: whose policy learns.
        batch: rows.
        reference: what the reference says of them; None: it is asked.
    """
    policy = world.policy
    if reference is None:
        reference = reference_of(world, batch)
    logps = policy.logps(batch)
    loss = preference_loss(logps, reference, beta=1.0, margin=6.0, clusters=3).loss.mean()
    loss.backward()
    return loss.detach()


@torch.no_grad()
def reference_of(world: World, batch: TokenBatch) -> torch.Tensor:
    """Return (B, 1 + K) log-probabilities of the reference."""
    with world.policy.speaking_as(REFERENCE):
        return world.policy.logps(batch)
