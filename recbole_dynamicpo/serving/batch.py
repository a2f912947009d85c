"""Many users ranked from a file into files: bounded memory, and a killed run goes on where it stopped.

Rows of the input are taken in parts of a fixed number. A part is ranked and then written whole or not at all,
so that what was written before a kill is what an undisturbed run writes. Rows that cannot be ranked are set
aside beside their part, with their number and the reason.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..errors import DataError, SettingsError, short
from ..parallel import here
from ..storage import atomic_file, load_json, locked, remove_partial, sha256_file, sha256_json, write_json
from .ranking import Question, Ranking
from .recommender import Recommender

MANIFEST_FILE = "batch.json"
# Rows of a part, and of one call of the recommender.
PART_ROWS, AT_ONCE = 1000, 50


class UserRow(NamedTuple):
    """One row of the input.

    Attributes:
        number: from 1 on, the header not counted.
        user: whatever the file says.
        history: titles and item ids, oldest first; or something wrong.
        wrong: why the row could not be read, or nothing.
    """

    number: int
    user: Any
    history: Any
    wrong: str = ""


@dataclass(frozen=True)
class BatchResult:
    """What a batch left: parts, and rows that were ranked or set aside in all of them."""

    parts: int
    ranked: int
    rejected: int


@dataclass(frozen=True)
class _Wanted:
    """What decides a batch's output; one folder holds that of one."""

    input: str
    model: str
    k: int
    exclude_history: bool
    part_rows: int


def rank_file(
    recommender: Recommender,
    source: Path,
    out: Path,
    *,
    k: int = 10,
    exclude_history: bool = True,
    part_rows: int = PART_ROWS,
    progress: bool = True,
) -> BatchResult:
    """Rank for every user of a file, or go on with it; the processes of torchrun take turns at the parts.

    Args:
        recommender: ranks.
        source: Parquet, CSV or JSON lines with columns ``user`` and ``history``: a list of titles (texts) and
            item ids; in CSV a JSON list.
        out: folder of ``part-00000.parquet`` and so on, one line a ranked title (user, rank, title, ids,
            score in nats), and of ``rejected-00000.jsonl`` beside a part with rows that were set aside: those
            that cannot be ranked, and lines that are no JSON object.
        k: titles a user.
        exclude_history: leave the history's titles out.
        part_rows: rows of a part.
        progress: show a bar with users/s and the time left.

    Raises:
        DataError: the file cannot be read.
        SettingsError: the folder holds the output of another input, model or k.
        LockedError: another process ranks into the folder.
    """
    wanted = _Wanted(_digest(source), _identity(recommender), k, exclude_history, part_rows)
    processes = here()
    with locked(out, wait=False) if processes.first else nullcontext():
        done = processes.decide(lambda: _begin(out, wanted))
        rows = read_users(source)
        sizes: list[int] = []
        left = itertools.count()  # of the parts that are not there yet; the processes take turns at them
        shows = progress and processes.first
        with tqdm(
            total=_count(source) if shows else None, unit="user", disable=not shows, desc="rank"
        ) as bar:
            while part := list(islice(rows, part_rows)):
                number = len(sizes)
                if number not in done and processes.has_turn(next(left)):
                    _write_part(out, number, part, recommender, wanted)
                sizes.append(len(part))
                bar.update(len(part))
        processes.wait()
        rejected = processes.decide(
            lambda: sum(_count_set_aside(out, number) for number in range(len(sizes)))
        )
    return BatchResult(len(sizes), sum(sizes) - rejected, rejected)


def _begin(out: Path, wanted: _Wanted) -> set[int]:
    """Return the numbers of the parts that are there, after a look at what the folder is for."""
    _agree(out, wanted)
    return {int(path.stem.partition("-")[2]) for path in out.glob("part-*.parquet")}


def _count_set_aside(out: Path, number: int) -> int:
    path = _set_aside(out, number)
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _set_aside(out: Path, number: int) -> Path:
    return out / f"rejected-{number:05d}.jsonl"


def _agree(out: Path, wanted: _Wanted) -> None:
    """Write down what the folder is for, or see that it is for this."""
    path = out / MANIFEST_FILE
    if not path.is_file():
        write_json(path, asdict(wanted))
        return
    try:
        before = load_json(path)
        differs = [name for name, value in asdict(wanted).items() if before[name] != value]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not the description of a batch ({error!r})") from error
    if differs:
        name = differs[0]
        now = short(getattr(wanted, name))
        raise SettingsError(
            f"{out}: holds a batch of another {name} ({short(before[name])}, now {now}); wanted an empty "
            "folder, or the batch that was begun there"
        )


