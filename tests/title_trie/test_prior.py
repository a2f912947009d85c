"""Masses of priors at the nodes: numbers by hand, then brute force on random catalogues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.errors import NumericsError
from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps, edge_logits
from recbole_dynamicpo.title_trie.prior import Prior, edge_masses, history_prior
from recbole_dynamicpo.title_trie.title_layout import lay_out
from tests.helpers import trie_oracle as oracle
from tests.helpers.catalogues import TITLES, trie_of
from tests.helpers.trie_oracle import Title

# Titles 0 a b, 1 c, 2 a b d, 3 e; edges: root to a, c, e; a b to its end, d.
HAND = [(1, 2, 0), (3, 0), (1, 2, 4, 0), (5, 0)]
EVERY = np.arange(5)


def hand_prior() -> Prior:
    """Popularity 2, 3, 5, 4 and two histories: 3 more for a b d; half of it, 6 for c, 1 off a b."""
    trie = trie_of(HAND)
    masses = edge_masses(trie, np.array([2.0, 3.0, 5.0, 4.0]))
    return history_prior(
        trie,
        masses,
        np.array([1.0, 0.5]),
        history=np.array([0, 1, 1, 0]),
        titles=np.array([2, 1, 0, 2]),
        own=np.array([2.0, 6.0, -0.5, 1.0]),
    )


def test_masses_by_hand() -> None:
    prior = hand_prior()
    assert prior.background.tolist() == [7.0, 3.0, 4.0, 2.0, 5.0]
    found = prior.masses(np.array([[0], [1]]), EVERY)
    assert found.tolist() == [[10.0, 3.0, 4.0, 2.0, 8.0], [3.0, 7.5, 2.0, 0.5, 2.5]]
    assert prior.masses(np.array([1, 0]), np.array([1, 4])).tolist() == [7.5, 8.0]


def test_log_ratios_by_hand() -> None:
    """History 0 gives c 3 of the root's 17, and a b's end 2 of its 10."""
    layout = lay_out(trie_of(HAND), np.arange(4)[None])
    found = hand_prior().log_ratios(layout.edges, np.array([[0], [1]]))
    wanted = [[10 / 17, 3 / 17, 4 / 17, 0.2, 0.8], [3 / 12.5, 7.5 / 12.5, 2 / 12.5, 0.5 / 3, 2.5 / 3]]
    assert found.exp().flatten().tolist() == pytest.approx(np.ravel(wanted), rel=1e-14)
    flat = lay_out(trie_of(HAND), np.array([[1, 3], [0, -1]]))  # the root for history 0, both nodes for 1
    history = flat.edges.query[flat.edges.source].numpy()
    found = hand_prior().log_ratios(flat.edges, history)
    assert found.exp().tolist() == pytest.approx([*wanted[0][:3], *wanted[1]], rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(TITLES, st.integers(0, 2**31), st.integers(0, 30))
def test_the_prior_alone_is_its_own_log_probability(titles: list[Title], seed: int, known: int) -> None:
    """s = 0 and weight 1, for histories that add something to ``known`` titles."""
    trie = trie_of(titles)
    draw = np.random.default_rng(seed)
    background = np.exp(draw.normal(0, 4, trie.num_titles))
    history, title = draw.integers(0, 3, known), draw.integers(0, trie.num_titles, known)
    own, share = draw.random(known) * 10, np.array([1.0, 0.02, 0.7])
    p0 = share[:, None] * background
    np.add.at(p0, (history, title), own)
    p0 /= p0.sum(axis=1, keepdims=True)

    prior = history_prior(trie, edge_masses(trie, background), share, history, title, own)
    layout = lay_out(trie, np.arange(trie.num_titles)[None])
    ratios = prior.log_ratios(layout.edges, np.arange(3)[:, None])
    zero = torch.tensor(0.0, dtype=torch.float64)
    logits = edge_logits(torch.ones_like(ratios), zero, torch.ones(1).double(), ratios[None])
    found = catalogue_logps(logits, layout)[:, 0]
    assert found.flatten().tolist() == pytest.approx(np.log(p0).ravel(), rel=1e-11, abs=1e-11)


@settings(max_examples=20, deadline=None)
@given(TITLES, st.integers(0, 2**31))
def test_masses_are_sums_over_the_leaves_below(titles: list[Title], seed: int) -> None:
    trie, known = trie_of(titles), oracle.distinct(titles)
    p0 = np.random.default_rng(seed).random(len(known)) + 0.1
    for edge, mass in enumerate(edge_masses(trie, p0)):
        node = oracle.prefix(trie, trie.edge_node[edge])
        below = [p for title, p in zip(known, p0, strict=True) if title[: len(node)] == node]
        assert mass == pytest.approx(math.fsum(below), rel=1e-14)


def test_counts_that_are_taken_out_are_gone() -> None:
    """Popularity n + 1/2 without a user's own counts is the popularity of the others, bit for bit."""
    trie = trie_of(HAND)
    others, mine = np.array([10.0**15, 7, 0, 1]), np.array([0, 3, 5, 123456789])
    whole = edge_masses(trie, others + mine + 0.5)
    taken = np.flatnonzero(mine)
    prior = history_prior(trie, whole, np.ones(1), np.zeros(3, np.int64), taken, -mine[taken].astype(float))
    assert prior.masses(np.zeros(1, np.int64), EVERY).tolist() == edge_masses(trie, others + 0.5).tolist()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_every_title_needs_a_share(value: float) -> None:
    p0 = np.array([1.0, 2.0, value, 1.0])
    with pytest.raises(NumericsError, match=rf"distinct title 2 \(item 2\) got {value}, wanted a positive"):
        edge_masses(trie_of(HAND), p0)


def test_a_history_that_takes_too_much() -> None:
    trie = trie_of(HAND)
    masses = edge_masses(trie, np.array([2.0, 3.0, 5.0, 4.0]))
    one = np.zeros(1, np.int64)
    prior = history_prior(trie, masses, np.ones(1), one, np.array([1]), np.array([-3.0]))
    assert prior.masses(one, np.array([0])).tolist() == [7.0]
    with pytest.raises(NumericsError, match=r"got the mass 0\.0 below a node, wanted positive"):
        prior.masses(one, EVERY)
