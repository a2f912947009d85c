"""From published or plain data to a folder of RecBole atomic files with a manifest and an audit."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..storage import (
    atomic_folder,
    difference,
    load_json,
    locked,
    remove_partial,
    restore_swapped,
    sha256_files,
    sha256_json,
    write_json,
)
from .atomic_files import AUDIT_FILE, MANIFEST_FILE
from .audit import PromptCheck, audit, audit_table
from .bad_rows import BadRows
from .converter import write_published
from .download import HUB, find_sources, source_hashes
from .sequences import read_sequences, write_sequences

__all__ = ["PreparedData", "prepare"]

VERSION = 3  # of what is written; a higher one makes prepare write again what an older one wrote
_CHECKSUM = "sha256"  # in the audit: of the rest of it
logger = logging.getLogger(__name__)


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
            lines.append(f"bad rows dropped: {dropped}")
            reasons = self.manifest.get("dropped_reasons", {}).items()  # a manifest from before has none
            lines += [
                f"  {found['rows']}: {reason}; the first: {found['first']}"
                for reason, found in sorted(reasons, key=lambda entry: (-entry[1]["rows"], entry[0]))
            ]
        if self.manifest.get("left_out"):
            lines.append(f"columns left out: {', '.join(self.manifest['left_out'])}")
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
        logger.info("%s is there already, from the same sources: nothing is written", folder)
        return PreparedData(dataset, folder, known, _audit_of(folder, check), unchanged=True)
    _refuse_foreign_files(folder, known)
    with atomic_folder(folder) as work:
        manifest = _fill(work, dataset, files, settings, hashes, progress)
        report = _write_audit(work, check)
    prepared = PreparedData(dataset, folder, manifest, report, unchanged=False)
    logger.info("wrote %s\n%s", folder, prepared.table())
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
        facts = write_published(files, work, dataset, settings["seed"], bad, progress=progress)
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
        "dropped_reasons": bad.reasons,
        "files": sha256_files(work, sorted(path.name for path in work.iterdir())),
        **facts,
    }
    write_json(work / MANIFEST_FILE, manifest)
    return manifest


def _manifest_of(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = load_json(folder / MANIFEST_FILE)
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
        stored = dict(load_json(folder / AUDIT_FILE))
        if stored[_CHECKSUM] != sha256_json({key: stored[key] for key in stored if key != _CHECKSUM}):
            stored = {}
    except (OSError, ValueError, TypeError, KeyError):
        stored = {}
    old = "splits" in stored and "findings" not in stored  # of a version that did not look for them
    if not stored or old or (check is not None and stored.get("prompts") != check.described):
        stored = _write_audit(folder, check)
    return stored


def _write_audit(folder: Path, check: PromptCheck | None) -> dict[str, Any]:
    """Audit the data in ``folder``, and write the audit beside them with a checksum of its own."""
    report = audit(folder, check)
    report[_CHECKSUM] = sha256_json(report)
    write_json(folder / AUDIT_FILE, report)
    return report


def _is_unchanged(
    folder: Path, known: dict[str, Any], settings: dict[str, Any], hashes: dict[str, str]
) -> bool:
    """Say whether the folder came from the same sources in the same way and its files are intact."""
    return (
        known["version"] == VERSION
        and known["settings"] == settings
        and {role: source["sha256"] for role, source in known["sources"].items()} == hashes
        and not difference(folder, known["files"])
    )


def _refuse_foreign_files(folder: Path, known: dict[str, Any] | None) -> None:
    """Stop before a whole folder is replaced in which something lies that prepare did not write."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: wanted a folder or nothing there, got a file")
    ours = {MANIFEST_FILE, AUDIT_FILE, *known["files"]} if known else set()
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
        "rated": found.rated,
        "left_out": found.left_out,
        "items": len(found.titles),
        "items_only_in_histories": 0,
        "test_from_validation": False,
        "dealt_by": None,
        "ambiguous_histories": 0,
        "ambiguous_examples": [],
    }
