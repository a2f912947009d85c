"""Files of users and their histories, row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, short

# Rows of a Parquet file that are held at once.
BATCH_ROWS = 1000
_NOT_UTF8 = "not UTF-8; save the file as UTF-8"


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


def read_users(path: Path) -> Iterator[UserRow]:
    """Yield the rows of a Parquet, CSV or JSON lines file, a bounded number in memory.

    Raises:
        DataError: no such file, another kind of file, or no columns ``user`` and ``history``.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_lines, ".ndjson": _read_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        wanted = f"wanted a file of users that ends in {', '.join(readers)}"
        raise DataError(f"{path}: {'' if path.exists() else 'no such file; '}{wanted}")
    return (UserRow(number, *row) for number, row in enumerate(reader(path), start=1))


def check_users(path: Path) -> None:
    """See whether a file of users can be read; of JSON lines and Parquet only how they begin.

    Raises:
        DataError: see ``read_users``; a row that cannot be ranked is no matter of the file.
    """
    rows = read_users(path)
    for _ in rows if path.suffix.lower() == ".csv" else islice(rows, 1):
        pass


def _read_parquet(path: Path) -> Iterator[tuple[Any, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["user", "history"]):
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
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {_undecodable(path)}: {_NOT_UTF8}") from error
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _read_lines(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open("rb") as handle:
        for line in filter(bytes.strip, handle):
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield None, None, _NOT_UTF8
                continue
            except (ValueError, RecursionError) as error:
                yield None, None, f"no JSON object ({error})"
                continue
            if isinstance(row, dict):
                yield row.get("user"), row.get("history")
            else:
                yield None, None, f"got {short(row)}, wanted an object with user and history"


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if not {"user", "history"} <= set(names):
        has = f"has the columns {', '.join(names)}" if names else "has no columns"
        raise DataError(f"{path}: {has}; wanted user and history")


def _undecodable(path: Path) -> int:
    """Return the number, from 1 on, of the first line that is not UTF-8."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("unreachable")


def _listed(cell: str | None) -> Any:
    """Return what a CSV cell holds: a JSON list; anything else is left as it is, for the reason it brings."""
    try:
        return json.loads(cell or "")
    except (ValueError, RecursionError):
        return cell


def count_users(path: Path) -> int:
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
