"""Titles exactly as they stand in the .item file, and what is said when they cannot be had."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.data.catalogue import Catalogue, build_catalogue, read_titles
from recbole_dynamicpo.errors import DataError

HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\n"


def item_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "toy.item"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def titles(path: Path, title_field: str | None = None, **options: str) -> dict[str, str]:
    return read_titles(path, id_field="item_id", title_field=title_field, **options)


ODD_TITLES = [
    'Say "Cheese"',
    '"Quoted"',
    '"half a quote',
    "NA",
    "null",
    "nan",
    "1e5",
    "0010",
    "Amélie, or: Le Fabuleux Destin",
    "Amélie",  # e and a combining accent: not the same text as above, and not normalised
    "七人の侍",
    "line\u2028separator, next\x85line, page\x0cbreak",
    "zero\u200bwidth",
    " padded ",
    "a\\tb",
    "#hash, comma; semicolon",
    "😀",
]


@pytest.mark.parametrize("title", ODD_TITLES)
def test_titles_are_exact(tmp_path: Path, title: str) -> None:
    path = item_file(tmp_path, f"{HEADER}7\t{title}\t1999\n8\tNext\t2000\n")
    assert titles(path) == {"7": title, "8": "Next"}


def test_windows_line_ends_byte_order_mark_and_no_last_line_end(tmp_path: Path) -> None:
    path = item_file(tmp_path, b"\xef\xbb\xbfitem_id:token\ttitle:token\r\n1\tOne\r\n\r\n2\tTwo")
    assert titles(path) == {"1": "One", "2": "Two"}


def test_the_id_column_need_not_be_first(tmp_path: Path) -> None:
    path = item_file(tmp_path, "year:token\ttitle:token\titem_id:token\n1999\tOne\t1\n")
    assert titles(path) == {"1": "One"}


def test_another_separator(tmp_path: Path) -> None:
    path = item_file(tmp_path, "item_id:token;name:token\n1;Tab\there, comma\n")
    assert titles(path, separator=";") == {"1": "Tab\there, comma"}


def test_which_title_column_is_taken(tmp_path: Path) -> None:
    """movie_title before title before name, unless one is asked for."""
    path = item_file(tmp_path, "item_id:token\tname:token\ttitle:token\n1\tN\tT\n")
    assert titles(path) == {"1": "T"}
    assert titles(path, "name") == {"1": "N"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.item: no such file; wanted an \.item file with a title"):
        titles(tmp_path / "none.item")


@pytest.mark.parametrize(("field", "wanted"), [(None, "movie_title or title or name"), ("label", "label")])
def test_missing_columns_are_named(tmp_path: Path, field: str | None, wanted: str) -> None:
    path = item_file(tmp_path, "item_id:token\tartist:token\tyear:token\n1\tA\t2\n")
    with pytest.raises(DataError) as caught:
        titles(path, field)
    message = str(caught.value)
    for part in (str(path), "item_id, artist, year", f"({wanted}; setting item_title_field)"):
        assert part in message
    with pytest.raises(DataError, match="wanted 'iid' and a title column"):
        read_titles(path, id_field="iid", title_field="artist")


def test_a_short_line_and_a_contradiction_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"toy\.item, line 3: wanted 3 cells as in the header, got 1"):
        titles(item_file(tmp_path, HEADER + "1\tOne\t1999\n2\n"))
    with pytest.raises(DataError, match=r"toy\.item, line 3: item '1' has two titles"):
        titles(item_file(tmp_path, HEADER + "1\tOne\t1999\n1\tUno\t1999\n"))
    assert titles(item_file(tmp_path, HEADER + "1\tOne\t1\n1\tOne\t1\n")) == {"1": "One"}


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """0xE9 at byte 4 of the line: behind "1", tab, "A", "m"."""
    path = item_file(tmp_path, HEADER.encode() + b"1\tAm\xe9lie\t2001\n")
    with pytest.raises(DataError, match=r"toy\.item, line 2: not utf-8 .*byte 4\)"):
        titles(path)


def test_items_without_a_title_are_called_by_their_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No line, an empty cell, and a blank one, which no prompt could show either."""
    known = {"1": "One", "2": "", "3": "  "}
    catalogue = build_catalogue(known, ["1", "2", "3", "4"], [0] * 4, tmp_path / "toy.item")
    assert catalogue.titles == ("One", "2", "3", "4")
    assert "3 of 4 items have no title and are called by their id, first item '2'" in caplog.text