def _write_part(
    out: Path, number: int, rows: Sequence[UserRow], recommender: Recommender, wanted: _Wanted
) -> None:
    """Rank a part and write it; what is set aside first, as the part says that all is done."""
    import pyarrow
    from pyarrow import parquet

    for path in (_part(out, number), _set_aside(out, number)):
        remove_partial(path)
    lines: dict[str, list[Any]] = {name: [] for name in ("user", "rank", "title", "ids", "score")}
    bad: list[str] = []
    for start in range(0, len(rows), AT_ONCE):
        for row, found in _rank(recommender, rows[start : start + AT_ONCE], wanted):
            if isinstance(found, str):
                bad.append(json.dumps({"row": row.number, "user": row.user, "reason": found}, default=str))
                continue
            for place, item in enumerate(found.ranked, start=1):
                values = (str(row.user), place, item.title, list(item.ids), item.score)
                for name, value in zip(lines, values, strict=True):
                    lines[name].append(value)
    if bad:
        with atomic_file(_set_aside(out, number)) as handle:
            handle.write("\n".join(bad) + "\n")
    text = pyarrow.string()
    kinds = (text, pyarrow.int32(), text, pyarrow.list_(text), pyarrow.float64())
    arrays = [pyarrow.array(column, kind) for column, kind in zip(lines.values(), kinds, strict=True)]
    with atomic_file(_part(out, number), "wb") as handle:
        parquet.write_table(pyarrow.table(arrays, names=list(lines)), handle)


def _rank(
    recommender: Recommender, rows: Sequence[UserRow], wanted: _Wanted
) -> list[tuple[UserRow, Ranking | str]]:
    """Return each row with its ranking, or with why there is none."""
    found: dict[int, Ranking | str] = {}
    asked: list[tuple[int, Question]] = []
    for place, row in enumerate(rows):
        try:
            if row.wrong or row.user is None or row.user == "":
                raise DataError(row.wrong or "user: missing")
            question = recommender.question(row.history, k=wanted.k, exclude_history=wanted.exclude_history)
            recommender.check(question)
            asked.append((place, question))
        except DataError as error:
            found[place] = str(error)
    answers = recommender.answer([question for _, question in asked])
    found |= {place: answer for (place, _), answer in zip(asked, answers, strict=True)}
    return [(row, found[place]) for place, row in enumerate(rows)]


def read_users(path: Path) -> Iterator[UserRow]:
    """Yield the rows of a Parquet, CSV or JSON lines file, a bounded number in memory.

    Raises:
        DataError: no such file, another kind of file, or no columns ``user`` and ``history``.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_lines, ".ndjson": _read_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise DataError(f"{path}: wanted a file of users that ends in {', '.join(readers)}")
    return (UserRow(number, *row) for number, row in enumerate(reader(path), start=1))


def _read_parquet(path: Path) -> Iterator[tuple[Any, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=PART_ROWS, columns=["user", "history"]):
                yield from zip(batch["user"].to_pylist(), batch["history"].to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error


def _read_csv(path: Path) -> Iterator[tuple[Any, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            _check_columns(path, reader.fieldnames or [])
            for row in reader:
                yield row["user"], _listed(row["history"])
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _read_lines(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open("rb") as handle:
        for line in filter(bytes.strip, handle):
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield None, None, f"no JSON object ({error})"
                continue
            if isinstance(row, dict):
                yield row.get("user"), row.get("history")
            else:
                yield None, None, f"got {short(row)}, wanted an object with user and history"


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if not {"user", "history"} <= set(names):
        raise DataError(f"{path}: has the columns {', '.join(names)}; wanted user and history")


def _listed(cell: str | None) -> Any:
    """Return what a CSV cell holds: a JSON list; anything else is left as it is, for the reason it brings."""
    try:
        return json.loads(cell or "")
    except (ValueError, RecursionError):
        return cell


def _count(path: Path) -> int:
    """Return how many rows a file has, so that a bar can tell the time left."""
    if path.suffix.lower() != ".parquet":
        return sum(1 for _ in read_users(path))
    import pyarrow
    from pyarrow import parquet

    try:
        rows: int = parquet.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    return rows


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _identity(recommender: Recommender) -> str:
    """Return what tells a recommender from another."""
    return sha256_json([asdict(recommender.card), list(recommender.catalogue.titles)])
