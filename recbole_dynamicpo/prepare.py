"""From published or plain data to a folder of RecBole atomic files with a manifest and an audit."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from .audit import PromptCheck, audit, audit_table
from .converter import Converter
from .download import HUB, find_sources, source_hashes
from .errors import DataError
from .locks import locked
from .published import BadRows
from .sequences import read_sequences, write_sequences
from .storage import (
    atomic_folder,
    load_json,
    remove_partial,
    restore_swapped,
    sha256_file,
    sha256_json,
    write_json,
)

VERSION = 1  # of what is written; a higher one makes prepare write again what an older one wrote
MANIFEST, AUDIT = "manifest.json", "audit.json"
CHECKSUM = "sha256"  # in the audit: of the rest of it
_SPLIT_OF = {"train": "train", "val": "valid", "test": "test"}  # published name -> RecBole's
_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\tcandidate_id_list:token_seq\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set: its folder, the two records that lie in it, and whether it was there already."""

    dataset: str
    folder: Path
    manifest: dict[str, Any]
    audit: dict[str, Any]
    unchanged: bool

    def table(self) -> str:
        """Return the audit as text, followed by what was dropped or stayed ambiguous."""
        return "\n".join([audit_table(self.audit), *self.remarks()])

    def remarks(self) -> list[str]:
        """Return what the manifest says was dropped or stayed ambiguous."""
        lines = []
        dropped = sum(source["dropped"] for source in self.manifest["sources"].values())
        if dropped:
            lines.append(f"bad rows dropped: {dropped}; the first: {self.manifest['dropped_examples'][0]}")
        if self.manifest["ambiguous_histories"]:
            lines.append(
                f"histories that can be split in several ways: {self.manifest['ambiguous_histories']}; "
                f"the longest titles were taken; the first: {self.manifest['ambiguous_examples'][0]}"
            )
        return lines