def test_no_title_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"toy\.item: none of the 2 items of the data set has a title"):
        build_catalogue({"9": "Other"}, ["1", "2"], [0, 0], tmp_path / "toy.item")


def test_only_items_of_the_data_set_and_in_its_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    known = {"1": "Same", "2": "Two", "3": "Same", "9": "Other"}
    catalogue = build_catalogue(known, ["3", "1", "2"], [5, 6, 7], tmp_path / "toy.item")
    assert catalogue.ids == ("3", "1", "2")
    assert len(catalogue) == 3
    assert "1 titles stand for more than one item" in caplog.text
    assert catalogue.items("Same") == ("3", "1")
    assert catalogue.items("Other") == ()
    assert (catalogue.title("2"), catalogue.title("9")) == ("Two", None)


def test_popular_titles_fall_in_popularity() -> None:
    """B 9, D 5, A 5 (as the later item), C 0; B's second item adds nothing."""
    catalogue = Catalogue(("1", "2", "3", "4", "5"), ("B", "D", "A", "C", "B"), (9, 5, 5, 0, 7))
    assert catalogue.popular(9) == catalogue.popular(10**30) == ["B", "D", "A", "C"]
    assert catalogue.popular(2) == ["B", "D"]
    assert catalogue.popular(2, without=["B", "A", "unknown"]) == ["D", "C"]
    assert catalogue.popular(0) == []


IDS = Catalogue(
    ("00001", "1", "2", "x y", "1984", "7"), ("One", "2", "Two", "Ex", "Orwell", "1984"), (0,) * 6
)


@pytest.mark.parametrize(
    ("entry", "title"),
    [
        ("00001", "One"),  # an id is a text, and keeps its zeros
        (1, "2"),  # the item whose id is written 1
        ("1", "2"),
        ("2", "2"),  # a title before an id
        (2, "Two"),
        ("x y", "Ex"),
        ("1984", "1984"),
        (1984, "Orwell"),
        ("0001", "0001"),  # neither: a title that the catalogue lacks
        ("Nothing", "Nothing"),
        (3, None),
    ],
)
def test_ids_are_what_the_data_set_says(entry: str | int, title: str | None) -> None:
    assert IDS.named(entry) == title


def test_save_and_load(tmp_path: Path) -> None:
    ids = tuple(str(number) for number in range(len(ODD_TITLES)))
    catalogue = Catalogue(ids, tuple(ODD_TITLES), tuple(range(len(ODD_TITLES))))
    catalogue.save(tmp_path / "catalogue.json")
    loaded = Catalogue.load(tmp_path / "catalogue.json")
    assert loaded == catalogue
    assert loaded.items('"Quoted"') == ("1",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '{"ids": ["1"]}',
        '{"ids": ["1"], "titles": ["A"], "popularity": ["x"]}',
        '{"ids": ["1"], "titles": ["A"], "popularity": null}',
        '{"ids": ["1", "2"], "titles": ["A"], "popularity": [0]}',
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"catalogue\.json"):
        Catalogue.load(path)


def test_a_missing_or_binary_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: not a readable catalogue"):
        Catalogue.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.json: not a readable catalogue"):
        Catalogue.load(tmp_path / "binary.json")


def test_the_saved_file_is_plain_json(tmp_path: Path) -> None:
    Catalogue(("1",), ("Amélie",), (3,)).save(tmp_path / "c.json")
    columns: Any = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert columns == {"ids": ["1"], "titles": ["Amélie"], "popularity": [3]}
