"""Results of stages in folders that are named by what decides them, so that nothing is computed twice.

A folder counts as a result only while its manifest is there and every file in it has the recorded
hash; anything else is a stage that did not end, and is gone on with.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .ingredients import Ingredients, versions
from .serving.folder import MODEL_CARD_FILE
from .settings import package_folder, properties_folder
from .storage import difference, load_json, set_aside, sha256_files, sha256_json, write_json
from .training.checkpoint import CHECKPOINT

logger = logging.getLogger(__name__)

MANIFEST_FILE = "done.json"


@dataclass(frozen=True)
class StageResult:
    """What a stage left, in terms that JSON can hold.

    Attributes:
        stage: ``prepare``, ``sft``, ``preference`` or ``evaluate``.
        key: hash of everything that decides the result.
        folder: where it lies.
        outputs: small results, different for each stage.
        cached: whether it was there already.
    """

    stage: str
    key: str
    folder: str
    outputs: dict[str, Any] = field(default_factory=dict)
    cached: bool = False


@cache
def code_digest() -> str:
    """Return the SHA-256 of this package's code and shipped defaults: other code may give other results.

    Every module of the package counts, by its path within it; an orchestrator's flows decide nothing.
    """
    return digest_of(package_folder(), properties_folder())


def digest_of(home: Path, shipped: Path) -> str:
    """Return the SHA-256 over paths and bytes of modules below ``home`` and files below ``shipped``."""
    files = {
        path.relative_to(home).as_posix(): path
        for path in home.rglob("*.py")
        if path.relative_to(home).parts[0] != "flows"
    }
    for pattern in ("*.yaml", "*.txt"):
        files |= {
            f"properties/{path.relative_to(shipped).as_posix()}": path for path in shipped.rglob(pattern)
        }
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def stage_key(stage: str, ingredients: Ingredients) -> str:
    """Return the key of a stage's result: everything that decides it, our code and the libraries included."""
    return sha256_json([stage, ingredients.upto(stage), versions(), code_digest()])


def stage_folder(store: Path, stage: str, key: str) -> Path:
    """Return where the result with ``key`` lies."""
    return store / "stages" / f"{stage}-{key[:16]}"


def finish(folder: Path, result: StageResult) -> StageResult:
    """Write the manifest that makes ``folder`` a result."""
    files = sha256_files(folder, _result_files(folder))
    write_json(folder / MANIFEST_FILE, {**asdict(result), "files": files})
    return result


def finished(folder: Path, key: str) -> StageResult | None:
    """Return the result in ``folder`` if it is whole and belongs to ``key``; None otherwise.

    A result that was whole once and is not any more is moved aside with a warning.

    Raises:
        OSError: the disk cannot say whether it is whole.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    reason = ""
    try:
        manifest = load_json(path)
        files = manifest.pop("files")
        reason = difference(folder, files) or ("" if manifest["key"] == key else "it has another key")
        if not reason:
            return StageResult(**{**manifest, "cached": True, "folder": str(folder)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"damaged manifest ({error!r})"
    logger.warning("%s: not used, %s; now %s, and the stage is done again", folder, reason, set_aside(folder))
    return None


def _result_files(folder: Path) -> list[str]:
    """Return the files that make up the result.

    The checkpoint only served the way there; a model card is written again when its run is evaluated.
    """
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    decides = (name for name in names if name.parts[0] != CHECKPOINT and name.name != MODEL_CARD_FILE)
    return [str(name) for name in decides if not _hidden(name)]


def _hidden(name: Path) -> bool:
    """Say whether a file is, or lies in, something that is being written or only keeps others out."""
    return any(part.startswith(".") for part in name.parts)
