"""What a run is, for whoever looks at it later: one file that is written before the first step.

``record.json`` and ``metrics.jsonl`` are the truth; MLflow shows a copy of them, which can be made at
any time (``tracking``).
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..ingredients import Ingredients, bare_defaults, describes_run, nested_settings
from ..storage import load_json, write_json
from ..version import __version__
from .run_folder import IDENTITY_FILE, read_identity

RECORD_FILE, JOURNAL_FILE, AUDIT_FILE, PROBE_FILE = "record.json", "metrics.jsonl", "audit.json", "probe.json"


@dataclass(frozen=True)
class Record:
    """A run, described.

    Attributes:
        name: ``<model>-<dataset>-<configuration hash>-s<seed>``.
        key: of this run alone; finds it again on a tracking server.
        model, dataset, seed: of the run.
        config_hash: SHA-256 of everything that decides the result.
        data: digest and rows of each split.
        params: the final settings, flat, without secrets.
        ingredients: what of these and of the facts decides the result; empty in records of 0.1.0.
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
    ingredients: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def stage_folder(self, run_folder: Path, stage: str) -> Path:
        """Return where a stage's journal and results lie."""
        return run_folder / self.stages.get(stage, ".")


def describe(
    params: Mapping[str, Any],
    ingredients: Ingredients,
    *,
    data: dict[str, Any],
    tags: Mapping[str, str],
    stages: Mapping[str, str] | None = None,
) -> Record:
    """Return the record of a run.

    Args:
        params: its final settings, flat; with ``model``, ``dataset`` and ``seed``.
        ingredients: everything that decides its results.
        data: name, digest, and rows of each split.
        tags: backbone, its hash, our version, who started it.
        stages: where each stage's journal and results lie, if not in the run's own folder.
    """
    config_hash = ingredients.digest("evaluate")
    model, dataset, seed = str(params["model"]), str(params["dataset"]), int(params["seed"])
    commit = git_commit(Path.cwd())
    return Record(
        name=f"{model}-{dataset}-{config_hash[:8]}-s{seed}",
        model=model,
        dataset=dataset,
        seed=seed,
        config_hash=config_hash,
        data=data,
        params=dict(params),
        ingredients=dict(ingredients.values),
        tags={**({"git_commit": commit} if commit else {}), **tags},
        stages=dict(stages or {}),
    )


def run_tags(backbone: str, fingerprint: str) -> dict[str, str]:
    """Return what the record of one of our models is tagged with: backbone, its hash, and our version."""
    return {"backbone": Path(backbone).name, "backbone_sha256": fingerprint, "version": __version__}


def write_record(
    folder: Path,
    record: Record,
    audit: Mapping[str, Any] | None = None,
    probe: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the record of the run in ``folder``, and what is known of its data.

    Args:
        folder: of the run.
        record: what it is.
        audit: what a reader of figures on the data has to know.
        probe: validation rows on which a registered copy of the model is tried.
    """
    write_json(folder / RECORD_FILE, asdict(record))
    for name, known in ((AUDIT_FILE, audit), (PROBE_FILE, probe)):
        if known is not None:
            write_json(folder / name, known)


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


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Return what the run in ``folder`` was told that says which run it is; not where and how it was made.

    A stage's folder has no record and tells only what decides its training; a folder without either, nothing.
    A setting that came with a later version has its bare default, which leaves what was before it.

    Raises:
        CheckpointError: a file is damaged.
    """
    if (folder / RECORD_FILE).is_file():
        params, last = read_record(folder).params, "evaluate"
    elif (folder / IDENTITY_FILE).is_file():
        params, last = read_identity(folder), "preference"
    else:
        return {}
    try:
        said = {key: value for key, value in params.items() if not key.startswith("fact.")}
        told = nested_settings({key: value for key, value in said.items() if describes_run(key)})
        return {**bare_defaults(last), **told}
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder}: not the settings of a run ({error})") from error


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out in ``folder``; None where there is no repository."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
