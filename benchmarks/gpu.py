"""What a GPU makes of this package, in one run of at most ten minutes, without a network and without RecBole.

    python benchmarks/gpu.py [--shapes smollm2-135m llama2-7b] [--parts correctness step ...]
                             [--seconds 600] [--json FILE] [--markdown FILE]

It needs torch, transformers and peft alone, and drives ``language_model``, ``title_trie``, ``objectives`` and
the checkpoints of ``training``. Weights are random in known shapes, and so are the tokens. A part that lacks
something says what, and one that would not end in time is left out and says so. ``--shapes tiny`` is a dry
run that any CPU can do.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from gpu_world import SHAPES, World, clock, peak_memory, preference_step, reference_of  # first

import gpu_attention  # isort: skip
import gpu_job  # isort: skip
import naive  # isort: skip
import numpy as np  # isort: skip
import torch  # isort: skip
from beams import allowed, beam_titles  # isort: skip
from gpu_report import Recipe, markdown, projected  # isort: skip

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model.decoder import compile_layers, decoder_layers
from recbole_dynamicpo.language_model.logps import separate_logps
from recbole_dynamicpo.language_model.packed import TokenBatch, on_device
from recbole_dynamicpo.language_model.policy import REFERENCE
from recbole_dynamicpo.language_model.tree import separate_states
from recbole_dynamicpo.scoring.token_budget import Shortage, if_memory_allows
from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps, child_products
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trunk import pack_trees, pack_whole

NEGATIVES = (1, 7, 15, 19)
# Float32 sums in other orders; bfloat16 keeps 8 bits of each product. Gradients: of their norm.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2.0}
GRADIENT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
SETTINGS = SimpleNamespace(dynamic=True, beta=1.0, margin=6.0, num_clusters=3)
BEAMS = 20
LARGE = ("llama2-7b", "qwen2.5-7b")
JOB = 150.0  # seconds that the default job may take
BUILDING = 20.0  # seconds for a large model's weights; a guess, as those of the parts
Result = dict[str, Any]


def rows_of(world: World) -> int:
    """Return the rows of a step."""
    return 2 if world.quick else 8


def correctness(world: World) -> Result:
    """Every voice, the whole catalogue and dense rows against one sequence a title; values and gradients."""
    policy, model = world.policy, world.policy.peft.get_base_model()
    batch, found = world.batch(2, 5), {}
    with torch.no_grad():
        for voice in ("policy", REFERENCE, "backbone"):
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
    gradient = _gradient_difference(world, batch)
    with torch.no_grad():
        policy.freeze_reference()
        found["policy less reference at step 0"] = (
            (policy.logps(batch) - reference_of(world, batch)).abs().max().item()
        )
    shares = policy.backbone.shares_prompt  # else both ways are one
    close = max(found.values()) <= TOLERANCE[world.dtype] and gradient <= GRADIENT_TOLERANCE[world.dtype]
    said: Result = {"differences": found, "gradient, of its norm": gradient, "in_one_pass": shares}
    return said | {"holds": close and shares}


def _gradient_difference(world: World, batch: TokenBatch) -> float:
    """Return how far the gradients of one pass are from those of a sequence a title, of their norm."""
    policy, parameters = world.policy, world.policy.trainable()
    model = policy.peft.get_base_model()
    ours = torch.autograd.grad(policy.logps(batch).sum(), parameters)
    alone = torch.autograd.grad(separate_logps(model, batch, plain_head=True).sum(), parameters)
    one, other = (torch.cat([part.flatten().float() for part in parts]) for parts in (ours, alone))
    return ((one - other).norm() / other.norm()).item()


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
    """A step of 8 rows against one as published code takes it: times, memory, loss.

    The other way has a second model as reference and takes as many rows at once as memory allows.
    """
    found: Result = {}
    second = naive.second_model(world.policy)
    for negatives in (1, 15) if world.quick else NEGATIVES:
        batch = world.batch(rows_of(world), negatives)
        known = reference_of(world, batch)
        ours = partial(preference_step, world, batch)
        line: Result = {"tokens": batch.tokens(), "ours_s": clock(world, ours)}
        line["cached_s"] = clock(world, partial(preference_step, world, batch, known))
        line["ours_bytes"] = peak_memory(world, ours)
        line |= _naive(world, second, batch)
        if "naive_s" in line:
            line["speedup"] = line["naive_s"] / line["ours_s"]
            line["loss_difference"] = abs(ours().item() - line.pop("naive_loss"))
        found[f"K = {negatives}"] = line
    return found


def _naive(world: World, second: Any, batch: TokenBatch) -> Result:
    """Return time, memory and loss of the other way."""

    def slow(at_once: int) -> torch.Tensor:
        total = torch.zeros(())
        for start in range(0, len(batch.prompt), at_once):
            part = TokenBatch(*(tensor[start : start + at_once] for tensor in batch))
            with torch.no_grad():
                reference = naive.logps(second, part, world.device)
            own = naive.loss(naive.logps(world.policy.peft, part, world.device), reference, SETTINGS)
            loss = own * (len(part.prompt) / len(batch.prompt))
            loss.backward()
            total += loss.detach().cpu()
        return total

    rows = len(batch.prompt)
    while rows:
        loss = if_memory_allows(partial(slow, rows))
        if not isinstance(loss, Shortage):
            work = partial(slow, rows)
            return {
                "naive_s": clock(world, work, 1), "naive_bytes": peak_memory(world, work),
                "naive_rows_at_once": rows, "naive_loss": loss.item(),
            }  # fmt: skip
        rows //= 2
    return {"lacked": "memory for the naive step"}


def use(world: World) -> Result:
    """Share of the device's peak: in training, 4 operations a weight and token; in ranking, 2."""
    size = 256 if world.quick else 8192
    factor = torch.randn(size, size, device=world.device, dtype=getattr(torch, world.dtype))
    peak = 2 * size**3 / clock(world, partial(torch.mm, factor, factor))
    del factor
    batch = world.batch(rows_of(world), 15)
    spent = clock(world, lambda: world.policy.logps(batch).sum().backward())
    found = {"peak_tflops": peak / 1e12, "tokens_per_second": batch.tokens() / spent}
    found["training_of_peak"] = 4 * world.weights * batch.tokens() / spent / peak
    trie, prompts = world.trie(), world.prompts(rows_of(world))
    tokens = pack_whole(prompts, lay_out(trie, np.arange(trie.num_titles)[None])).tokens()
    with torch.no_grad():
        ranked = clock(world, lambda: world.all_titles(trie, prompts))
    return found | {"ranking_of_peak": 2 * world.weights * tokens / ranked / peak}


