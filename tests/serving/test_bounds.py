"""What a server can be asked for costs time and memory in proportion, up to a bound that is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo import Recommender, load_recommender
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.scoring import collate
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.serving import requests
from recbole_dynamicpo.serving.requests import MOST_TITLES, WHOLE_CATALOGUE, answer

from ..helpers.saved_recommender import write_recommender


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recommender(tmp_path_factory.mktemp("bounds") / "saved", tiny_backbone)


@pytest.fixture
def recommender(folder: Path) -> Recommender:
    return load_recommender(folder)


@pytest.fixture
def asked(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[PromptRow]]:
    """Return the rows of each call of the scorer, which scores nothing."""
    calls: list[Sequence[PromptRow]] = []

    def score(rows: Sequence[PromptRow]) -> torch.Tensor:
        calls.append(rows)
        return torch.zeros(len(rows), max(len(row.candidates) for row in rows))

    monkeypatch.setattr(recommender, "scorer", score)
    return calls


def wanted(count: int, start: int = 0) -> dict[str, Any]:
    return {"history": [], "candidates": [f"title {number}" for number in range(start, start + count)]}


@pytest.mark.parametrize(
    "inputs",
    [
        [wanted(MOST_TITLES + 1)],
        [wanted(MOST_TITLES), wanted(1)],
        [wanted(1000)] * 10 + [{"history": ["Bear"]}],
        [wanted(1, start) for start in range(MOST_TITLES + 1)],
    ],
    ids=["one request", "two", "eleven", "many"],
)
def test_more_titles_than_a_call_may_have_are_refused(
    inputs: list[Any], recommender: Recommender, asked: list[Any]
) -> None:
    with pytest.raises(
        DataError, match=r"inputs: got 100\d\d titles to rank, wanted at most 10000 in one call"
    ):
        answer(recommender, inputs)
    assert asked == []


@pytest.mark.parametrize(
    "inputs", [[wanted(MOST_TITLES)], [wanted(5000), wanted(5000, 3)], [wanted(100)] * 100]
)
def test_as_many_as_it_may_have_are_ranked_in_one_go(
    inputs: list[Any], recommender: Recommender, asked: list[Any]
) -> None:
    found = answer(recommender, inputs)
    assert [response.num_candidates for response in found] == [len(each["candidates"]) for each in inputs]
    assert len(asked) == 1


def test_a_title_that_comes_twice_counts_once(recommender: Recommender, asked: list[Any]) -> None:
    answer(recommender, [{"history": [], "candidates": ["Bear"] * (2 * MOST_TITLES)}])
    assert sum(len(row.candidates) for row in asked[0]) == 1


@pytest.mark.parametrize("count", [100, 1000, 10_000])
def test_what_is_scored_grows_with_the_number_of_titles(
    count: int, recommender: Recommender, asked: list[Any]
) -> None:
    """Prompts show four titles as in training, one of them in all; each costs what a prompt costs."""
    recommender.rank(["Bear"], wanted(count)["candidates"])
    (rows,) = asked
    assert all(len(row.candidates) <= 4 for row in rows)
    assert len(rows) == -(-(count - 1) // 3)
    assert sum(len(row.completions) for row in rows) <= 4 / 3 * count + 1


def test_a_request_for_the_whole_catalogue_has_its_price(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the vocabulary it is the popular titles that count."""
    monkeypatch.setattr(requests, "MOST_TITLES", 11)
    assert len(answer(recommender, [{"history": ["Bear"]}, {"history": [4]}])) == 2
    with pytest.raises(DataError, match="inputs: got 15 titles to rank, wanted at most 11"):
        answer(recommender, [{"history": ["Bear"]}] * 3)
    assert 1 <= WHOLE_CATALOGUE <= MOST_TITLES


def test_titles_that_the_catalogue_lacks_are_not_kept_for_ever(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collate, "TITLES_KEPT", 50)
    known = recommender.scorer.collator
    collator = Collator(known.tokenizer, known.templates, max_length=256, max_history=4)
    for number in range(500):
        collator([PromptRow([f"old {number}"], [f"new {number}"], [f"new {number}"])])
    assert collator._kept.cache_info().currsize <= 50


@pytest.mark.parametrize("letters", [2_000, 20_000, 200_000])
def test_long_texts_are_not_kept_at_all(letters: int, recommender: Recommender) -> None:
    collator = recommender.scorer.collator
    before = collator._kept.cache_info().currsize
    assert len(collator.title_ids("x" * letters)) == letters + 2
    assert collator._kept.cache_info().currsize == before


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        ({"history": [], "candidates": ["Bear", "x" * 400]}, "a prompt of 2 candidates needs"),
        ({"history": ["Bear"], "candidates": ["x" * 130]}, "a prompt of 1 candidates needs"),
        ({"history": [], "candidates": [*(f"{n}" * 70 for n in range(1, 5)), "Bear"]}, "candidates needs"),
    ],
)
def test_a_title_without_room_is_said_of_its_request(
    request_: dict[str, Any], place: str, recommender: Recommender
) -> None:
    """The others of the call would be answered."""
    good = {"history": ["Bear"], "candidates": ["Amber", "Delta"]}
    with pytest.raises(DataError, match=rf"^inputs\[1\]: .*{place}"):
        answer(recommender, [good, request_, good])


@pytest.mark.parametrize("history", [["x" * 5000], ["x" * 300] * 50, ["Bear"] * 3000])
def test_a_long_history_loses_its_oldest_titles(history: list[str], recommender: Recommender) -> None:
    found = recommender.rank(history, ["Amber", "Delta"])
    assert sorted(item.title for item in found) == ["Amber", "Delta"]


# --- somebody new ---


@pytest.mark.parametrize("candidates", [None, ["Amber"], [2, "Delta"], ["nobody knows it", "Bear"]])
def test_a_user_without_history_is_answered(
    candidates: list[str | int] | None, recommender: Recommender
) -> None:
    found = recommender.ranking([], candidates)
    assert len(found.ranked) == found.num_candidates == (6 if candidates is None else len(candidates))
    (again,) = answer(recommender, [{"history": [], "candidates": candidates}])
    assert [item.title for item in again.ranked] == [item.title for item in found.ranked]


def test_nobody_and_somebody_are_answered_in_one_call(recommender: Recommender) -> None:
    both = answer(recommender, [{"history": []}, {"history": ["Bear"]}, {"history": []}])
    assert both[0] == both[2] != both[1]
    assert len(both[0].ranked) == len(both[1].ranked) + 1
