"""Scorers by hand, and their files: whole, or refused with the file's name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.retrievers.scorers import HistoryEncoder, ItemMatrix, Scorer, from_bytes, to_bytes

# Scores of 4 items: the sum of the history's items and its length, times each item's number.
SUMS = [
    {"input": 0}, {"input": 1}, {"tensor": "ids"},
    {"op": "sum.dim_IntList", "args": [{"node": 0}, [1]], "kwargs": {}},
    {"op": "add.Tensor", "args": [{"node": 3}, {"node": 1}], "kwargs": {}},
    {"op": "unsqueeze.default", "args": [{"node": 4}, 1], "kwargs": {}},
    {"op": "mul.Tensor", "args": [{"node": 5}, {"node": 2}], "kwargs": {}},
    {"result": 6},
]  # fmt: skip


def encoder() -> HistoryEncoder:
    return HistoryEncoder(SUMS, {"ids": torch.arange(4.0)}, length=2, items=4)


def matrix() -> ItemMatrix:
    weights = torch.zeros(4, 4)
    weights[1, 2], weights[1, 3], weights[2, 3] = 0.5, 0.25, 2.0
    return ItemMatrix(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]))


def histories(*items: list[int]) -> list[np.ndarray]:
    return [np.array(one, dtype=np.int64) for one in items]


def test_an_encoder_sees_the_newest_items_and_their_number() -> None:
    found = encoder().scores(histories([1], [2, 1], [3, 2, 1], []))
    assert found.tolist() == [[0, 2, 4, 6], [0, 5, 10, 15], [0, 5, 10, 15], [0, 1, 2, 3]]
    assert encoder().scores([]).shape == (0, 4)


def test_many_histories_are_scored_as_few() -> None:
    many = histories(*([1 + n % 3, 1 + n % 2] for n in range(600)))
    assert torch.equal(encoder().scores(many), torch.cat([encoder().scores([one]) for one in many]))


def test_a_matrix_counts_an_item_once() -> None:
    found = matrix().scores(histories([1], [1, 2], [2, 2], []))
    assert found.tolist() == [[0, 1, 0.5, 0.25], [0, 1, 0.5, 2.25], [0, 1, 0, 2.0], [0, 1, 0, 0]]


@pytest.mark.parametrize("scorer", [encoder(), matrix()], ids=["encoder", "matrix"])
def test_a_file_says_the_same(scorer: Scorer) -> None:
    content = to_bytes(scorer, {"sharpness": 2.5})
    again, about = from_bytes(content, 4, "x")
    asked = histories([1], [3, 2], [1, 2, 3])
    assert torch.equal(again.scores(asked), scorer.scores(asked))
    assert about["sharpness"] == 2.5
    assert content == to_bytes(again, {"sharpness": 2.5})


@pytest.mark.parametrize("scorer", [encoder(), matrix()], ids=["encoder", "matrix"])
def test_a_damaged_file_is_refused(scorer: Scorer) -> None:
    """Cut anywhere, or with one bit turned."""
    content = to_bytes(scorer, {})
    for cut in range(0, len(content), 7):
        with pytest.raises(AdapterError, match=r"here\.safetensors: not a retriever"):
            from_bytes(content[:cut], 4, "here.safetensors")
    unnoticed = 0
    for place in range(0, len(content), 5):
        turned = bytearray(content)
        turned[place] ^= 1
        try:
            found, _ = from_bytes(bytes(turned), 4, "here.safetensors")
        except AdapterError:
            continue
        unnoticed += 1  # white space behind the header
        assert torch.equal(found.scores(histories([1, 2])), scorer.scores(histories([1, 2])))
    assert unnoticed < 20


def test_another_catalogue_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(AdapterError, match="it scores 3 items, wanted 7"):
        from_bytes(to_bytes(matrix(), {}), 8, "x")
    nan = ItemMatrix(torch.full((4, 4), float("nan")), torch.zeros(4))
    with pytest.raises(AdapterError, match="wanted finite scores of 3 items"):
        from_bytes(to_bytes(nan, {}), 4, "x")


def test_a_graph_with_a_foreign_operation_is_refused() -> None:
    evil = [*SUMS[:3], {"op": "from_file.default", "args": ["/etc/passwd"], "kwargs": {}}, {"result": 3}]
    content = to_bytes(HistoryEncoder(evil, {"ids": torch.arange(4.0)}, 2, 4), {})
    with pytest.raises(AdapterError, match=r"operation from_file\.default"):
        from_bytes(content, 4, "x")
