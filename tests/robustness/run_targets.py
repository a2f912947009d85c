"""Readers of what runs and ``prepare`` leave, each with a valid specimen and a judge of what it returns."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recbole_dynamicpo.data.catalogue import Catalogue
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.dataset.data_files import data_notes
from recbole_dynamicpo.language_model.adapter_folder import LoraShape, read_adapter, read_lora_shape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.names import STAGES
from recbole_dynamicpo.saved_models.rows import settings_of
from recbole_dynamicpo.serving import recommender
from recbole_dynamicpo.serving.folder import Card
from recbole_dynamicpo.serving.recommender import load_recommender
from recbole_dynamicpo.storage import sha256_file, write_json
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.tracking.run_folder import check_identity, write_identity
from recbole_dynamicpo.training.checkpoint import Progress, load_checkpoint, load_progress, save_checkpoint
from recbole_dynamicpo.training.reference import ReferenceCache

from ..helpers.published_data import small_published
from .harness import Target
from .targets import TITLES

SHAPE = LoraShape(2, 4, 0.0, ("q_proj", "v_proj"), 1)


# --- adapters, recommenders, checkpoints ---


def policy_of(backbone: Backbone, seed: int = 0) -> Policy:
    """Return a policy with random weights on a copy of ``backbone``."""
    policy = Policy(copied(backbone), SHAPE, seed)
    for parameter in policy.trainable():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    return policy


def copied(backbone: Backbone) -> Backbone:
    """Return a backbone that peft may change."""
    return Backbone(
        copy.deepcopy(backbone.model),
        backbone.tokenizer,
        backbone.name,
        backbone.fingerprint,
        backbone.shares_prompt,
    )


def write_recommender(folder: Path, backbone: Backbone) -> Path:
    """Write what a run leaves in ``saved/<run>/preference``."""
    folder.mkdir(parents=True, exist_ok=True)
    policy_of(backbone).save(folder)
    Catalogue(tuple("abcdefgh"), tuple(TITLES), tuple(range(8))).save(folder / recommender.CATALOGUE_FILE)
    write_json(folder / recommender.TEMPLATES_FILE, ["Liked:\n{history}\nAmong:\n{candidates}\nNext:"])
    maker = {"stage": "sft", "model": "SFTRec"}
    card = Card(backbone.name, backbone.fingerprint, "float32", 2000, 5, 6, 4096, maker, 100)
    recommender.write_card(folder, card)
    return folder


def recommender_file(folder: Path, backbone: Backbone, name: str) -> Target:
    home = write_recommender(folder / "adapter", backbone)

    def read() -> Any:
        """Load and rank, with the backbone in memory."""
        loaded = load_recommender(home)
        return loaded, loaded.rank([TITLES[0], TITLES[3]], k=4)

    def right(found: Any, data: bytes) -> bool:
        loaded, ranked = found
        known = set(loaded.catalogue.titles)
        falling = sorted((item.score for item in ranked), reverse=True)
        return (
            all(item.title in known and math.isfinite(item.score) for item in ranked)
            and [item.score for item in ranked] == falling
        )

    structure = name.endswith(".json")
    return Target(f"recommender, {name}", home / name, read, right, structure, named=False)


def adapter_weights(folder: Path, backbone: Backbone) -> Target:
    policy_of(backbone).save(folder)
    file = folder / "adapter_model.safetensors"

    def right(weights: dict[str, Any], data: bytes) -> bool:
        return all(torch.isfinite(value).all() and value.is_floating_point() for value in weights.values())

    return Target("adapter weights", file, lambda: read_adapter(folder), right)


def adapter_config(folder: Path, backbone: Backbone) -> Target:
    policy_of(backbone).save(folder)
    file = folder / "adapter_config.json"

    def right(shape: LoraShape, data: bytes) -> bool:
        return (
            1 <= shape.rank <= 10_000 and 0 < shape.alpha < math.inf and 0 <= shape.dropout < 1
            and all(shape.targets) and shape.layers >= 0
        )  # fmt: skip

    return Target("adapter configuration", file, lambda: read_lora_shape(folder), right, structure=True)


def checkpoint(folder: Path, backbone: Backbone, name: str) -> Target:
    policy = policy_of(backbone)
    optimizer = torch.optim.AdamW(policy.trainable())
    for parameter in policy.trainable():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    home = folder / "checkpoint"
    done = Progress("preference", 7, 0.5, {"hit@1": 0.5}, 1, False, {"sft": 2.5})
    save_checkpoint(home, policy, optimizer, done)
    whole = (home / name).read_bytes()

    def read() -> Progress:
        progress = load_progress(home)
        load_checkpoint(home, policy, optimizer)
        optimizer.step()
        return progress

    def right(progress: Progress, data: bytes) -> bool:
        """Weights and optimizer are known by their checksums; the progress at least makes sense."""
        if not name.endswith(".json"):
            return data == whole
        return (
            progress.stage in STAGES and progress.step >= 0 and progress.worse >= 0
            and type(progress.stopped) is bool
            and all(math.isfinite(value) for value in progress.seconds.values())
        )  # fmt: skip

    structure = name.endswith(".json")
    return Target(
        f"checkpoint, {name}", home / name, read, right, structure, named=name != "adapter_config.json"
    )


# --- records ---


def identity(folder: Path) -> Target:
    now = {"seed": 3, "beta": 0.5, "model": "DPO", "lora_targets": ["a", "b"], "data": "ab12", "none": None}
    write_identity(folder, now)
    file = folder / "run.json"
    return Target(
        "record of a run (run.json)", file, lambda: check_identity(folder, now),
        lambda _, data: _without_none(json.loads(data)) == _without_none(now), structure=True, named=False,
    )  # fmt: skip


def _without_none(record: dict[str, Any]) -> dict[str, Any]:
    """A setting that is not there is one that is not set."""
    return {key: value for key, value in record.items() if value is not None}


def evaluated_run(folder: Path) -> Target:
    file = folder / "record.json"
    write_json(file, {"params": {"seed": 3, "num_candidates": 6, "candidate_field": "c"}, "version": "1"})
    return Target(
        "settings of a saved run (record.json)", file, lambda: settings_of(folder / "preference"),
        lambda found, data: isinstance(json.loads(data)["params"], dict), structure=True,
    )  # fmt: skip


def journal(folder: Path) -> Target:
    file = folder / "metrics.jsonl"
    record = Journal(file)
    for step in range(1, 6):
        record.write("sft", step, "train", {"loss": 1.0 / step})
    for step in range(1, 6):
        record.write("preference", step, "train", {"loss": 1.0 / step})

    def read() -> Any:
        entries = list(record.entries())
        record.rewind("preference", 3, ("sft",))
        return entries, list(record.entries())

    def right(found: Any, data: bytes) -> bool:
        """Every line that is an entry is there, in order; going back leaves what came before."""
        before, after = found
        return before == list(filter(None, map(_entry, data.split(b"\n")))) and after == [
            entry
            for entry in before
            if entry["stage"] == "sft" or (entry["stage"] == "preference" and entry["step"] <= 3)
        ]

    return Target("journal (metrics.jsonl)", file, read, right)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kinds = {"stage": str, "step": int, "kind": str}
    ours = isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
    return entry if ours else None


def prepared(folder: Path, name: str) -> Target:
    source = small_published(folder / "in")
    out = folder / "out"
    first = prepare("lastfm", source, out, progress=False)
    good = {path.name: sha256_file(path) for path in first.folder.iterdir() if path.suffix != ".json"}

    def read() -> Any:
        again = prepare("lastfm", source, out, progress=False)
        return again, again.table()

    def right(found: Any, data: bytes) -> bool:
        """Whatever the record said, the files are the right ones, and the audit can be shown."""
        again, text = found
        now = {path.name: sha256_file(path) for path in again.folder.iterdir() if path.suffix != ".json"}
        return now == good and again.audit == first.audit and text.startswith("lastfm: ")

    return Target(
        f"prepare, {name}", first.folder / name, read, right, name.endswith(".json"), named=False, slow=5
    )


def manifest_note(folder: Path) -> Target:
    file = folder / "toy" / "manifest.json"
    file.parent.mkdir()
    write_json(file, {"test_from_validation": True, "version": 1})
    config = {
        "data_note": None,
        "data_path": str(file.parent),
        "benchmark_filename": ["train"],
        "dataset": "toy",
    }
    return Target(
        "manifest, for the notes of a run", file, lambda: data_notes(config),
        lambda notes, data: isinstance(json.loads(data), dict), structure=True,
    )  # fmt: skip


def reference_shard(folder: Path) -> Target:
    rows = {f"{number:064x}": [-1.5 * number, -float("inf"), 0.25] for number in range(4)}
    cache = ReferenceCache(folder / "reference")
    cache.store(rows)
    (file,) = cache.folder.iterdir()
    return Target(
        "reference cache shard", file, cache.load, lambda found, data: found in ({}, rows), structure=True
    )


RECORDS: dict[str, Callable[..., Target]] = {
    "run.json": identity,
    "record.json": evaluated_run,
    "journal": journal,
    "manifest": lambda folder: prepared(folder, "manifest.json"),
    "audit": lambda folder: prepared(folder, "audit.json"),
    "prepared-item": lambda folder: prepared(folder, "lastfm.item"),
    "manifest-note": manifest_note,
    "reference": reference_shard,
}
WITH_BACKBONE: dict[str, Callable[..., Target]] = {
    "adapter-weights": adapter_weights,
    "adapter-config": adapter_config,
    **{
        f"recommender-{name}": lambda folder, backbone, name=name: recommender_file(folder, backbone, name)
        for name in (
            *("recommender.json", "catalogue.json", "templates.json"),
            *("adapter_config.json", "adapter_model.safetensors"),
        )
    },
    **{
        f"checkpoint-{name}": lambda folder, backbone, name=name: checkpoint(folder, backbone, name)
        for name in (
            "state.json",
            "optimizer.safetensors",
            "adapter_model.safetensors",
            "adapter_config.json",
        )
    },
}
