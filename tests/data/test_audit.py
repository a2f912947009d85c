"""The audit's figures on a data set small enough to count by hand."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo.data.audit import Prompt, audit, audit_table
from recbole_dynamicpo.data.catalogue import contained_titles
from recbole_dynamicpo.errors import DataError

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\tcandidate_id_list:token_seq\n"
ITEMS = 'item_id:token\ttitle:token\n1\tIt\n2\tLost It\n3\t"Air\n4\tNA\n5\tAir\x85\u2028It\n6\tIt\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training rows of one user, one of another; the test row repeats the second training row."""
    (tmp_path / "toy.item").write_text(ITEMS, encoding="utf-8", newline="")
    splits = {
        "train": "a\t1\t2\t1 2 3\na\t1 2\t3\t3 4 1\nb\t3 4 5\t4\t1 4\n",
        "valid": "c\t\t1\t1 2 3 4 5\n",
        "test": "d\t1 2\t3\t3 4\n",
    }
    for split, rows in splits.items():
        (tmp_path / f"toy.{split}.inter").write_text(HEADER + rows, encoding="utf-8", newline="")
    (tmp_path / "manifest.json").write_text('{"test_from_validation": true}')
    return tmp_path


def test_figures_by_hand(folder: Path) -> None:
    """ "It" (items 1 and 6) is inside "Lost It" (2) and item 5's title; no title is inside '"Air' (3).

    Train: rows 1 and 2 have candidate 1 in their histories; row 3 has its target 4 there, but not its other
    candidate 1. Titles 1 and 2 stand together in row 1 alone.
    """
    report = audit(folder)
    assert json.loads(json.dumps(report)) == report
    assert (report["dataset"], report["items"], report["test_from_validation"]) == ("toy", 6, True)
    assert report["titles"] == {
        "distinct": 5,
        "items_sharing_a_title": 2,
        "contained": 1,
        "contained_pairs": 2,
        "contained_examples": [["It", "Air\x85\u2028It"], ["It", "Lost It"]],
    }
    assert report["splits"]["train"] == {
        "rows": 3,
        "users": 2,
        "candidate_titles": 4,
        "candidates_per_row": {"min": 2, "max": 3},
        "rows_with_target_in_history": 1,
        "rows_with_other_candidate_in_history": 2,
        "rows_with_candidate_inside_candidate": 1,
        "rows_with_empty_history": 0,
        "rows_repeated": 0,
        "history_length": {
            "min": 1.0,
            "p10": 1.2,
            "median": 2.0,
            "p90": pytest.approx(2.8),
            "max": 3.0,
            "mean": 2.0,
        },
    }
    assert report["splits"]["valid"]["rows_with_empty_history"] == 1
    assert report["splits"]["valid"]["rows_with_candidate_inside_candidate"] == 1
    assert report["splits"]["valid"]["rows_also_in_train"] == 0
    assert report["splits"]["test"]["rows_also_in_train"] == 1


def test_the_table_shows_each_split_and_where_the_test_rows_came_from(folder: Path) -> None:
    lines = audit_table(audit(folder)).split("\n")
    assert lines[0].startswith(
        "toy: 6 items, 5 distinct titles; 2 items share a title; 1 titles occur inside"
    )
    assert "  the test split was made from the validation rows: no test file was given" in lines
    assert ["rows", "3", "1", "1"] in [line.split() for line in lines]
    assert ["rows", "also", "in", "train", "-", "0", "1"] in [line.split() for line in lines]


@dataclass(frozen=True)
class Letters:
    """A check that has a token a letter."""

    described: dict[str, str | int]
    max_length: int

    def measure(self, prompts: list[Prompt]) -> list[int]:
        return [sum(map(len, [*history, *candidates])) for history, candidates in prompts]


def test_share_of_truncated_prompts(folder: Path) -> None:
    """A token a letter. Row 1: It | It, Lost It, "Air = 15; row 2: It, Lost It | "Air, NA, It = 17; row 3:
    "Air, NA, item 5's 7 letters | It, NA = 17.
    """
    check = Letters({"backbone": "letters", "max_length": 16}, 16)
    report = audit(folder, check)
    prompts = report["splits"]["train"]["prompts"]
    assert [prompts["tokens"][name] for name in ("min", "median", "max")] == [15.0, 17.0, 17.0]
    assert prompts["counted"] == 3
    assert prompts["truncated_share"] == pytest.approx(2 / 3)
    assert "  prompts: backbone letters, max length 16" in audit_table(report).split("\n")
    assert "prompts" not in audit(folder)["splits"]["train"]


