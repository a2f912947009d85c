"""Data sets that are known by name: where they have to lie, and how to get those that can be fetched.

The names ``lastfm``, ``goodreads`` and ``steam`` mean the published data, which ``prepare`` writes. RecBole
downloads other data under them; those are called ``<name>-recbole`` here.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import yaml
from recbole.utils import ModelType
from recbole.utils.url import decide_download, download_url, extract_zip

from ..data.atomic_files import MANIFEST_FILE, UTF8, check_inter_file, read_columns
from ..data.catalogue import Catalogue, build_catalogue, read_titles
from ..data.download import HUB_DATA_SETS, check_name
from ..errors import DataError, SettingsError, nearest
from ..storage import atomic_folder, difference, load_json, locked, sha256_file, sha256_json

logger = logging.getLogger(__name__)

# Our name -> RecBole's download entry.
RECBOLE_ENTRIES = {
    "lastfm-recbole": "lastfm",
    "goodreads-recbole": "goodreads",
    "steam-recbole": "steam-merged",
}
_ATOMIC_SUFFIXES = (".inter", ".item", ".user", ".net")


def require_data(config: Any) -> None:
    """See to it that the files of a configuration's data set are there and have its columns.

    A data set that RecBole can download is downloaded, whole or not at all. (RecBole's own download ends
    in an error of torch.distributed outside of distributed runs.)

    Raises:
        DataError: what is missing where, and how to get it.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    check_name(name)
    for part in config["benchmark_filename"] or []:
        check_name(part)
    if not folder.is_dir():
        if name in HUB_DATA_SETS:
            raise DataError(f"{folder}: no such folder. {_how_to_prepare(name, folder)}")
        if config["MODEL_TYPE"] == ModelType.KNOWLEDGE or not config["single_spec"]:
            return  # RecBole fetches the knowledge graph too, and only it can wait for other processes
        with locked(folder, wait=True):
            if not folder.is_dir():
                fetch(name, folder)
    files = _inter_files(config)
    for path in files:
        if not path.is_file():
            published = name in HUB_DATA_SETS and config["benchmark_filename"]
            hint = _how_to_prepare(name, folder) if published else ""
            raise DataError(f"{path}: no such file. {hint}".rstrip(". ") + ".")
    _check_columns(config, files[0])
    for path in files:
        _check_rows(config, path)


def check_splits(data: Any, parts: Mapping[str, Any]) -> None:
    """See to it that no split is empty unless the settings ask for that, and that there are enough items.

    Args:
        data: a built data set of RecBole's.
        parts: its splits by name.

    Raises:
        DataError: what is empty and why.
        SettingsError: ``topk`` asks for more items than there are.
    """
    config, name = data.config, data.dataset_name
    split = dict(config["eval_args"]["split"] or {})
    shares = split.get("RS") or split.get("TS") or [1, 1, 1]
    unasked = shares[1] == 0 or split.get("LS") == "test_only"
    for phase, part in parts.items():
        if len(part.inter_feat) or (phase == "valid" and unasked):
            continue
        first = int(config["MODEL_TYPE"] == ModelType.SEQUENTIAL)  # it is history alone, and no row
        most = int(np.bincount(data.inter_feat[data.uid_field].numpy(), minlength=1).max()) + first
        leaves_out_two = first and split.get("LS") == "valid_and_test"
        hint = "; it takes 4 for a row in every split" if leaves_out_two else ""
        raise DataError(
            f"data set '{name}': no {phase} rows; {data.user_num - 1} users are left, the most "
            f"active with {most} interactions, and eval_args splits those of a user by {split}{hint}"
        )
    items = data.item_num - 1  # the first is RecBole's padding
    if max(config["topk"]) > items:
        raise SettingsError(
            f"topk: got {max(config['topk'])}, wanted at most {items}: data set '{name}' has {items} items"
        )


def can_be_fetched(name: str) -> bool:
    """Say whether a data set of that name can be had without the user's help."""
    return name in HUB_DATA_SETS or RECBOLE_ENTRIES.get(name, name) in download_entries()


def data_files(config: Any) -> list[Path]:
    """Return the files that a data set is read from: ``<name>*.inter`` and ``<name>.item``."""
    items = Path(config["data_path"]) / f"{config['dataset']}.item"
    return [path for path in (*_inter_files(config), items) if path.is_file()]


def _inter_files(config: Any) -> list[Path]:
    """Return where the interactions lie: ``<name>.inter``, or one file for each split of pre-split data."""
    name, folder, splits = config["dataset"], Path(config["data_path"]), config["benchmark_filename"]
    return [folder / f"{name}.{part}.inter" for part in splits] if splits else [folder / f"{name}.inter"]


def data_digest(config: Any) -> str:
    """Return the SHA-256 over the data set's files."""
    return sha256_json({path.name: sha256_file(path) for path in data_files(config)})


def data_notes(config: Any) -> list[str]:
    """Return, and log, what a reader of figures on a data set has to know, a sentence each.

    It stands in the data set's settings (``data_note``) and in the manifest that ``prepare`` leaves.

    Raises:
        DataError: the manifest is damaged.
    """
    notes = [config["data_note"]] if config["data_note"] else []
    manifest = Path(config["data_path"]) / MANIFEST_FILE
    if manifest.is_file():
        try:
            facts = load_json(manifest)
            if not isinstance(facts, dict):
                raise ValueError("no JSON object")
            if changed := difference(manifest.parent, _of_names(facts.get("files", {}))):
                notes.append(
                    f"{changed} since `prepare` wrote it, so that manifest and audit are of other data"
                )
        except (OSError, ValueError) as error:
            raise DataError(f"{manifest}: damaged JSON ({error}); run prepare again") from error
        if facts.get("test_from_validation"):
            notes.append("the test rows were made from the validation rows: no test file was given")
    for note in notes:
        logger.info("data set '%s': %s", config["dataset"], note)
    return notes


