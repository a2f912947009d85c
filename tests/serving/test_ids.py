"""Item ids in requests are what the data set's files say, and may be texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.serving.requests import answer

from ..helpers.saved_recommender import write_recommender

# By id; 1984 is a title too, and "2" the title of another item than that of the id 2.
ITEMS = {
    **{"00001": "One", "1": "Uno", "tt0111161": "Shawshank", "2": "Two"},
    **{"x-7": "2", "1984": "Orwell", "b 1": "1984"},
}


@pytest.fixture(scope="module")
def recommender(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = write_recommender(tmp_path_factory.mktemp("ids") / "saved", tiny_backbone)
    popularity = [1] * len(ITEMS)
    catalogue = {"ids": [*ITEMS], "titles": [*ITEMS.values()], "popularity": popularity}
    (folder / "catalogue.json").write_text(json.dumps(catalogue))
    return load_recommender(folder)


@pytest.mark.parametrize(
    ("entry", "title", "ids"),
    [
        ("00001", "One", ["00001"]),
        (1, "Uno", ["1"]),
        ("1", "Uno", ["1"]),
        ("tt0111161", "Shawshank", ["tt0111161"]),
        ("x-7", "2", ["x-7"]),
        ("2", "2", ["x-7"]),  # a title before an id
        (2, "Two", ["2"]),
        ("1984", "1984", ["b 1"]),
        (1984, "Orwell", ["1984"]),
        ("b 1", "1984", ["b 1"]),
        ("0001", "0001", []),  # neither
        ("One ", "One ", []),
    ],
)
def test_an_entry_is_a_title_or_an_id(
    entry: str | int, title: str, ids: list[str], recommender: Recommender
) -> None:
    (found,) = recommender.rank([entry], [entry])
    assert (found.title, list(found.ids)) == (title, ids)
    (response,) = answer(recommender, [{"history": [], "candidates": [entry]}])
    assert [(item.title, item.ids) for item in response.ranked] == [(title, ids)]
    assert recommender.question([entry]).history == [title]


@pytest.mark.parametrize("entry", [3, 0, -1, 7, 111161])
def test_a_number_that_is_no_id_is_named(entry: int, recommender: Recommender) -> None:
    with pytest.raises(
        DataError, match=rf"candidates\[1\]: got item id {entry}, which the catalogue does not"
    ):
        recommender.rank([], ["One", entry])


def test_a_taken_id_is_left_out(recommender: Recommender) -> None:
    assert "One" not in {item.title for item in recommender.rank(["00001"])}
    assert "One" in {item.title for item in recommender.rank(["0001"])}