def ranking(world: World) -> Result:
    """Users a second: all titles of a catalogue exactly, and transformers' beams held to it."""
    trie, rows = world.trie(), rows_of(world)
    prompts = world.prompts(rows)
    with torch.no_grad():
        spent = clock(world, lambda: world.all_titles(trie, prompts))
        exact = world.all_titles(trie, prompts[:1])[0].topk(min(BEAMS, trie.num_titles)).indices.tolist()
    model, following = world.policy.peft.get_base_model(), allowed(trie)
    search = partial(beam_titles, model, trie, prompts[0], following, len(exact))
    searched = clock(world, search, 1)
    found = {"titles": trie.num_titles, "users_per_second": rows / spent, "beams": len(exact)}
    found |= {"beams_users_per_second": 1 / searched, "speedup": searched * rows / spent}
    return found | {"missed_by_beams": len({*exact} - search()) / len(exact)}


def memory(world: World) -> Result:
    """Run out of memory on purpose, and go on with less."""
    if world.device == "cpu":
        return {"lacked": "a GPU"}
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((total - free + (1 << 30)) / total)
    rows, most = 256, 256
    try:
        while rows and isinstance(
            if_memory_allows(partial(preference_step, world, world.batch(rows, 15))), Shortage
        ):
            rows //= 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"rows_that_fit": rows, "recovered": 0 < rows < most}


