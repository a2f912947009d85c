"""Weights of greatest likelihood: by hand, at an optimum, and never turned round."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps
from recbole_dynamicpo.title_trie.fitted_counts import Said, fit_experts
from recbole_dynamicpo.title_trie.title_layout import lay_out
from tests.helpers.catalogues import trie_of


def coin(chosen: list[int]) -> Said:
    """Two titles; an expert says 1 for the first and 0 for the second, whatever the history."""
    layout = lay_out(trie_of([(1, 0), (2, 0)]), np.array(chosen)[:, None])
    tokens = layout.edges.token
    return Said((tokens == 1).double()[None], layout)


@pytest.mark.parametrize("positive", [0, 1])
def test_by_hand(positive: int) -> None:
    """Three of four choose the first: its odds are e^w = 3, and the loss is the entropy of 3/4."""
    (weight,), loss = fit_experts([coin([0, 0, 1]), coin([0])], [1.0], positive)
    assert weight == pytest.approx(math.log(3), abs=1e-4)
    assert loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-8)


def test_one_that_may_not_turn_round_falls_silent() -> None:
    """One of four: the best weight is -log 3, the best that stays positive is next to nothing."""
    (free,), _ = fit_experts([coin([0, 1, 1, 1])], [1.0])
    (bound,), loss = fit_experts([coin([0, 1, 1, 1])], [1.0], positive=1)
    assert free == pytest.approx(-math.log(3), abs=1e-4)
    assert 0 < bound < 1e-2
    assert loss == pytest.approx(math.log(2), abs=1e-2)


def test_no_weights_nearby_are_better() -> None:
    titles = [(1, 0), (1, 2, 0), (1, 2, 3, 0), (2, 0), (3, 1, 0), (3, 2, 0)]
    trie, draw = trie_of(titles), np.random.default_rng(2)
    layout = lay_out(trie, draw.integers(0, trie.num_titles, size=(40, 1)))
    experts = torch.from_numpy(draw.normal(size=(3, len(layout.edges.token))))
    weights, loss = fit_experts([Said(experts, layout)], [0.3, 0.3, 0.3])

    def at(these: list[float]) -> float:
        logits = torch.einsum("n,ne->e", torch.tensor(these, dtype=torch.float64), experts)
        return -catalogue_logps(logits[None], layout).mean().item()

    assert loss == pytest.approx(at(weights), abs=1e-12)
    for place in range(3):
        for step in (-0.02, 0.02):
            moved = [w + step * (number == place) for number, w in enumerate(weights)]
            assert at(moved) > loss
