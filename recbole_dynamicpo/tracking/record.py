"""What a run is, for whoever looks at it later: one file that is written before the first step.

``record.json`` and ``metrics.jsonl`` are the truth; MLflow shows a copy of them, which can be made at
any time (``tracking``).
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..storage import load_json, sha256_json, write_json
from ..version import __version__

RECORD_FILE, JOURNAL_FILE, AUDIT_FILE, PROBE_FILE = "record.json", "metrics.jsonl", "audit.json", "probe.json"
# The stages of a run as they are recorded; the two in the middle train.
RECORDED = ("prepare", "sft", "preference", "evaluate")

# Settings that say where and how a run is made, not which run it is.
PLACES = {
    *("data_path", "checkpoint_dir", "config_files", "resume", "mlflow_tracking_uri", "register"),
    *("require_improvement", "checkpoint_every", "data_source", "max_memory", "threads"),
    *("show_progress", "state", "gpu_id", "device", "log_wandb", "wandb_project", "nproc", "worker"),
    *("local_rank", "world_size", "offset", "ip", "port", "save_dataset", "save_dataloaders"),
    *("dataset_save_path", "dataloaders_save_path", "encoding", "single_spec", "model", "dataset"),
}
_SECRET = ("token", "secret", "password", "api_key", "credential")


@dataclass(frozen=True)
class Record:
    """A run, described.

    Attributes:
        name: ``<model>-<dataset>-<configuration hash>-s<seed>``.
        key: of this run alone; finds it again on a tracking server.
        model, dataset, seed: of the run.
        config_hash: SHA-256 of the settings that decide the result.
        data: digest and rows of each split.
        params: the final settings, flat, without secrets.
        tags: backbone, its hash, git commit, who started it.
        stages: stage -> folder with that stage's journal and results, relative to the run folder or absolute.
    """

    name: str
    model: str
    dataset: str
    seed: int
    config_hash: str
    data: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def stage_folder(self, run_folder: Path, stage: str) -> Path:
        """Return where a stage's journal and results lie."""
        return run_folder / self.stages.get(stage, ".")


def describe(
    values: Mapping[str, Any], *, data: dict[str, Any], tags: Mapping[str, str], stages: Mapping[str, str]
) -> Record:
    """Return the record of a run with the final configuration ``values``."""
    params = flat_settings(values)
    config_hash = sha256_json({key: value for key, value in params.items() if key not in PLACES})
    model, dataset, seed = str(values["model"]), str(values["dataset"]), int(values["seed"])
    commit = git_commit(Path.cwd())
    every = {**({"git_commit": commit} if commit else {}), **tags}
    return Record(
        name=f"{model}-{dataset}-{config_hash[:8]}-s{seed}",
        model=model,
        dataset=dataset,
        seed=seed,
        config_hash=config_hash,
        data=data,
        params=params,
        tags=every,
        stages=dict(stages),
    )


def run_tags(backbone: str, fingerprint: str) -> dict[str, str]:
    """Return what the record of one of our models is tagged with: backbone, its hash, and our version."""
    return {"backbone": Path(backbone).name, "backbone_sha256": fingerprint, "version": __version__}


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain settings as JSON values, inner mappings as ``outer.inner``, secrets left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or any(word in key.lower() for word in _SECRET):
            continue
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in flat_settings(value).items()})
        elif isinstance(value, list | tuple):
            flat[key] = [str(item) if not isinstance(item, int | float | str) else item for item in value]
        elif value is None or isinstance(value, bool | int | float | str):
            flat[key] = value
    return dict(sorted(flat.items()))


def nested_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings as they were: ``outer.inner`` is an entry of the mapping ``outer``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def write_record(folder: Path, record: Record) -> None:
    """Write the record of the run in ``folder``."""
    write_json(folder / RECORD_FILE, asdict(record))


def read_record(folder: Path) -> Record:
    """Return the record of the run in ``folder``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / RECORD_FILE
    try:
        return Record(**load_json(path))
    except OSError as error:
        raise CheckpointError(f"{path}: wanted the folder of a run ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not the record of a run ({error})") from error


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out in ``folder``; None where there is no repository."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
