"""What is said of a name that is not known."""

from __future__ import annotations

import pytest

from recbole_dynamicpo.errors import nearest


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("tme", ["user", "item", "time"], "time"),
        ("tpok", ["metrics", "topk"], "topk"),
        ("adamax", ["sgd", "adam"], "adam"),
        ("num_negs", ["num_negatives", "num_candidates"], "num_negatives"),
        ("timestamp", ["user", "item", "time"], "time"),
        ("title", ["item_id", "movie_title", "original_movie_title"], "movie_title"),
        ("SFT", ["DynamicPO", "SFTRec"], "SFTRec"),
        ("dynamicpo", ["SFTRec", "DynamicPO"], "DynamicPO"),
    ],
)
def test_a_slip_and_a_part_are_near(name: str, known: list[str], meant: str) -> None:
    assert nearest(name, known) == f" (did you mean '{meant}'?)"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("time", ["user", "item", "title"]),
        ("item", ["user", "time", "title"]),
        ("user_id", ["item_id", "rating"]),
        ("id", ["user_id", "identity"]),
        ("time", []),
    ],
)
def test_another_word_is_not(name: str, known: list[str]) -> None:
    assert nearest(name, known) == ""