def prepare(
    dataset: str,
    source: str | Path | None,
    out: str | Path,
    *,
    seed: int = 2020,
    skip_bad_rows: bool = False,
    progress: bool = True,
    check: PromptCheck | None = None,
) -> PreparedData:
    """Write ``<out>/<dataset>/``: all of it or nothing, and nothing if it is there from the same sources.

    Published data become ``<dataset>.item`` and the benchmark files ``.train.inter``, ``.valid.inter`` and
    ``.test.inter``; one row is one prompt. The published files name no users. A row whose history is that of
    the row before (perhaps without its oldest title) plus that row's target continues its user; every other
    row begins a new one. This finds the 976 and 122 users of the published LastFM files; where no row
    continues another, as in Goodreads and Steam, each row is a user of its own.

    Args:
        dataset: plain name: letters, digits, dash, underscore.
        source: a folder with ``<dataset>-train.json``, ``-val.json`` and perhaps ``-test.json`` (or gzipped);
            one such file, whose users are dealt 80/10/10 by the seed; a CSV, TSV or Parquet file of plain
            sequences; or None or "hub" to download the published files. Without a test file the validation
            rows are dealt in two halves, by whole users where there are enough.
        out: the folder of RecBole's ``data_path``.
        seed: of the dealing.
        skip_bad_rows: drop and count rows that cannot be used, instead of stopping at the first.
        progress: show progress bars, where there is a terminal.
        check: of the prompts' length, for the audit.

    Raises:
        DataError: naming the file and row, or what is missing; a folder from before is then untouched.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", dataset):
        raise DataError(f"a data set's name is letters, digits, dashes and underscores, got {dataset!r}")
    folder = Path(out) / dataset
    with locked(folder, wait=True):
        return _prepared(folder, source, seed, skip_bad_rows, progress, check)


def _prepared(
    folder: Path,
    source: str | Path | None,
    seed: int,
    skip_bad_rows: bool,
    progress: bool,
    check: PromptCheck | None,
) -> PreparedData:
    """Write ``folder``, which nobody else works in, unless it is there from the same sources."""
    dataset = folder.name
    restore_swapped(folder)
    remove_partial(folder)
    files = find_sources(dataset, source)
    from_hub = HUB if source in (None, "hub") else None
    settings = {"seed": seed, "skip_bad_rows": skip_bad_rows, "hub": from_hub}
    hashes = source_hashes(files)
    known = _manifest_of(folder)
    if known and _is_unchanged(folder, known, settings, hashes):
        _log.info("%s is there already, from the same sources: nothing is written", folder)
        return PreparedData(dataset, folder, known, _audit_of(folder, check), unchanged=True)
    _refuse_foreign_files(folder, known)
    with atomic_folder(folder) as work:
        manifest = _fill(work, dataset, files, settings, hashes, progress)
        report = audit(work, check)
        report[CHECKSUM] = sha256_json(report)
        write_json(work / AUDIT, report)
    prepared = PreparedData(dataset, folder, manifest, report, unchanged=False)
    _log.info("wrote %s\n%s", folder, prepared.table())
    return prepared


def _fill(
    work: Path,
    dataset: str,
    files: dict[str, Path],
    settings: dict[str, Any],
    hashes: dict[str, str],
    progress: bool,
) -> dict[str, Any]:
    """Write the atomic files and the manifest into ``work``; return the manifest."""
    bad = BadRows(settings["skip_bad_rows"])
    if "sequences" in files:
        facts = _write_sequences(dataset, files["sequences"], work, bad, progress)
    else:
        facts = _write_published(dataset, files, work, settings["seed"], bad, progress)
    manifest = {
        "dataset": dataset,
        "version": VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "sources": {
            role: {"file": path.name, "sha256": hashes[role], "dropped": bad.count(path)}
            for role, path in files.items()
        },
        "dropped_examples": bad.examples,
        "files": {path.name: sha256_file(path) for path in sorted(work.iterdir())},
        **facts,
    }
    write_json(work / MANIFEST, manifest)
    return manifest


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = load_json(folder / MANIFEST)
        PreparedData("", folder, manifest, {}, True).remarks()
        whole = (
            {"version", "settings"} <= manifest.keys()
            and all(isinstance(source["sha256"], str) for source in manifest["sources"].values())
            and all(name == Path(name).name and len(name) < 200 for name in dict(manifest["files"]))
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return manifest if whole else None


def _audit_of(folder: Path, check: PromptCheck | None) -> dict[str, Any]:
    """Read a folder's audit, or make it again where it is missing, damaged or lacks the prompts' check."""
    try:
        stored = dict(load_json(folder / AUDIT))
        if stored[CHECKSUM] != sha256_json({key: stored[key] for key in stored if key != CHECKSUM}):
            stored = {}
    except (OSError, ValueError, TypeError, KeyError):
        stored = {}
    if not stored or (check is not None and stored.get("prompts") != check.described):
        stored = audit(folder, check)
        stored[CHECKSUM] = sha256_json(stored)
        write_json(folder / AUDIT, stored)
    return stored


def _is_unchanged(
    folder: Path, known: dict[str, Any], settings: dict[str, Any], hashes: dict[str, str]
) -> bool:
    """Say whether the folder came from the same sources in the same way and its files are intact."""
    return (
        known["version"] == VERSION
        and known["settings"] == settings
        and {role: source["sha256"] for role, source in known["sources"].items()} == hashes
        and all((folder / name).is_file() for name in known["files"])
        and all(sha256_file(folder / name) == sha256 for name, sha256 in known["files"].items())
    )


def _refuse_foreign_files(folder: Path, known: dict[str, Any] | None) -> None:
    """Stop before a whole folder is replaced in which something lies that prepare did not write."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: wanted a folder or nothing there, got a file")
    ours = {MANIFEST, AUDIT, *known["files"]} if known else set()
    foreign = (
        sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.exists() else []
    )
    if foreign:
        raise DataError(
            f"{folder}: {foreign[0]} was not written by prepare and would be lost; move it away or choose "
            f"another name or output folder ({len(foreign)} such files)"
        )


