"""Who is asked about whom, and how sharp scores are: numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.dataset.sampling import row_generator
from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.retrievers.retriever import (
    Retriever,
    deal_users,
    file_of,
    fit_sharpness,
    load_retriever,
)
from recbole_dynamicpo.retrievers.scorers import IntArray, ItemMatrix


class Constant:
    """Scores every item with one number."""

    items, logits = 4, True

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, 0

    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        self.asked += len(histories)
        return torch.full((len(histories), self.items), self.value)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"kind": "constant", "value": self.value}


def test_a_training_row_is_scored_by_the_fold_that_has_not_seen_its_user() -> None:
    whole, folds = Constant(9.0), (Constant(0.0), Constant(1.0))
    found = Retriever(whole, 1.0, folds, {5: 1, 6: 0, 7: 1})
    histories = [np.array([1])] * 5
    scores = found.scores(histories, np.array([5, 6, -1, 7, 8]))
    assert scores[:, 0].tolist() == [1.0, 0.0, 9.0, 1.0, 9.0]  # 8 was in no training row
    assert (folds[0].asked, folds[1].asked, whole.asked) == (1, 2, 2)


class Logits(ItemMatrix):
    """A matrix whose scores are taken for logits."""

    logits = True


def test_likelihoods_are_a_softmax_of_sharpened_logits() -> None:
    scorer = Logits(torch.zeros(4, 4), torch.tensor([7.0, 0.0, log(2.0), log(3.0)]))
    found = Retriever(scorer, 2.0).likelihoods([np.array([1]), np.array([], np.int64)], np.array([-1, -1]))
    assert found[0].tolist() == pytest.approx([0.0, 1 / 14, 4 / 14, 9 / 14], rel=1e-6)
    assert found[1].tolist() == [0.0] * 4  # nothing is known of who took nothing


def test_likelihoods_of_sums_are_their_shares() -> None:
    weights = torch.tensor([[9.0] * 4, [5.0, 1.0, -2.0, 3.0], [0.0] * 4, [0.0, -1.0, -1.0, -1.0]])
    scorer, asked = ItemMatrix(weights, torch.zeros(4)), [np.array([1]), np.array([2]), np.array([3, 1])]
    found = Retriever(scorer).likelihoods(asked, np.full(3, -1))
    assert found.tolist() == [[0.0, 0.25, 0.0, 0.75], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]]


def test_users_are_dealt_evenly_and_by_the_seed() -> None:
    users = list(range(10, 31))
    folds = deal_users(users, 4, row_generator(1, 43))
    assert sorted(folds) == users
    assert sorted(np.bincount(list(folds.values())).tolist()) == [5, 5, 5, 6]
    assert folds == deal_users(users, 4, row_generator(1, 43))
    assert folds != deal_users(users, 4, row_generator(2, 43))


def test_the_sharpness_is_that_of_greatest_likelihood() -> None:
    """Two items, 1 apart in 4 rows, 3 of which chose the better: e^x / (1 + e^x) = 3 / 4."""
    scores = np.tile([0.0, 1.0, 2.0], (4, 1))
    assert fit_sharpness(scores, np.array([2, 2, 1, 2])) == pytest.approx(log(3.0), abs=1e-6)
    assert fit_sharpness(20 * scores, np.array([2, 2, 1, 2])) == pytest.approx(log(3.0) / 20, abs=1e-6)
    assert fit_sharpness(scores / 50, np.array([2, 2, 1, 2])) == pytest.approx(50 * log(3.0), rel=1e-6)


def test_scores_that_say_nothing_are_not_listened_to() -> None:
    scores = np.tile([0.0, 1.0, 2.0], (4, 1))
    assert fit_sharpness(scores, np.array([2, 1, 1, 1])) < 1e-9
    assert 30 < fit_sharpness(scores, np.array([2, 2, 2, 2])) <= 2048


def test_a_saved_retriever_is_the_whole_one(tmp_path: Path) -> None:
    matrix = ItemMatrix(torch.eye(4), torch.arange(4.0))
    found = Retriever(matrix, 1.0, (Constant(0.0), Constant(1.0)), {1: 0, 2: 1})
    path = tmp_path / file_of("recbole:EASE")
    path.write_bytes(found.content())
    again, asked = load_retriever(path, 4), [np.array([2, 3])]
    assert path.name == "retriever-EASE.safetensors"
    assert (again.sharpness, again.folds, dict(again.fold_of)) == (1.0, (), {})
    nobody = np.array([-1])
    assert again.likelihoods(asked, nobody).tolist() == found.likelihoods(asked, nobody).tolist()
    assert again.likelihoods(asked, nobody)[0].tolist() == pytest.approx([0, 1 / 8, 3 / 8, 4 / 8])
    with pytest.raises(AdapterError, match=r"nowhere: cannot be read .*wanted a retriever"):
        load_retriever(tmp_path / "nowhere", 4)


def test_the_digest_holds_folds_and_their_users() -> None:
    matrix = ItemMatrix(torch.eye(4), torch.arange(4.0))
    parts = [(), (Constant(0.0), Constant(1.0)), (Constant(0.0), Constant(2.0))]
    made = [Retriever(matrix, 1.0, folds, {1: 0}) for folds in parts]
    made += [Retriever(matrix, 1.0, parts[1], {1: 1}), Retriever(matrix, 2.0, parts[1], {1: 0})]
    assert len({one.digest() for one in made}) == len(made)
