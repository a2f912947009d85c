"""The rank of every evaluated row, and the small Parquet file that keeps it.

A rank is the 1-based place of a row's positive among its candidates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage import atomic_file

RANKS_FILE, ALL_RANKS_FILE = "ranks.parquet", "ranks_all.parquet"  # among candidates, among all titles
# Whose ranks of validation rows lie beside a model's: that of popularity, and of the best that counts.
POPULARITY, COUNTING, FITTED_COUNTS = "popularity", "counting", "fitted counts"
WITHOUT_PRIORS = ", without priors"  # how the name ends of a model that counts do not speak with
_COLUMNS = ("row_id", "user_id", "rank")
_HIGHEST_RANK = 2**31 - 1  # of what the file holds
_ROWS_KEY = b"recbole-dynamicpo.rows"  # of the file's metadata


@dataclass(frozen=True)
class Ranks:
    """What an evaluation leaves of every row.

    Attributes:
        row_ids, user_ids: n of each.
        ranks: (n,) int32, from 1 on.
        rows: what was ranked, as digests by name (users, histories, targets, candidates, places); empty in
            files of 0.1.0.
    """

    row_ids: list[str]
    user_ids: list[str]
    ranks: np.ndarray
    rows: dict[str, str]


def valid_ranks_file(name: str) -> str:
    """Return the name of the file with the ranks of validation rows by a stage, or by ``POPULARITY``."""
    return f"valid_{name}.parquet"


def write_ranks(
    path: Path,
    row_ids: Sequence[str],
    user_ids: Sequence[str],
    ranks: Any,
    rows: Mapping[str, str] | None = None,
) -> None:
    """Write one row per evaluated prompt to a Parquet file, whole or not at all.

    Args:
        path: of the file.
        row_ids, user_ids: n of each.
        ranks: (n,) from 1 on.
        rows: digests of what was ranked, by name, so that only equal rows are compared.

    Raises:
        DataError: if the columns differ in length, a row id occurs twice, or a rank is not from 1 on.
    """
    import pyarrow
    from pyarrow import parquet

    checked = checked_ranks(ranks, str(path)).astype(np.int32)
    if not len(row_ids) == len(user_ids) == len(checked):
        raise DataError(
            f"{path}: columns must be equally long, got {len(row_ids)} row ids, {len(user_ids)} user ids "
            f"and {len(checked)} ranks"
        )
    _refuse_repeats(path, row_ids)
    table = pyarrow.table(
        {
            "row_id": pyarrow.array(list(row_ids), pyarrow.string()),
            "user_id": pyarrow.array(list(user_ids), pyarrow.string()),
            "rank": pyarrow.array(checked, pyarrow.int32()),
        }
    ).replace_schema_metadata({_ROWS_KEY: json.dumps(dict(rows or {}), sort_keys=True)})
    with atomic_file(Path(path), "wb") as handle:
        parquet.write_table(table, handle, write_page_checksum=True)


def read_ranks(path: Path) -> Ranks:
    """Read a file of :func:`write_ranks`; ``path`` may also be a folder that holds ``ranks.parquet``.

    Raises:
        DataError: if there is no such Parquet file, or its columns are not those of :func:`write_ranks`.
    """
    import pyarrow
    from pyarrow import parquet

    path = Path(path)
    file = path / RANKS_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; wanted the per-row ranks that an evaluation saves as {RANKS_FILE}"
        )
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as handle:
            table = handle.read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a name is not UTF-8
        raise DataError(f"{file}: not a readable Parquet file ({error})") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{file}: wanted the columns {', '.join(_COLUMNS)}; {', '.join(missing)} missing")
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{file}: has the columns {', '.join(table.column_names)}; wanted each once")
    if any(table.column(name).null_count for name in _COLUMNS):
        raise DataError(f"{file}: an id or a rank is missing in some row")
    ranks = checked_ranks(table.column("rank").to_numpy(), str(file)).astype(np.int32)
    try:
        rows, users = ([str(v) for v in table.column(name).to_pylist()] for name in ("row_id", "user_id"))
    except ValueError as error:
        raise DataError(f"{file}: an id is not UTF-8 ({error})") from error
    _refuse_repeats(file, rows)
    return Ranks(rows, users, ranks, _digests(file, (table.schema.metadata or {}).get(_ROWS_KEY, b"{}")))


def _digests(path: Path, text: bytes) -> dict[str, str]:
    try:
        found = json.loads(text)
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
    except ValueError:
        pass
    raise DataError(f"{path}: its metadata say nothing readable of the rows that were ranked")


def _refuse_repeats(path: Path, row_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for row_id in row_ids:
        if row_id in seen:
            raise DataError(f"{path}: row id {row_id!r} occurs twice; ids must be unique to pair two runs")
        seen.add(row_id)


def checked_ranks(ranks: Any, where: str) -> np.ndarray:
    """Return ranks as a one-dimensional int64 array of numbers from 1 on.

    Raises:
        DataError: naming ``where`` they come from, if they are none.
    """
    array = np.asarray(ranks)
    numbers = array.ndim == 1 and len(array) and array.dtype.kind in "iu"
    if not numbers or not 1 <= int(array.min()) <= int(array.max()) <= _HIGHEST_RANK:
        raise DataError(
            f"{where}: ranks must be whole numbers from 1 on (of 32 bits), one per row and at least one row, "
            f"got {array.dtype} of shape {array.shape}"
            + (f" with minimum {array.min()}, maximum {array.max()}" if len(array) and numbers else "")
        )
    return array.astype(np.int64)