def gaps(world: World) -> Result:
    """The ten longest waits of the device inside a step: seconds, and what came after."""
    if world.device == "cpu":
        return {"lacked": "a GPU"}
    batch = world.batch(8, 15)
    preference_step(world, batch)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        preference_step(world, batch)
        torch.cuda.synchronize()
    there = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end, event.name) for event in there)
    waits, end = [], spans[0][1]
    for start, stop, name in spans[1:]:
        waits.append((max(0, start - end) / 1e6, name[:60]))
        end = max(end, stop)
    longest = [f"{seconds:.6f} before {name}" for seconds, name in sorted(waits, reverse=True)[:10]]
    busy = sum(seconds for seconds, _ in waits)
    return {"longest": longest, "sum_s": busy, "step_s": (end - spans[0][0]) / 1e6, "operations": len(spans)}


def compiled(world: World) -> Result:
    """Each layer in one compiled call: seconds until the first step ends, and of a step."""
    batch = world.batch(rows_of(world), 15)
    work = partial(preference_step, world, batch)
    plain = work().item()
    found: Result = {"plain_s": clock(world, work)}
    model = world.policy.peft.get_base_model()
    compile_layers(model)
    try:
        started = time.perf_counter()
        difference = abs(work().item() - plain)
        found["first_s"] = time.perf_counter() - started
        found |= {"compiled_s": clock(world, work), "loss_difference": difference}
    except BackboneError as error:
        return found | {"lacked": str(error)}
    finally:
        for layer in decoder_layers(model):
            del layer.forward
    found["speedup"] = found["plain_s"] / found["compiled_s"]
    return found | {"holds": difference <= TOLERANCE[world.dtype]}


def four_bits(world: World) -> Result:
    """Weights of 4 bits against those of 16: bytes, seconds of a step of 8 rows, log-probabilities."""
    there = {"a GPU": world.device != "cpu", "bitsandbytes": find_spec("bitsandbytes") is not None}
    if not all(there.values()):
        return {"lacked": " and ".join(name for name, is_there in there.items() if not is_there)}
    batch, found, said = world.batch(rows_of(world), 15), {}, []
    for name, cut in (("bfloat16", False), ("nf4", True)):
        own = World(world.name, torch.bfloat16, world.device, world.quick, cut)
        decoder = own.policy.peft.get_base_model().get_decoder()
        kept = sum(part.numel() * part.element_size() for part in decoder.layers.parameters())
        with torch.no_grad(), own.policy.speaking_as("backbone"):
            said.append(own.policy.logps(batch))
        spent = clock(own, partial(preference_step, own, batch))
        taken = peak_memory(own, partial(preference_step, own, batch))
        found[name] = {"layer_bytes": kept, "step_s": spent, "step_bytes": taken}
    found["mean_difference"] = (said[0] - said[1]).abs().mean().item()
    return found


class Part(NamedTuple):
    """One thing that is found out.

    Attributes:
        work: returns figures; ``holds: False`` among them is a failure.
        seconds: that it is thought to take of a large model on a GPU; nobody has measured that.
        last: once, of the first model, when all else is done.
    """

    work: Callable[[World], Result]
    seconds: float
    last: bool = False


def job(world: World) -> Result:
    """The default job, killed and gone on with, where RecBole and its backbone are at hand."""
    if world.device == "cpu":
        return {"lacked": "a GPU"}
    return gpu_job.job(["--dataset=ml-100k", "--eval_rows=50"], JOB)


PARTS = {
    "correctness": Part(correctness, 15),
    "step": Part(step, 90),
    "use": Part(use, 10),
    "ranking": Part(ranking, 20),
    "memory": Part(memory, 10),
    "gaps": Part(gaps, 10),
    "compiled": Part(compiled, 60),
    "attention": Part(gpu_attention.attention, 40),
    "four_bits": Part(four_bits, 40),
    "resume": Part(gpu_job.resume, 60, last=True),
    "job": Part(job, JOB, last=True),
}