def test_share_of_truncated_prompts_of_plain_sequences(tmp_path: Path) -> None:
    """Titles of one letter: u's prompt is 2 of history and 2 random candidates and the target, v's 0 + 3."""
    (tmp_path / "own.item").write_text("item_id:token\ttitle:token\n1\tA\n2\tB\n")
    rows = "u\t1\t5\nu\t2\t5\nu\t1\t6\nv\t1\t5\n"
    (tmp_path / "own.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    report = audit(tmp_path, Letters({"backbone": "letters"}, 4))
    prompts = report["sequences"]["prompts"]
    assert (prompts["tokens"]["min"], prompts["tokens"]["max"]) == (3.0, 5.0)
    assert prompts["truncated_share"] == 0.5


def test_plain_sequences(tmp_path: Path) -> None:
    (tmp_path / "own.item").write_text("item_id:token\ttitle:token\n1\tA\n2\tB\n")
    rows = "u\t1\t5\nu\t2\t5\nu\t1\t6\nv\t1\t5\n"
    (tmp_path / "own.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    report = audit(tmp_path)
    figures = report["sequences"]
    assert (figures["rows"], figures["users"], figures["items"]) == (4, 2, 2)
    assert figures["rows_at_a_moment_of_the_same_user"] == 1
    assert figures["history_length"]["max"] == 3.0
    assert "sequences" in audit_table(report)


@given(st.lists(st.text("ab:", min_size=1, max_size=7), max_size=30))
def test_contained_titles_equal_the_search_of_all_pairs(titles: list[str]) -> None:
    found = {(inner, outer) for outer, inners in contained_titles(titles).items() for inner in inners}
    assert found == {(a, b) for a in titles for b in titles if a != b and a in b}


def test_contained_titles_of_many_that_begin_alike() -> None:
    """20,000 titles: a search of all pairs would take 4e8 steps."""
    draw = random.Random(0)
    titles = [f"The {draw.randrange(10**9)}" for _ in range(20_000)] + ["The", "The 1"]
    found = contained_titles(titles)
    assert all("The" in found[title] for title in titles[:20_000])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "toy.item",
            "item_id:token\tname:token\n",
            r"toy\.item: has the columns item_id, name; wanted 'item_id' and a",
        ),
        ("toy.item", ITEMS + "1\tAgain\n", r"toy\.item, line 8: item '1' has two titles"),
        ("toy.item", ITEMS + "7\n", r"toy\.item, line 8: wanted 2 cells"),
        (
            "toy.test.inter",
            HEADER + "d\t1\t9\t9 1\n",
            r"toy\.test\.inter, row 1: wanted 4 cells with known item",
        ),
        ("toy.test.inter", HEADER + "d\t1\n", r"toy\.test\.inter, line 2: wanted 4 cells"),
        ("toy.test.inter", HEADER, r"toy\.test\.inter: wanted at least one row"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError, match=message):
        audit(folder)


def test_a_folder_without_data_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="wanted a prepared data set"):
        audit(tmp_path / "none")
    (folder / "toy.valid.inter").unlink()
    with pytest.raises(DataError, match=r"toy\.valid\.inter: cannot be read"):
        audit(folder)


def test_what_gives_targets_away_is_said_in_short(tmp_path: Path) -> None:
    """Each target comes with a list of its own, at a place of its own; other lists give nothing away."""
    draw = random.Random(1)
    titles = "".join(f"{item}\tTitle {item}\n" for item in range(1, 61))
    (tmp_path / "own.item").write_text(f"item_id:token\ttitle:token\n{titles}")

    def write(given_away: bool) -> list[str]:
        for split, count in (("train", 600), ("valid", 60), ("test", 60)):
            lines = [HEADER]
            for row in range(count):
                target = draw.randint(1, 60)
                own = random.Random(target) if given_away else draw
                listed = own.sample([item for item in range(1, 61) if item != target], 9)
                listed.insert(own.randrange(10), target)
                history = draw.sample(range(1, 61), 4)
                lines.append(f"{split}{row}\t{_text(history)}\t{target}\t{_text(listed)}\n")
            (tmp_path / f"own.{split}.inter").write_text("".join(lines))
        report = audit(tmp_path)
        lines = [line for line in report["findings"] if " rule: HR@1 " in line]
        assert all(f"- {line}" in audit_table(report).split("\n") for line in lines)
        return [line.split(": HR@1")[0] for line in lines]

    assert write(given_away=True) == ["place rule", "company rule", "place and company rule"]
    assert write(given_away=False) == []


def _text(items: list[int]) -> str:
    return " ".join(map(str, items))
