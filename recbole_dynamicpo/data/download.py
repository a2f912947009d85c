"""Finding the source files of a data set: on disk by their published names, or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from ..storage import sha256_file
from .sequences import SUFFIXES

HUB = "xingyuHuxingyu/DynamicPO-Data"
HUB_DATA_SETS = ("goodreads", "lastfm", "steam")
ROLES = ("train", "val", "test")  # as in the published names <data set>-<role>.json


def check_name(name: object) -> None:
    """Refuse what is no name of a data set or of a part of one; it becomes part of file names.

    Raises:
        DataError: the name could lead out of its folder.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise DataError(
            f"data set: got the name {name!r}, wanted letters, digits, dots, dashes and underscores "
            "(--data_path names the folder)"
        )


def find_sources(dataset: str, source: str | Path | None) -> dict[str, Path]:
    """Return the files to read by their role.

    Args:
        dataset: name of the data set, as in the published file names.
        source: a folder with the published files, one published file, a file of plain sequences, or None or
            "hub" for the published files on the hub.

    Returns:
        train, val and perhaps test for published files; "all" for a single one; "sequences" for plain ones.

    Raises:
        DataError: saying what was wanted where.
    """
    if source is None or source == "hub":
        return download_published(dataset)
    path = Path(source)
    if path.is_dir():
        return _in_folder(dataset, path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; --source hub downloads {', '.join(HUB_DATA_SETS)}")
    if path.name.endswith((".json", ".json.gz")):
        return {"all": path}
    if path.suffix in SUFFIXES:
        return {"sequences": path}
    raise DataError(f"{path}: wanted a file that ends in .json, .json.gz, {', '.join(SUFFIXES)}")


def source_hashes(files: dict[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each source file by role."""
    try:
        return {role: sha256_file(path) for role, path in files.items()}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _in_folder(dataset: str, folder: Path) -> dict[str, Path]:
    files = {}
    for role in ROLES:
        plain = folder / f"{dataset}-{role}.json"
        found = [path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()]
        if len(found) > 1:
            raise DataError(f"{folder}: wanted {plain.name} or {plain.name}.gz, got both")
        if not found and role != "test":
            raise DataError(f"{folder}: wanted {plain.name} or {plain.name}.gz, found neither")
        if found:
            files[role] = found[0]
    return files


def download_published(dataset: str) -> dict[str, Path]:
    """Download the three published files of a data set into the hub's cache and return their paths by role.

    Raises:
        DataError: if the hub has no such data set or cannot be reached.
    """
    if dataset not in HUB_DATA_SETS:
        raise DataError(
            f"the hub has {', '.join(HUB_DATA_SETS)}, got {dataset!r}; give other data by --source"
        )
    from huggingface_hub import hf_hub_download

    files = {}
    for role in ROLES:
        name = f"{dataset}-{role}.json"
        try:
            files[role] = Path(hf_hub_download(HUB, name, repo_type="dataset"))
        except Exception as error:  # the client lets errors of several other libraries through
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"{name} of {HUB} cannot be downloaded ({type(error).__name__}: {reason}); "
                f"check the network, or get {dataset}-train.json, {dataset}-val.json and {dataset}-test.json "
                f"elsewhere and give their folder by --source"
            ) from error
    return files