class Run:
    """A run of the parts, within a time; what is found is written as soon as it is known.

    Args:
        seconds: in all.
        recipe: of the main experiment, for the projection.
        json_file, page: where the report goes, if anywhere.
    """

    def __init__(
        self, seconds: float, recipe: Recipe, json_file: Path | None = None, page: Path | None = None
    ) -> None:
        self.began = time.perf_counter()
        self.ends = self.began + seconds
        self.recipe, self.wrong = recipe, False
        self._json, self._page = json_file, page
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        name = torch.cuda.get_device_name() if self.device == "cuda" else platform.processor()
        about = {"device": name, "python": platform.python_version(), "torch": torch.__version__}
        self.report: Result = about | {library: version(library) for library in ("transformers", "peft")}

    def model(self, name: str, dtype: str, parts: Sequence[str]) -> None:
        """Do the parts on one model."""
        left, quick = self.ends - time.perf_counter(), name == "tiny"
        if not parts:
            return
        if left < (0 if quick else BUILDING):
            self._say(f"{name} {dtype}", {"skipped": f"{left:.0f} s are left"})
            return
        world, found = World(name, getattr(torch, dtype), self.device, quick=quick), {}
        for part in parts:
            found[part] = self._part(world, part)
            self._say(f"{name} {dtype} {part}", found[part])
        if "step" in found and name in LARGE:  # the paper's sizes
            hours = projected(found, rows_of(world), self.recipe)
            self._say(f"{name} {dtype} main experiment, hours", hours)
        del world
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _part(self, world: World, name: str) -> Result:
        """Return what a part found, lacked or raised; one that fails does not take the others along."""
        part, left = PARTS[name], self.ends - time.perf_counter()
        wanted = 0.0 if world.quick else part.seconds
        if left < wanted:
            return {"skipped": f"{left:.0f} s are left, and some {wanted:.0f} s are wanted"}
        started, found = time.perf_counter(), {}
        try:
            found = part.work(world)
        except torch.OutOfMemoryError as error:
            found["lacked"] = f"memory: {str(error).splitlines()[0]}"
        except Exception as error:
            found |= {"holds": False, "error": f"{type(error).__name__}: {error}"[:500]}
        self.wrong |= found.get("holds") is False
        return {**found, "seconds": time.perf_counter() - started}

    def _say(self, name: str, found: Result) -> None:
        self.report |= {name: found, "seconds": round(time.perf_counter() - self.began, 1)}
        print(f"{name}: {json.dumps(found)}", flush=True)
        if self._json:
            self._json.write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")
        if self._page:
            self._page.write_text(markdown(self.report), encoding="utf-8")


def plan(shapes: Sequence[str], parts: Sequence[str], device: str) -> list[tuple[str, str, list[str]]]:
    """Return models with what is found out of each, in the order of what it decides.

    On a GPU float32 is for correctness alone, and for a training that is to come out the same to the bit.
    """
    narrow = "bfloat16" if device == "cuda" else "float32"
    each = [part for part in parts if not PARTS[part].last]
    last = [part for part in parts if PARTS[part].last]
    found = []
    for name in shapes:
        if device == "cuda" and name not in LARGE:
            found.append((name, "float32", [part for part in each if part == "correctness"]))
        found.append((name, narrow, each))
    return [*found, (shapes[0], "bfloat16" if shapes[0] in LARGE else "float32", last)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description="this package on a GPU", allow_abbrev=False)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", *LARGE])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="that all may take (540)")
    parser.add_argument("--paper_rows", type=int, default=Recipe().rows, help="of the main experiment")
    parser.add_argument("--json", type=Path, help="write the report into this file too")
    parser.add_argument("--markdown", type=Path, help="write it as a page")
    options = parser.parse_args(arguments)
    run = Run(options.seconds, Recipe(rows=options.paper_rows), options.json, options.markdown)
    for name, dtype, parts in plan(options.shapes, options.parts, run.device):
        run.model(name, dtype, parts)
    return int(run.wrong)


if __name__ == "__main__":
    sys.exit(main())
