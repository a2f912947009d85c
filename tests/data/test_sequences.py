"""A team's own sequences: any row order, exact times, and rows that RecBole would not read back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.data.bad_rows import BadRows
from recbole_dynamicpo.data.sequences import read_sequences, write_sequences
from recbole_dynamicpo.errors import DataError


def text_file(folder: Path, text: str, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def parquet_file(folder: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "own.parquet")
    return folder / "own.parquet"


def test_unordered_rows_come_out_by_user_and_exact_time(tmp_path: Path) -> None:
    """Two times of u differ by 1e-8 of a second, which even 64-bit numbers do not tell apart."""
    path = text_file(
        tmp_path,
        "user,item,time,title\n"
        'u,i3,1600000000.00000002,"Third, ""quoted"""\n'
        "v,i1,5,First\n"
        "u,i1,1600000000.00000001,First\n"
        "u,i2,1e3,NA\n",
    )
    found = read_sequences(path, BadRows())
    assert found.interactions == [
        ("u", "i2", "1e3"),
        ("u", "i1", "1600000000.00000001"),
        ("u", "i3", "1600000000.00000002"),
        ("v", "i1", "5"),
    ]
    write_sequences(found, tmp_path, "own")
    assert (tmp_path / "own.inter").read_text("utf-8").splitlines()[:3] == [
        "user_id:token\titem_id:token\ttimestamp:float",
        "u\ti2\t1e3",
        "u\ti1\t1600000000.00000001",
    ]
    assert (tmp_path / "own.item").read_text("utf-8").split("\n") == [
        "item_id:token\ttitle:token",
        'i3\tThird, "quoted"',
        "i1\tFirst",
        "i2\tNA",
        "",
    ]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = text_file(tmp_path, "user,item,time\nu,b,1\nu,a,1.0\nu,c,01\n")
    assert [item for _, item, _ in read_sequences(path, BadRows()).interactions] == ["b", "a", "c"]


def test_tab_separated_text_has_no_quoting_and_recbole_names_are_known(tmp_path: Path) -> None:
    text = 'item_id:token\tuser_id:token\ttimestamp:float\ttitle:token\ni\tu\t3\t"Open quote\n'
    found = read_sequences(text_file(tmp_path, text, "own.tsv"), BadRows())
    assert (found.interactions, found.titles) == ([("u", "i", "3")], {"i": '"Open quote'})


def test_without_titles_an_item_is_called_by_its_id(tmp_path: Path) -> None:
    found = read_sequences(text_file(tmp_path, "\ufeffuser,item,time\r\nu,i 1,3\r\n"), BadRows())
    assert found.titles == {"i 1": "i 1"}


def test_parquet_numbers_and_time_stamps_are_exact(tmp_path: Path) -> None:
    """2**53 + 1 is no 64-bit float; a time stamp becomes seconds with all its digits."""
    import pyarrow

    moment = datetime(2020, 1, 1, 0, 0, 1, 250_000, tzinfo=UTC)
    columns = {"user": [1, 2], "item": [10, 11], "time": [2**53 + 1, 2**53]}
    found = read_sequences(parquet_file(tmp_path, columns), BadRows())
    assert found.interactions == [("1", "10", "9007199254740993"), ("2", "11", "9007199254740992")]
    stamps = pyarrow.array([moment], pyarrow.timestamp("us", "UTC"))
    found = read_sequences(parquet_file(tmp_path, {"user": [b"u"], "item": ["i"], "time": stamps}), BadRows())
    assert found.interactions == [("u", "i", "1577836801.25")]


def test_dates_are_the_same_in_text_and_parquet(tmp_path: Path) -> None:
    """As text, as time stamps of every unit, with a zone and without, and as days."""
    import pyarrow

    wanted = [("u", "a", "1704240000"), ("u", "b", "1704276000.25")]
    rows = "user,item,time\nu,b,2024-01-03T11:00:00.250+01:00\nu,a,2024-01-03\n"
    assert read_sequences(text_file(tmp_path, rows), BadRows()).interactions == wanted
    rows = rows.replace(",", "\t")
    assert read_sequences(text_file(tmp_path, rows, "own.tsv"), BadRows()).interactions == wanted
    texts = ["2024-01-03 10:00:00.25", "2024-01-03"]
    moments = [datetime(2024, 1, 3, 10, 0, 0, 250_000), datetime(2024, 1, 3)]
    kinds = [pyarrow.timestamp(unit, zone) for unit in ("ms", "us", "ns") for zone in (None, "UTC")]
    for times in (texts, *(pyarrow.array(moments, kind) for kind in kinds)):
        columns = {"user": ["u", "u"], "item": ["b", "a"], "time": times}
        assert read_sequences(parquet_file(tmp_path, columns), BadRows()).interactions == wanted
    days = {"user": ["u"], "item": ["a"], "time": pyarrow.array([moments[1].date()])}
    assert read_sequences(parquet_file(tmp_path, days), BadRows()).interactions == wanted[:1]


