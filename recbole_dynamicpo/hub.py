"""Adapters of the Hugging Face hub: what is named by an id is fetched, and then read like a local folder."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from .errors import AdapterError

# owner/repository, a folder in it, a revision.
_ID = re.compile(r"([\w.-]+)/([\w.-]+)((?:/[\w. -]+)*)(?:@([\w./-]+))?")
_MARK = "adapter_config.json"
# What is read of such a folder: an adapter, a tokenizer, what a recommender has beside; no pickles.
_FETCHED = ("adapter_model.safetensors", "priors.safetensors", "*.json", "tokenizer.model", "merges.txt")


def find_adapter(name: str | Path) -> Path:
    """Return the folder of an adapter: a local one, or the hub's as its cache has it.

    Args:
        name: a local folder, or an id of the hub, which may go on with a folder in the repository and with a
            revision: ``owner/repository/folder@revision``. What is no folder here and cannot be such an id
            is returned as it is, and whoever reads it says that it is not there.

    Raises:
        AdapterError: the hub has no adapter of that name, or cannot be reached.
    """
    local, parts = Path(name), _ID.fullmatch(str(name))
    if parts is None or local.exists() or {".", ".."} & set(local.parts) or Path(parts[1]).is_dir():
        return local
    return _fetched(f"{parts[1]}/{parts[2]}", parts[3].strip("/"), parts[4])


@lru_cache  # a process goes on with what it found first, whatever becomes of a branch
def _fetched(repository: str, inside: str, revision: str | None) -> Path:
    """Return the folder ``inside`` a repository; its last revision where none is named."""
    from huggingface_hub import snapshot_download

    try:
        # The small files of all folders first: they tell where adapters are, and fix the revision.
        place = Path(snapshot_download(repository, revision=revision, allow_patterns=[f"*{_MARK}"]))
        folders = sorted(path.parent.relative_to(place).as_posix() for path in place.rglob(_MARK))
        if (inside or ".") in folders:
            before = f"{inside}/" if inside else ""
            snapshot_download(
                repository,
                revision=place.name,
                allow_patterns=[before + file for file in _FETCHED],
                ignore_patterns=[f"{before}*/*"],  # a star goes through folders
            )
            return place / inside
    except Exception as error:  # the client lets errors of several other libraries through
        reason = (str(error).strip().splitlines() or [""])[0]
        raise AdapterError(
            f"{repository}: no folder here, and not to be had from the hub ({type(error).__name__}: {reason})"
        ) from error
    wanted = f"wanted one of its folders {', '.join(folders)}" if folders else "there is none in it at all"
    raise AdapterError(f"{repository}: no adapter in {inside or 'its top folder'}; {wanted}")