def _of_names(files: Any) -> dict[str, str]:
    if not isinstance(files, dict) or not all(name == Path(name).name for name in files):
        raise ValueError("files: no digests by name")
    return files


def _how_to_prepare(name: str, folder: Path) -> str:
    command = f"recbole-dynamicpo prepare --dataset {name} --out {folder.parent}"
    return (
        f"Run `{command}` first (with --source for files that you have already); "
        f"RecBole's other data of that name are called {name}-recbole"
    )


def fetch(name: str, folder: Path) -> None:
    """Download RecBole's atomic files of a data set into ``folder``, whole or not at all.

    Raises:
        DataError: RecBole knows no such data set, it cannot be reached, or the archive holds something else.
    """
    entries = download_entries()
    entry = RECBOLE_ENTRIES.get(name, name)
    if entry not in entries:
        known = {*entries, *HUB_DATA_SETS, *RECBOLE_ENTRIES}
        raise DataError(
            f"data set '{name}': there is no folder {folder}, and RecBole has no download of that name"
            f"{nearest(name, known)}"
        )
    logger.info("downloading RecBole's data set '%s' into %s", entry, folder)
    try:
        if not decide_download(entries[entry]):
            raise DataError(f"data set '{name}': the download was declined")
        with atomic_folder(folder) as work:
            archive = Path(download_url(entries[entry], str(work)))
            extract_zip(str(archive), str(work))
            archive.unlink()
            _name_files(work, name)
    except (OSError, EOFError, RuntimeError, HTTPException, zipfile.BadZipFile) as error:
        raise DataError(
            f"data set '{name}': RecBole's data set '{entry}' cannot be downloaded ({error!r}); check the "
            f"network, or get its atomic files elsewhere and put them into {folder} as {name}.inter and "
            f"{name}.item"
        ) from error


def download_entries() -> dict[str, str]:
    """Return RecBole's download entries: name -> address."""
    path = Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml"
    entries: dict[str, str] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def _name_files(work: Path, name: str) -> None:
    """Call the atomic files of an unpacked archive ``<name>.<suffix>``, whatever folder they lie in."""
    for path in sorted(work.rglob("*")):
        if path.is_file() and path.suffix in _ATOMIC_SUFFIXES and not path.name.startswith("."):
            target = work / f"{name}{path.suffix}"
            if target.exists() and target != path:
                raise DataError(f"data set '{name}': the archive holds several {path.suffix} files")
            path.rename(target)
    if not (work / f"{name}.inter").is_file():
        raise DataError(f"data set '{name}': the archive holds no .inter file")


def _check_rows(config: Any, path: Path) -> None:
    """Check the rows of one of the files for what the settings say of them."""
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not config["benchmark_filename"]
    loaded = (config["load_col"] or {"inter": "*"}).get("inter", [])
    check_inter_file(
        path,
        separator=config["field_separator"],
        encoding=config["encoding"] or UTF8,
        ids=[config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]],
        time=config["TIME_FIELD"] if sequential else None,
        loaded=None if loaded == "*" else loaded,
    )


def _check_columns(config: Any, path: Path) -> None:
    """Check that the columns that make a sequence are in the file and are loaded."""
    wanted = [name for name in (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]) if name]
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not config["benchmark_filename"]:
        wanted.append(config["TIME_FIELD"])
    columns = read_columns(path, separator=config["field_separator"], encoding=config["encoding"] or UTF8)
    settings = "settings USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD"
    for column in wanted:
        if column not in columns:
            raise DataError(
                f"{path}: has the columns {', '.join(columns)}; wanted '{column}' too ({settings})"
                f"{nearest(column, columns)}"
            )
    loaded = (config["load_col"] or {"inter": "*"}).get("inter", [])
    left_out = (config["unload_col"] or {}).get("inter", [])
    for column in wanted:
        if column in left_out:
            raise DataError(f"unload_col: got {column!r} of inter, which makes the sequences")
        if loaded != "*" and column not in loaded:
            raise DataError(
                f"load_col: of the columns of {path.name} it loads {', '.join(loaded) or 'none'}; "
                f"wanted '{column}' too (--load_col=\"{{'inter': {wanted}}}\", or in YAML: "
                f"load_col: {{inter: [{', '.join(wanted)}]}})"
            )


def read_catalogue(data: Any) -> Catalogue:
    """Return the items of a ``DynamicPODataset`` with the titles of its .item file, not counted yet."""
    path = Path(data.config["data_path"]) / f"{data.dataset_name}.item"
    titles = read_titles(
        path,
        # RecBole's steam data call the id "product_id" in the one file and "id" in the other.
        id_field=data.settings.item_file_id_field or data.iid_field,
        title_field=data.settings.item_title_field,
        separator=data.config["field_separator"],
        encoding=data.config["encoding"] or UTF8,
    )
    tokens = [str(token) for token in data.field2id_token[data.iid_field][1:]]
    return build_catalogue(titles, tokens, [0] * len(tokens), path)
