"""What a GPU makes of this package, in one run of some minutes, without a network and without RecBole.

    python benchmarks/gpu.py [--shapes smollm2-135m llama2-7b] [--parts correctness step ...] [--json FILE]

It needs torch, transformers and peft alone, and drives ``language_model``, ``title_trie`` and ``objectives``.
Weights are random in known shapes, and so are the tokens; each part says what it lacked. ``--shapes tiny`` is
a dry run that any CPU can do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "recbole_dynamicpo" not in sys.modules:  # its face would register with RecBole, which need not be here
    package, spec = ModuleType("recbole_dynamicpo"), find_spec("recbole_dynamicpo")
    beside = ROOT / "recbole_dynamicpo"
    package.__path__ = (
        [str(beside)] if beside.is_dir() else [*(spec.submodule_search_locations if spec else [])]
    )
    sys.modules["recbole_dynamicpo"] = package

import naive  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from recbole_dynamicpo.language_model.adapter_folder import LoraShape  # noqa: E402
from recbole_dynamicpo.language_model.backbone import Backbone  # noqa: E402
from recbole_dynamicpo.language_model.logps import separate_logps  # noqa: E402
from recbole_dynamicpo.language_model.packed import TokenBatch, on_device  # noqa: E402
from recbole_dynamicpo.language_model.policy import POLICY, REFERENCE, Policy  # noqa: E402
from recbole_dynamicpo.language_model.probe import find_abilities  # noqa: E402
from recbole_dynamicpo.language_model.tree import separate_states  # noqa: E402
from recbole_dynamicpo.objectives.preference import preference_loss  # noqa: E402
from recbole_dynamicpo.scoring.token_budget import Shortage, if_memory_allows  # noqa: E402
from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps, child_products  # noqa: E402
from recbole_dynamicpo.title_trie.title_layout import lay_out  # noqa: E402
from recbole_dynamicpo.title_trie.trie_builder import build_trie  # noqa: E402
from recbole_dynamicpo.title_trie.trunk import pack_trees, pack_whole  # noqa: E402

# hidden, intermediate, layers, heads, key and value heads, vocabulary.
SHAPES = {
    "tiny": (32, 48, 2, 4, 2, 100),
    "smollm2-135m": (576, 1536, 30, 9, 3, 49152),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, 152064),
    "llama2-7b": (4096, 11008, 32, 32, 32, 32000),
}
NEGATIVES = (1, 7, 15, 19)
# Float32 sums in other orders; bfloat16 keeps 8 bits of each product.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2.0}
SETTINGS = SimpleNamespace(dynamic=True, beta=1.0, margin=6.0, num_clusters=3)
Result = dict[str, Any]


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
        from transformers import LlamaConfig, LlamaForCausalLM

        hidden, inner, layers, heads, kept, self.vocabulary = SHAPES[name]
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kept, vocab_size=self.vocabulary, max_position_embeddings=4096,
            attn_implementation="sdpa",
        )  # fmt: skip
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = LlamaForCausalLM(config).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)
        abilities = find_abilities(model, name)._asdict()
        if four_bits:
            cut_to_four_bits(model, device)
        backbone = Backbone(model, None, name, "random", **abilities)
        self.policy = Policy(backbone, LoraShape(8, 16.0, 0.0, ("q_proj", "v_proj"), 0), seed=0)
        self._move(1)
        self.policy.freeze_reference()
        self._move(2)
        self.name, self.device, self.quick = name, device, quick
        self.dtype = str(dtype).removeprefix("torch.")
        self.weights = sum(weight.numel() for weight in model.parameters())
        self.draw = np.random.default_rng(0)

    @torch.no_grad()
    def _move(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for name, weight in self.policy.peft.named_parameters():
            if f"lora_B.{POLICY}." in name:
                weight.add_((torch.randn(weight.shape, generator=draw) * 0.01).to(weight))

    def batch(self, rows: int, negatives: int) -> TokenBatch:
        """Return rows of a prompt and 1 + K titles of 3 to 8 tokens."""
        prompt = 12 if self.quick else 200
        draw = torch.Generator().manual_seed(rows * 100 + negatives)
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


def our_step(world: World, batch: TokenBatch) -> torch.Tensor:
    """Take a preference step without the optimizer; return the loss."""
    policy = world.policy
    with torch.no_grad(), policy.speaking_as(REFERENCE):
        reference = policy.logps(batch)
    logps = policy.logps(batch)
    loss = preference_loss(logps, reference, beta=1.0, margin=6.0, clusters=3).loss.mean()
    loss.backward()
    return loss.detach()


def correctness(world: World) -> Result:
    """Every voice, the whole catalogue and dense rows against one sequence a title."""
    policy, model = world.policy, world.policy.peft.get_base_model()
    batch, found = world.batch(2, 5), {}
    with torch.no_grad():
        for voice in (POLICY, REFERENCE, "backbone"):
            with policy.speaking_as(voice):
                ours = policy.logps(batch)
                alone = separate_logps(model, batch, plain_head=True, most_tokens=None)
            found[f"{voice}: one pass against a sequence a title"] = (ours - alone).abs().max().item()
        trie, prompts = world.trie(), world.prompts(2)
        layout = lay_out(trie, np.arange(trie.num_titles)[None])
        whole = policy.tree_states(pack_whole(prompts, layout)).states
        single = separate_states(model, pack_whole(prompts, layout), None).states
        found["catalogue: states in one pass against a sequence a node"] = (whole - single).abs().max().item()
        found["catalogue: shares less 1"] = (
            (world.all_titles(trie, prompts).exp().sum(dim=1) - 1).abs().max().item()
        )
        found["dense rows against a sequence a position"] = _dense_difference(world, trie)
        policy.freeze_reference()
        with policy.speaking_as(REFERENCE):
            frozen = policy.logps(batch)
        found["policy less reference at step 0"] = (policy.logps(batch) - frozen).abs().max().item()
    return {"differences": found, "holds": max(found.values()) <= TOLERANCE[world.dtype]}


def _dense_difference(world: World, trie: Any) -> float:
    """Return how far titles behind places of one trunk are from titles behind prompts that end there."""
    titles = world.draw.integers(0, trie.num_titles, 6)
    paths = [trie.token[trie.path(int(trie.leaf[title]))].tolist() for title in titles]
    head = world.prompts(1)[0]
    trunk, place = [*head], []
    for path in paths:
        place.append(len(trunk) - 1)
        trunk += path
    rows, places = np.zeros(len(paths), np.int64), np.array(place)
    asked = np.stack([titles, np.roll(titles, 1)], axis=1)
    found = []
    for trunks, row, at in (
        ([trunk], rows, places),
        ([trunk[: end + 1] for end in place], np.arange(len(paths)), places),
    ):
        layout = lay_out(trie, asked)
        batch = pack_trees(trunks, row, at, layout, np.full(len(layout.nodes.node), -1))
        states = world.policy.tree_states(batch).states[None]
        products = child_products(states, world.policy.output_layer, on_device(layout.edges, states.device))
        found.append(catalogue_logps(products, on_device(layout, products.device)))
    return (found[0] - found[1]).abs().max().item()


def step(world: World) -> Result:
    """A step of 8 rows against the naive one: times, memory, loss."""
    found: Result = {}
    second = naive.second_model(world.policy)
    for negatives in NEGATIVES[:2] if world.quick else NEGATIVES:
        batch = world.batch(2 if world.quick else 8, negatives)

        def slow(batch: TokenBatch = batch) -> torch.Tensor:
            with torch.no_grad():
                reference = naive.logps(second, batch, world.device)
            loss = naive.loss(naive.logps(world.policy.peft, batch, world.device), reference, SETTINGS)
            loss.backward()
            return loss.detach()

        def ours(batch: TokenBatch = batch) -> torch.Tensor:
            return our_step(world, batch)

        line: Result = {"ours_s": clock(world, ours), "ours_bytes": peak_memory(world, ours)}
        try:
            line |= {"naive_s": clock(world, slow, 1), "naive_bytes": peak_memory(world, slow)}
            line |= {"speedup": line["naive_s"] / line["ours_s"]}
            line["loss_difference"] = abs(ours().item() - slow().item())
        except torch.OutOfMemoryError:
            line["lacked"] = "memory for the naive step"
        found[f"K = {negatives}"] = line
    return found


def use(world: World) -> Result:
    """Share of the device's peak in training, by 4 operations a frozen weight and token."""
    size = 256 if world.quick else 8192
    factor = torch.randn(size, size, device=world.device, dtype=getattr(torch, world.dtype))
    peak = 2 * size**3 / clock(world, lambda: factor @ factor)
    batch = world.batch(2 if world.quick else 8, 15)
    spent = clock(world, lambda: world.policy.logps(batch).sum().backward())
    return {"peak_tflops": peak / 1e12, "of_peak": 4 * world.weights * batch.tokens() / spent / peak}


