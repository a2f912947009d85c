"""The two atomic files are read by one reader: encoding, separator, byte order mark, cells."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.data.atomic_files import check_inter_file, read_columns, read_rows
from recbole_dynamicpo.data.catalogue import read_titles
from recbole_dynamicpo.errors import DataError

ITEMS = "item_id:token\ttitle:token_seq\n00001\tAmélie\n1\tOther\n"
INTER = "user_id:token\titem_id:token\ttimestamp:float\nJosé\t00001\t3\nu2\t1\t4\n"


def check(path: Path, separator: str = "\t", encoding: str = "utf-8-sig") -> None:
    ids = ["user_id", "item_id"]
    check_inter_file(path, separator=separator, encoding=encoding, ids=ids, time="timestamp", loaded=None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "cp850"])
@pytest.mark.parametrize("separator", ["\t", ",", "|", "\x1f"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_both_files_in_any_encoding_and_with_any_separator(
    encoding: str, separator: str, end: str, tmp_path: Path
) -> None:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(text.replace("\t", separator).replace("\n", end).encode(encoding))
        return path

    items, inter = write("toy.item", ITEMS), write("toy.inter", INTER)
    found = read_titles(
        items, id_field="item_id", title_field="title", separator=separator, encoding=encoding
    )
    assert found == {"00001": "Amélie", "1": "Other"}
    check(inter, separator, encoding)
    assert [cells[0] for _, cells in read_rows(inter, separator=separator, encoding=encoding)] == [
        "user_id:token", "José", "u2",
    ]  # fmt: skip


@pytest.mark.parametrize("text", [ITEMS, INTER])
def test_a_byte_order_mark_is_no_part_of_a_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert next(iter(read_columns(path))) == text.partition(":")[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1\tThe\tMatrix\n", "line 2: wanted 2 cells as in the header, got 3; a cell cannot hold the field"),
        ("1\tOne\n2\tTwo\t\n", "line 3: wanted 2 cells as in the header, got 3"),
        ("1\tOne\n\n2\n", "line 4: wanted 2 cells as in the header, got 1"),
        ("1\tOne\rTwo\n", "line 2: a line break inside a row"),
        (b"1\tOne\n2\tAm\xe9lie\n", "line 3: not utf-8 .invalid continuation byte at byte 4"),
        (b"1\tOne\n2\tAm\xff\n", "line 3: not utf-8 .invalid start byte"),
    ],
)
def test_a_damaged_row_is_named_in_either_file(rows: Any, said: str, tmp_path: Path) -> None:
    body = rows if isinstance(rows, bytes) else rows.encode()
    items, inter = tmp_path / "toy.item", tmp_path / "toy.inter"
    items.write_bytes(b"item_id:token\ttitle:token\n" + body)
    inter.write_bytes(b"user_id:token\titem_id:token\n" + body)
    with pytest.raises(DataError, match=rf"toy\.item, {said}"):
        read_titles(items, id_field="item_id", title_field=None)
    with pytest.raises(DataError, match=rf"toy\.inter, {said}"):
        check(inter)


@pytest.mark.parametrize(
    "header", ["item_id\ttitle", "item_id:token\ttitle:text", "item_id:token\titem_id:token"]
)
def test_a_wrong_header_is_named_in_either_file(header: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.item"
    path.write_text(f"{header}\n1\tOne\n")
    with pytest.raises(DataError, match=r"toy\.item, line 1: (got the column|the column 'item_id' occurs)"):
        read_titles(path, id_field="item_id", title_field=None)
    with pytest.raises(DataError, match=r"toy\.item, line 1: (got the column|the column 'item_id' occurs)"):
        check(path)


def test_another_encoding_than_the_files_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.inter"
    path.write_text(INTER, encoding="utf-8")
    for encoding, said in (("utf-16", "does not start with BOM"), ("ascii", "line 2: not ascii")):
        with pytest.raises(DataError, match=said):
            check(path, encoding=encoding)


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "#N/A"])
def test_ids_that_recbole_would_take_for_nothing_are_named(word: str, tmp_path: Path) -> None:
    """pandas reads them as missing, and RecBole leaves those rows out with a warning."""
    path = tmp_path / "toy.inter"
    path.write_text(f"{INTER}u3\t{word}\t5\n")
    with pytest.raises(DataError, match=f"line 4: RecBole would read '{word}' as no item_id at all"):
        check(path)
    path.write_text(f"user_id:token\titem_id_list:token_seq\titem_id:token\nu1\t{word}\t4\n")
    with pytest.raises(DataError, match=f"line 2: RecBole would read '{word}' as no item_id_list at all"):
        check_inter_file(
            path, separator="\t", encoding="utf-8", ids=["user_id", "item_id"], time=None, loaded=None
        )