def test_one_unreadable_date_is_named_or_dropped(tmp_path: Path) -> None:
    path = text_file(tmp_path, "user,item,time\nu,a,2024-01-03\nu,b,2024-01-32\nu,c,7\nu,d,2024-01-02\n")
    with pytest.raises(DataError, match=r"own\.csv, row 2: time must be a date .*got '2024-01-32'"):
        read_sequences(path, BadRows())
    bad = BadRows(skip=True)
    assert [item for _, item, _ in read_sequences(path, bad).interactions] == ["d", "a"]
    assert bad.count(path) == 2


BAD_ROWS = {
    "no user": (",i,1,T", "user id '' is what RecBole reads as missing"),
    "user NA": ("NA,i,1,T", "user id 'NA' is what RecBole reads as missing"),
    "item padding": ("u,[PAD],1,T", r"item id '\[PAD\]' is what RecBole reads as missing"),
    "quote in id": ('u,"i""",1,T', "item id .* has a quote"),
    "tab in id": ("u,i\tj,1,T", "item id .* tab"),
    "space around id": ("u , i,1,T", "user id 'u ' has .*space around it"),
    "time a date": ("u,i,2020-01-01,T", "time must be a finite number.*'2020-01-01'"),
    "time nan": ("u,i,nan,T", "time must be a finite number"),
    "time too large": ("u,i,1e999,T", "time must be a finite number"),
    "time empty": ("u,i,,T", "time must be a finite number.*''"),
    "time underscored": ("u,i,1_0,T", "time must be a finite number"),
    "empty title": ("u,i,1,", "a title is empty"),
    "newline in title": ('u,i,1,"a\nb"', "tab or line break"),
    "short": ("u,i", "wanted 4 cells as in the header, got 2"),
    "comma in title": ("u,i,1,a,b", "wanted 4 cells as in the header, got 5"),
    "no utf-8": ("u,i,1,caf\udce9", r"the file is not UTF-8: got 'caf\ufffd' \(save it as UTF-8\)$"),
    "id no utf-8": ("u,\udce9,1,T", r"the file is not UTF-8: got '\ufffd' \(save it as UTF-8\)$"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_or_dropped_and_counted(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(f"user,item,time,title\nu,x,1,X\n{row}\nu,y,2,Y\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=rf"own\.csv, row 2: .*{message}"):
        read_sequences(path, BadRows())
    bad = BadRows(skip=True)
    assert read_sequences(path, bad).titles == {"x": "X", "y": "Y"}
    assert bad.count(path) == 1


def test_a_title_is_without_the_white_space_around_it(tmp_path: Path) -> None:
    """The first spelling stays where others differ from it in white space alone."""
    text = "user,item,time,title\nu,s,1,Sailing | Clock \nu,s,2, Sailing | Clock\nv,s,1,Sailing  |  Clock\n"
    found = read_sequences(text_file(tmp_path, text), BadRows())
    assert (len(found.interactions), found.titles) == (3, {"s": "Sailing | Clock"})
    columns = {
        "user": ["u", "v"],
        "item": ["s", "s"],
        "time": [1, 2],
        "title": ["Sailing | Clock\t", "\u00a0Sailing | Clock"],
    }
    assert read_sequences(parquet_file(tmp_path, columns), BadRows()).titles == {"s": "Sailing | Clock"}


def test_items_with_several_titles_are_counted_in_one_error(tmp_path: Path) -> None:
    rows = [f"u,i{n},{n},T{n}" for n in range(7)] + [f"v,i{n},{n},U{n}" for n in range(1, 7)] + ["w,i2,9,V"]
    path = text_file(tmp_path, "\n".join(["user,item,time,title", *rows]))
    with pytest.raises(DataError) as caught:
        read_sequences(path, BadRows())
    first, *lines = str(caught.value).split("\n")
    assert first.startswith(f"{path}: 6 items have more than one title; wanted one an item (--skip-bad-rows ")
    assert lines == [
        *(f"  row {n + 7}: item 'i{n}' has the title 'U{n}' here and 'T{n}' before" for n in range(1, 6)),
        "  ...",
    ]
    bad = BadRows(skip=True)
    found = read_sequences(path, bad)
    assert (len(found.interactions), found.titles) == (7, {f"i{n}": f"T{n}" for n in range(7)})
    assert bad.reasons == {
        "another title than the item had before": {
            "rows": 7,
            "first": f"{path}, row 8: item 'i1' has the title 'U1' here and 'T1' before",
        }
    }


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_a_file_of_another_encoding_is_said_to_be_so(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes("user,item,time,title\nu,i,1,Plain\nu,j,2,Größe\n".encode(encoding))
    with pytest.raises(DataError, match=r"the file is not UTF-8.*save it as UTF-8") as caught:
        read_sequences(path, BadRows())
    assert ("row 2" in str(caught.value)) == (encoding != "utf-16"), "its header is no text either"
    assert "\\ud" not in str(caught.value)
    assert "skip" not in str(caught.value)


def test_what_is_left_out_may_be_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes("user,item,time,mood\nu,i,1,trüb\n".encode("latin-1"))
    assert read_sequences(path, BadRows()).titles == {"i": "i"}


BAD_FILES = {
    "empty": ("own.csv", "", "the file is empty"),
    "header only": ("own.csv", "user,item,time\n", "no usable row, 0 dropped"),
    "no time": ("own.csv", "user,item,tme\nu,i,1\n", "a column named time, got .*did you mean 'tme'"),
    "a time of another name": (
        "own.csv",
        "user,item,day,title\nu,i,1,T\n",
        r"named time, got \[.*'title'\]$",
    ),
    "two users": ("own.csv", "user,user_id,item,time\nu,u,i,1\n", "one column for user, got"),
    "open quote": ("own.csv", 'user,item,time\nu,"i,1\n', "line 2: cannot be read as CSV"),
    "no parquet": ("own.parquet", "user,item,time\n", "cannot be read as Parquet"),
    "another suffix": ("own.txt", "user,item,time\n", r"ends in \.csv, \.tsv, \.parquet"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_an_error_even_when_rows_are_skipped(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_sequences(text_file(tmp_path, text, name), BadRows(skip=True))


def test_a_missing_file_and_missing_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_sequences(tmp_path / "none.csv", BadRows())
    path = parquet_file(tmp_path, {"user": ["u", None], "item": ["i", "i"], "time": [1, 2]})
    with pytest.raises(DataError, match=r"own\.parquet, row 2: user id ''"):
        read_sequences(path, BadRows())


@given(
    st.lists(
        st.tuples(st.sampled_from(["u", "v"]), st.floats(0, 4e9, allow_nan=False)), min_size=1, max_size=20
    )
)
def test_each_user_ends_up_in_time_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]
) -> None:
    text = "user,item,time\n" + "".join(f"{user},i{n},{time!r}\n" for n, (user, time) in enumerate(rows))
    found = read_sequences(text_file(tmp_path_factory.mktemp("own"), text), BadRows()).interactions
    for name in ("u", "v"):
        wanted = sorted((time, n) for n, (user, time) in enumerate(rows) if user == name)
        assert [item for user, item, _ in found if user == name] == [f"i{n}" for _, n in wanted]


def test_ratings_are_kept_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    path = text_file(tmp_path, "rating,user,genre,item,time\n4.5,u,drama,i2,2\n3,u,action,i1,1\n")
    found = read_sequences(path, BadRows())
    assert found.interactions == [("u", "i1", "1", "3"), ("u", "i2", "2", "4.5")]
    assert (found.rated, found.left_out) == (True, ["genre"])
    write_sequences(found, tmp_path, "own")
    assert (tmp_path / "own.inter").read_text("utf-8").splitlines() == [
        "user_id:token\titem_id:token\ttimestamp:float\trating:float",
        "u\ti1\t1\t3",
        "u\ti2\t2\t4.5",
    ]


@pytest.mark.parametrize("rating", ["", "good", "nan", "1e999"])
def test_a_rating_is_a_number(tmp_path: Path, rating: str) -> None:
    path = text_file(tmp_path, f"user,item,time,rating\nu,i1,1,{rating}\n")
    with pytest.raises(DataError, match=r"own\.csv, row 1: rating must be a finite number, got"):
        read_sequences(path, BadRows())
