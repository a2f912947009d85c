"""What ``rank`` says beside its table, and what it refuses before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.data.catalogue import Catalogue

from ..helpers.saved_recommender import POPULARITY, TITLES, write_recommender


@pytest.fixture(scope="module")
def by_shares(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender of the catalogue likelihood, with a title that has a bar."""
    folder = write_recommender(tmp_path_factory.mktemp("kept") / "it", tiny_backbone, priors=["popularity"])
    titles = ("Chess | Clock", *TITLES[1:])
    Catalogue(tuple(map(str, range(1, 8))), titles, POPULARITY).save(folder / "catalogue.json")
    return folder


@pytest.fixture(scope="module")
def by_words(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender of the vocabulary likelihood."""
    return write_recommender(tmp_path_factory.mktemp("kept") / "it", tiny_backbone)


def test_titles_that_the_catalogue_does_not_have_are_named(
    by_shares: Path, by_words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--history", "canyon|Delta|qqqq|4", "--candidates", "Deltas|Canyon"]
    assert main(["rank", "--model", str(by_shares), *asked]) == 0
    goes = "such a title stands in the prompt as text, and the priors pass over it"
    switched = "so all candidates are scored by the vocabulary likelihood, without priors"
    assert capsys.readouterr().err.splitlines() == [
        f"--history: not in the catalogue: 'canyon' (did you mean 'Canyon'?); {goes}",
        f"--history: not in the catalogue: 'qqqq'; {goes}",
        f"--candidates: not in the catalogue: 'Deltas' (did you mean 'Delta'?); {switched}",
    ]
    assert main(["rank", "--model", str(by_words), *asked]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in said] == [
        *["such a title stands in the prompt as text"] * 2,
        "it is scored as text",
    ]


def test_known_titles_are_passed_over_in_silence(by_shares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--model", str(by_shares), "--history", "Delta|4", "--candidates", "Canyon|1"]) == 0
    assert capsys.readouterr().err == ""


def test_titles_with_a_bar_come_in_a_json_list(by_shares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["rank", "--model", str(by_shares), "--history", json.dumps(["Chess | Clock", 2])]
    assert main([*asked, "-k", "9"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("candidates: all 4 titles of the catalogue that are not in the history\n")
    assert main([*asked, "--candidates", '["Chess | Clock", "Delta"]']) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert sum("Chess | Clock" in line for line in said.out.splitlines()) == 1


def test_what_begins_like_a_list_and_is_none_is_a_title(
    by_words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "--model", str(by_words), "--history", "[REC]|Delta"]) == 0
    assert "not in the catalogue: '[REC]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "out", "said"),
    [
        ("gone.jsonl", None, "out", "gone.jsonl: no such file"),
        ("users.csv", "", "out", "users.csv: has no columns; wanted user and history"),
        ("users.csv", "who,what\n", "out", "users.csv: has the columns who, what; wanted user and history"),
        ("users.csv", "user,history\n", "/proc/xx", "/proc/xx: the folder cannot be made (No such file"),
    ],
)
def test_what_can_be_refused_at_once_leaves_nothing(
    name: str, text: str | None, out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    asked = ["--input", str(tmp_path / name), "--out", str(tmp_path / out)]
    assert main(["rank", "--model", "nowhere", *asked]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == (text is not None)
