"""Requests as Python callers send them, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.serving.requests import RankRequest, answer

from ..helpers.saved_recommender import as_json, write_recommender


@pytest.fixture(scope="module")
def recommender(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return load_recommender(write_recommender(tmp_path_factory.mktemp("requests") / "saved", tiny_backbone))


def test_several_problems_are_named_at_once(recommender: Recommender) -> None:
    with pytest.raises(DataError) as caught:
        answer(recommender, [{"history": [None, "Bear", {}], "k": 1.5}])
    entry = "wanted a title (text) or an item id (whole number)"
    assert str(caught.value) == (
        f"inputs[0]: history[0]: got None, {entry}; history[2]: got {{}}, {entry}; "
        "k: got 1.5, wanted a whole number of at least 1"
    )


def test_python_callers_may_send_typed_requests(recommender: Recommender) -> None:
    (found,) = answer(recommender, [RankRequest(history=[4], candidates=["Bear", "Ember"], k=1)])
    assert [item.model_dump() for item in found.ranked] == as_json(recommender.rank([4], [1, 6], 1))
    (found,) = answer(recommender, [RankRequest(history=["Delta"], candidates=[f"t{n}" for n in range(12)])])
    assert len(found.ranked) == 10
    assert answer(recommender, []) == []