def _write_sequences(dataset: str, path: Path, work: Path, bad: BadRows, progress: bool) -> dict[str, Any]:
    """Write plain sequences into ``work`` and return what the manifest says about them."""
    found = read_sequences(path, bad, progress=progress)
    write_sequences(found, work, dataset)
    return {
        "rows": {"all": len(found.interactions)},
        "items": len(found.titles),
        "items_only_in_histories": 0,
        "test_from_validation": False,
        "dealt_by": None,
        "ambiguous_histories": 0,
        "ambiguous_examples": [],
    }


def _write_published(
    dataset: str, files: dict[str, Path], work: Path, seed: int, bad: BadRows, progress: bool
) -> dict[str, Any]:
    """Write benchmark files into ``work`` and return what the manifest says about them."""
    converter = Converter(files.values(), bad, progress)
    halves = "val" in files and "test" not in files
    dealt_by = None
    rows: dict[str, int] = {}
    for role, path in files.items():
        lines: Iterable[tuple[str, str]] = converter.lines(path, role)
        if role == "all" or (role == "val" and halves):
            lines = list(lines)
            shares = {"valid": 0.5, "test": 0.5} if halves else {"train": 0.8, "valid": 0.1, "test": 0.1}
            dealt, dealt_by = deal([user for user, _ in lines], shares, seed)
            for split in shares:
                chosen = (line for line, its_split in zip(lines, dealt, strict=True) if its_split == split)
                rows[split] = _write_split(work / f"{dataset}.{split}.inter", chosen)
        else:
            rows[_SPLIT_OF[role]] = _write_split(work / f"{dataset}.{_SPLIT_OF[role]}.inter", lines)
    with (work / f"{dataset}.item").open("w", encoding="utf-8", newline="") as handle:
        handle.write("item_id:token\ttitle:token\n")
        handle.writelines(f"{item}\t{title}\n" for title, item in converter.items.items())
    return {
        "rows": rows,
        "items": len(converter.items),
        "items_only_in_histories": len(converter.items) - len(converter.splitter.known),
        "test_from_validation": halves,
        "dealt_by": dealt_by,
        "ambiguous_histories": converter.ambiguous,
        "ambiguous_examples": converter.examples,
    }


def _write_split(path: Path, lines: Iterable[tuple[str, str]]) -> int:
    """Write one benchmark file of (user, rest of the line) and return its number of rows."""
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write(_HEADER)
        for user, line in lines:
            handle.write(f"{user}\t{line}\n")
            rows += 1
    if not rows:
        raise DataError(f"no usable row is left for {path.name}; wanted at least one")
    return rows


def deal(users: Sequence[str], shares: dict[str, float], seed: int) -> tuple[list[str], str]:
    """Deal rows to splits at random, all rows of a user to the same one.

    Otherwise the target of a test row would stand in the history of a training row of the same user.

    Args:
        users: the user of each row.
        shares: of the rows, by split; they sum to 1.
        seed: of the order of users.

    Returns:
        The split of each row, and "users"; or "rows" if there were too few users for whole ones.

    Raises:
        DataError: if there are too few rows to give each split one.
    """
    for by, groups in (("users", list(users)), ("rows", [str(row) for row in range(len(users))])):
        sizes = Counter(groups)
        order = list(sizes)
        random.Random(seed).shuffle(order)
        bounds = [len(users) * total for total in accumulate(shares.values())]
        dealt, before = {}, 0
        for group in order:
            middle = before + sizes[group] / 2
            dealt[group] = next(split for split, end in zip(shares, bounds, strict=True) if middle < end)
            before += sizes[group]
        if set(dealt.values()) == set(shares):
            return [dealt[group] for group in groups], by
    raise DataError(f"{len(users)} rows are too few to be dealt to {', '.join(shares)}; wanted at least 10")