def ranking(world: World) -> Result:
    """Users a second, all titles of a catalogue exactly."""
    trie, rows = world.trie(), 2 if world.quick else 8
    prompts = world.prompts(rows)
    with torch.no_grad():
        spent = clock(world, lambda: world.all_titles(trie, prompts))
    return {"titles": trie.num_titles, "users_per_second": rows / spent}


def memory(world: World) -> Result:
    """Run out of memory on purpose, and go on with less."""
    if world.device == "cpu":
        return {"lacked": "a GPU"}
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((total - free + (1 << 30)) / total)
    rows = 64
    try:
        while isinstance(if_memory_allows(partial(our_step, world, world.batch(rows, 15))), Shortage):
            rows //= 2
            torch.cuda.empty_cache()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"rows_that_fit": rows, "recovered": 0 < rows < 64}


def gaps(world: World) -> Result:
    """The ten longest waits of the device inside a step, seconds."""
    if world.device == "cpu":
        return {"lacked": "a GPU"}
    batch = world.batch(8, 15)
    our_step(world, batch)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        our_step(world, batch)
        torch.cuda.synchronize()
    on_device = [e.time_range for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((span.start, span.end) for span in on_device)
    waits, end = [], spans[0][1]
    for start, stop in spans[1:]:
        waits.append(max(0, start - end) / 1e6)
        end = max(end, stop)
    return {"longest_s": sorted(waits, reverse=True)[:10], "sum_s": sum(waits)}


def four_bits(world: World) -> Result:
    """Weights of 4 bits against those of 16: bytes, seconds of a step of 8 rows, log-probabilities."""
    there = {"a GPU": world.device != "cpu", "bitsandbytes": find_spec("bitsandbytes") is not None}
    if not all(there.values()):
        return {"lacked": " and ".join(name for name, is_there in there.items() if not is_there)}
    batch, found, said = world.batch(2 if world.quick else 8, 15), {}, []
    for name, cut in (("bfloat16", False), ("nf4", True)):
        own = World(world.name, torch.bfloat16, world.device, world.quick, cut)
        decoder = own.policy.peft.get_base_model().get_decoder()
        kept = sum(part.numel() * part.element_size() for part in decoder.layers.parameters())
        with torch.no_grad(), own.policy.speaking_as("backbone"):
            said.append(own.policy.logps(batch))
        spent = clock(own, partial(our_step, own, batch))
        taken = peak_memory(own, partial(our_step, own, batch))
        found[name] = {"layer_bytes": kept, "step_s": spent, "step_bytes": taken}
    found["mean_difference"] = (said[0] - said[1]).abs().mean().item()
    return found


PARTS = {part.__name__: part for part in (correctness, step, use, ranking, memory, gaps, four_bits)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description="this package on a GPU", allow_abbrev=False)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", "llama2-7b"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write the report into this file too")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    report: Result = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    wrong = False
    for shapes in options.shapes:
        dtypes = ("float32", "bfloat16") if device == "cuda" and "7b" not in shapes else ("bfloat16",)
        for dtype in dtypes if device == "cuda" else ("float32",):
            world = World(shapes, getattr(torch, dtype), device, quick=shapes == "tiny")
            for part in options.parts:
                started = time.perf_counter()
                found = PARTS[part](world)
                wrong |= found.get("holds") is False
                found["seconds"] = time.perf_counter() - started
                report[f"{shapes} {dtype} {part}"] = found
                print(f"{shapes} {dtype} {part}: {json.dumps(found)}", flush=True)
            del world
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
