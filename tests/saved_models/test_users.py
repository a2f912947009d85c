"""Files of users: what cannot be read is named, with the line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.saved_models.users import UserRow, check_users, count_users, read_users


def test_rows_and_their_number(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"user": "a", "history": ["x", 1]}\n\n{"user": 2}\n')
    assert list(read_users(path)) == [UserRow(1, "a", ["x", 1]), UserRow(2, 2, None)]
    assert count_users(path) == 2


def test_a_csv_of_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    rows = [f'u{number},"[""Bear""]"' for number in range(2000)]  # more than is decoded at once
    rows[1500] = 'u1500,"[""Caf\xe9""]"'
    path.write_bytes("\n".join(["user,history", *rows, ""]).encode("latin-1"))
    with pytest.raises(DataError, match=r"users.csv, line 1502: not UTF-8; save the file as UTF-8"):
        check_users(path)
    path.write_bytes("user,histoire\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"users.csv, line 1: not UTF-8"):
        check_users(path)


def test_a_line_of_another_encoding_is_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_bytes('{"user": 1, "history": ["Caf\xe9"]}\n'.encode("latin-1"))
    assert [row.wrong for row in read_users(path)] == ["not UTF-8; save the file as UTF-8"]


def test_a_file_without_columns_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({}), tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"users\.parquet: has no columns; wanted user and history"):
        check_users(tmp_path / "users.parquet")
