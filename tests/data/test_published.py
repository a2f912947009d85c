"""Reading published files: streaming, checks with row numbers, and histories whose titles hold colons."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.data import published
from recbole_dynamicpo.data.bad_rows import BadRows
from recbole_dynamicpo.data.history_splitter import HistorySplitter
from recbole_dynamicpo.data.published import read_rows
from recbole_dynamicpo.errors import DataError

GOOD = {"historyList": "A::B", "itemList": ["C", "D"], "trueSelection": "D"}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_rows_are_read_as_they_are(tmp_path: Path) -> None:
    odd = ['"Quoted" Movie', "NA", "null", "e\u0301\u2028\x85\U0001f600", " two  spaces ", "a::b"]
    path = write(tmp_path / "a.json", [{**GOOD, "itemList": odd, "trueSelection": "NA", "more": 1}, GOOD])
    first, second = read_rows(path, BadRows())
    assert (first.number, first.history, first.candidates, first.target) == (1, "A::B", tuple(odd), "NA")
    assert (second.number, second.candidates) == (2, ("C", "D"))


def test_a_byte_order_mark_packing_and_any_letters_are_read(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "itemList": ["Пелагея", '\\"]}, {', f"C{i}"], "trueSelection": f"C{i}"} for i in range(5)
    ]
    text = "\ufeff" + json.dumps(rows, ensure_ascii=False, indent=1)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(text.encode("utf-8")))
    assert [list(row.candidates) for row in read_rows(path, BadRows())] == [row["itemList"] for row in rows]


BAD_ROWS = {
    "no target": ({k: v for k, v in GOOD.items() if k != "trueSelection"}, "trueSelection is missing"),
    "no history": ({k: v for k, v in GOOD.items() if k != "historyList"}, "historyList is missing"),
    "no candidates": ({k: v for k, v in GOOD.items() if k != "itemList"}, "itemList is missing"),
    "target elsewhere": ({**GOOD, "trueSelection": "A"}, "trueSelection must be one of itemList, got 'A'"),
    "target is a number": ({**GOOD, "trueSelection": 3}, "trueSelection must be one of itemList, got 3"),
    "one candidate": ({**GOOD, "itemList": ["D"]}, "at least 2 candidates, got 1"),
    "repeated candidate": ({**GOOD, "itemList": ["D", "C", "D"]}, "names 'D' more than once"),
    "candidates no list": ({**GOOD, "itemList": "CD"}, "must be a list of titles, got 'CD'"),
    "candidate a number": ({**GOOD, "itemList": ["D", 1]}, "must be a list of titles"),
    "history a list": ({**GOOD, "historyList": ["A"]}, "must be one string"),
    "tab": ({**GOOD, "itemList": ["D", "x\ty"]}, r"tab or line break.*'x\\ty'"),
    "newline": ({**GOOD, "itemList": ["D", "x\ny"]}, "tab or line break"),
    "carriage return in history": ({**GOOD, "historyList": "A\r"}, "tab or line break"),
    "empty title": ({**GOOD, "itemList": ["D", ""]}, "a title is empty"),
    "blank title": ({**GOOD, "itemList": ["D", "  "]}, "a title is empty"),
    "half a surrogate pair": ({**GOOD, "itemList": ["D", "\ud83d"]}, "not valid UTF-8"),
    "no object": (["A"], "wanted an object"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_or_dropped_and_counted(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "bad.json", [GOOD, row, GOOD])
    with pytest.raises(DataError, match=rf"bad\.json, row 2: .*{message}"):
        list(read_rows(path, BadRows()))
    bad = BadRows(skip=True)
    assert [found.number for found in read_rows(path, bad)] == [1, 3]
    assert [found.number for found in read_rows(path, bad)] == [1, 3]
    assert bad.count(path) == 1, "a second pass over the file does not count the row again"
    assert len(bad.examples) == 1


def test_bytes_that_are_no_utf8_are_found_in_their_row(tmp_path: Path) -> None:
    path = tmp_path / "bytes.json"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"[" + good + b"," + good.replace(b"C", b"caf\xe9") + b"," + good + b"]")
    with pytest.raises(DataError, match=r"bytes\.json, row 2: .*not valid UTF-8: .*\ufffd"):
        list(read_rows(path, BadRows()))
    assert [row.number for row in read_rows(path, BadRows(skip=True))] == [1, 3]


def test_a_raw_tab_inside_a_string_is_a_bad_row_not_bad_json(tmp_path: Path) -> None:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps([GOOD]).replace('"C"', '"C\t"'), encoding="utf-8")
    with pytest.raises(DataError, match="row 1: a title has a tab"):
        list(read_rows(path, BadRows()))


ONE = json.dumps(GOOD)
BAD_FILES = {
    "empty file": ("", "wanted a JSON list of rows.*got an empty file"),
    "no rows": ("[ ]", "no usable row, 0 dropped"),
    "json lines": (f"{ONE}\n{ONE}\n", "wanted a JSON list of rows.*JSON lines"),
    "other text": ("row,row", "wanted a JSON list of rows.*got 'r'"),
    "cut off in a row": (f"[{ONE}, {ONE[:30]}", "row 2: not valid JSON, or cut off"),
    "cut off between rows": (f"[{ONE}", "after row 1 wanted ',' or ']', got ''"),
    "no comma": (f"[{ONE} {ONE}]", "after row 1 wanted ',' or ']', got '{'"),
    "two lists": (f"[{ONE}][{ONE}]", "more text after the list's end"),
    "broken inside": (f"[{ONE}, {{'a': 1}}, {ONE}]", "row 2: not valid JSON"),
    "endless nesting": ("[" * 100_000, "row 1: "),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_an_error_even_when_rows_are_skipped(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"bad\.json.*{message}"):
        list(read_rows(path, BadRows(skip=True)))


def test_all_rows_bad_leaves_nothing_to_use(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", [1, 2])
    with pytest.raises(DataError, match="no usable row, 2 dropped"):
        list(read_rows(path, BadRows(skip=True)))


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_gzip_says_after_which_row(tmp_path: Path, keep: float) -> None:
    rows = [{**GOOD, "historyList": str(number)} for number in range(300)]
    packed = gzip.compress(json.dumps(rows).encode())
    path = tmp_path / "short.json.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match=r"short\.json\.gz: cannot be read after row \d+"):
        list(read_rows(path, BadRows(skip=True)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        list(read_rows(tmp_path / "none.json", BadRows()))


def test_a_file_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_LARGEST", 1000)
    monkeypatch.setattr(published, "_CHUNK", 100)
    path = tmp_path / "long.json.gz"
    path.write_bytes(gzip.compress(b'["' + b"x" * 998 + b'"]'))
    with pytest.raises(DataError, match=r"long\.json\.gz: wanted at most 1000 bytes \(unpacked\), got more"):
        list(read_rows(path, BadRows()))


@pytest.mark.parametrize(
    ("history", "known", "titles", "ambiguous"),
    [
        ("", ["A"], (), False),
        ("A", ["A"], ("A",), False),
        ("A::B::C", ["A", "B", "C"], ("A", "B", "C"), False),
        ("A:::wumpscut:::B", ["A", ":wumpscut:", "B"], ("A", ":wumpscut:", "B"), False),
        ("A:::wumpscut:::B", ["A", "B"], ("A", ":wumpscut:", "B"), False),
        ("Depths of Fear :: Knossos::X", ["Depths of Fear :: Knossos", "X"],
         ("Depths of Fear :: Knossos", "X"), False),
        ("Depths of Fear :: Knossos", ["Depths of Fear :: Knossos", "Depths of Fear ", " Knossos"],
         ("Depths of Fear :: Knossos",), True),
        ("a::b::c", ["a", "b::c", "a::b", "c"], ("a::b", "c"), True),
        ("A::new one::B", ["A", "B"], ("A", "new one", "B"), False),
        ("A::::B", ["A", "B"], ("A", "", "B"), False),
        ("::A", ["A"], ("", "A"), False),
        ("A::", ["A"], ("A", ""), False),
    ],
)  # fmt: skip
def test_histories_by_hand(history: str, known: list[str], titles: tuple[str, ...], ambiguous: bool) -> None:
    found = HistorySplitter(known).split(history)
    assert (found.titles, found.ambiguous) == (titles, ambiguous)


def all_splits(history: str) -> Iterator[tuple[str, ...]]:
    """Every way to cut a string into pieces that '::' joins to it, by brute force."""
    yield (history,)
    for at in range(len(history) - 1):
        if history.startswith("::", at):
            for rest in all_splits(history[at + 2 :]):
                yield (history[:at], *rest)


@given(
    st.text(":a", max_size=12).filter(bool), st.frozensets(st.text(":a", min_size=1, max_size=5), max_size=6)
)
def test_the_split_is_the_best_of_all(history: str, known: frozenset[str]) -> None:
    def cost(titles: tuple[str, ...]) -> int:
        return sum(len(title) + 1 for title in titles if title not in known)

    splits = list(all_splits(history))
    best = min(map(cost, splits))
    equal = [titles for titles in splits if cost(titles) == best]
    found = HistorySplitter(known).split(history)
    longest_first = max(equal, key=lambda titles: [len(title) for title in titles])
    assert found.titles == longest_first
    assert found.ambiguous == (len(equal) > 1)
    assert "::".join(found.titles) == history


TITLES = st.text(
    st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@given(
    st.lists(TITLES | st.sampled_from([":wumpscut:", "a::b", "NA", '"x']), min_size=1, max_size=6), st.data()
)
def test_joining_gives_the_string_again(titles: list[str], data: st.DataObject) -> None:
    known = data.draw(st.lists(st.sampled_from(titles)))
    history = "::".join(titles)
    found = HistorySplitter(known).split(history)
    assert "::".join(found.titles) == history
    if not any(":" in title for title in itertools.chain(titles, known)):
        assert (found.titles, found.ambiguous) == (tuple(titles), False)
