"""Best-first search: numbers by hand, then the exhaustive pass on random catalogues, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dynamicpo.errors import NumericsError, SettingsError
from recbole_dynamicpo.title_trie.best_first import title_rank, top_titles
from recbole_dynamicpo.title_trie.catalogue_likelihood import catalogue_logps
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trie import Trie
from tests.helpers.catalogues import TITLES, trie_of, wide_catalogue
from tests.helpers.trie_oracle import Title

DTYPES = st.sampled_from([torch.float32, torch.float64])

# Titles 0 a b c, 1 d, 2 a b e, 3 f; the root decides a : d : f, a b decides c : e.
HAND = [(1, 2, 3, 0), (4, 0), (1, 2, 5, 0), (6, 0)]


class Model:
    """Fixed logits of a trie's edges, and a record of what was asked: no node twice, upper ones first."""

    def __init__(self, trie: Trie, logits: Tensor) -> None:
        self.trie, self.logits = trie, logits
        self.calls: list[list[int]] = []
        self.asked: list[int] = []
        self.forwarded: set[int] = set()

    def __call__(self, numbers: np.ndarray) -> Tensor:
        trie = self.trie
        assert (np.diff(numbers) > 0).all()
        for number in numbers.tolist():
            edge = trie.branching_edge[number]
            assert number not in self.asked
            assert edge < 0 or trie.edge_from[edge] in self.asked
            self.asked.append(number)
            self.forwarded.update(trie.path(int(trie.branching[number])).tolist())
        self.calls.append(numbers.tolist())
        return torch.cat([self.logits[trie.edge_start[n] : trie.edge_start[n + 1]] for n in numbers])

    def everything(self) -> np.ndarray:
        """Return (Y,) log-probabilities of all titles."""
        layout = lay_out(self.trie, np.arange(self.trie.num_titles)[None])
        return catalogue_logps(self.logits, layout)[0].numpy()


def made(titles: list[Title], seed: int, *, ties: bool, dtype: torch.dtype = torch.float32) -> Model:
    """Return a model with random logits; with ties they are 0 or 2, so that many titles are equal."""
    trie = trie_of(titles)
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(trie.edge_node), generator=draw, dtype=dtype)
    return Model(trie, 2 * (logits > 0).to(dtype) if ties else logits)


def hand_model() -> Model:
    """a 6, d 3, f 1 of 10; c 1, e 4 of 5: a b c .12, d .3, a b e .48, f .1."""
    return Model(trie_of(HAND), torch.tensor([6.0, 3.0, 1.0, 1.0, 4.0]).log())


def test_top_by_hand() -> None:
    model = hand_model()
    found = top_titles(model.trie, model, 3)
    assert found.titles.tolist() == [2, 1, 0]
    assert np.exp(found.logps).tolist() == pytest.approx([0.48, 0.3, 0.12])
    assert (found.nodes, found.exact) == (2, True)
    assert model.calls == [[0], [1]]


def test_what_cannot_be_among_the_best_is_not_opened() -> None:
    """d .6 and f .3 are above all that begins with a, .1."""
    model = Model(trie_of(HAND), torch.tensor([1.0, 6.0, 3.0, 1.0, 4.0]).log())
    found = top_titles(model.trie, model, 2)
    assert found.titles.tolist() == [1, 3]
    assert (found.nodes, found.exact) == (0, True)
    assert model.calls == [[0]]


def test_rank_by_hand() -> None:
    for target, rank, nodes in ((0, 3, 2), (1, 2, 2), (2, 1, 2), (3, 4, 2)):
        model = hand_model()
        found = title_rank(model.trie, model, target)
        assert (found.rank, found.nodes, found.exact) == (rank, nodes, True)
        assert np.exp(found.logp) == pytest.approx([0.12, 0.3, 0.48, 0.1][target])
    model = hand_model()
    assert title_rank(model.trie, model, 3, left_out=[2, 1, 3]).rank == 2


def test_ties_by_hand() -> None:
    """Four equal titles; only those with a smaller key come before the target."""
    model = Model(trie_of([(1, 0), (2, 0), (3, 0), (4, 0)]), torch.zeros(4))
    ranks = [title_rank(model.trie, Model(model.trie, model.logits), 2).rank]
    for keys in ([1, 0, 1, 2], [0.1, 0.2, 0.3, 0.4]):
        asked = Model(model.trie, model.logits)
        ranks.append(title_rank(model.trie, asked, 2, tie_keys=np.array(keys)).rank)
    assert ranks == [1, 2, 3]
    assert top_titles(model.trie, model, 2).titles.tolist() == [0, 1]


def test_a_probable_target_needs_its_own_path_only() -> None:
    model = Model(trie_of(HAND), torch.tensor([1.0, 8.0, 1.0, 1.0, 4.0]).log())
    found = title_rank(model.trie, model, 1)
    assert (found.rank, found.nodes) == (1, 0)


@settings(max_examples=60, deadline=None)
@given(TITLES, st.integers(0, 2**31), st.booleans(), st.integers(1, 9), st.integers(1, 4))
def test_top_equals_the_exhaustive_pass(
    titles: list[Title], seed: int, ties: bool, k: int, at_once: int
) -> None:
    """Bit for bit, in the order of the catalogue among equals, without what is left out."""
    model = made(titles, seed, ties=ties)
    draw = np.random.default_rng(seed)
    left_out = draw.integers(0, model.trie.num_titles, size=draw.integers(0, 4)).tolist()
    logps = model.everything()
    wanted = [t for t in np.lexsort((np.arange(len(logps)), -logps)) if t not in left_out][:k]
    found = top_titles(model.trie, model, k, left_out=left_out, at_once=at_once)
    assert found.titles.tolist() == wanted
    assert found.logps.tolist() == logps[wanted].tolist()
    assert found.exact
    assert found.nodes == len(model.forwarded)
    assert max((len(call) for call in model.calls), default=0) <= at_once


@settings(max_examples=60, deadline=None)
@given(TITLES, st.integers(0, 2**31), st.booleans(), st.booleans(), st.integers(1, 4), DTYPES)
def test_rank_equals_the_exhaustive_pass(
    titles: list[Title], seed: int, ties: bool, keyed: bool, at_once: int, dtype: torch.dtype
) -> None:
    model = made(titles, seed, ties=ties, dtype=dtype)
    draw = np.random.default_rng(seed)
    count = model.trie.num_titles
    target = int(draw.integers(count))
    left_out = draw.integers(0, count, size=draw.integers(0, 4)).tolist()
    keys = draw.integers(0, 4, size=count)
    logps = model.everything()
    rank = 1
    for title in set(range(count)) - {target, *left_out}:
        tied = keyed and logps[title] == logps[target] and keys[title] < keys[target]
        rank += int(logps[title] > logps[target] or tied)
    tie_keys = keys if keyed else None
    found = title_rank(model.trie, model, target, left_out=left_out, tie_keys=tie_keys, at_once=at_once)
    assert (found.rank, found.logp, found.exact) == (rank, logps[target], True)
    assert found.nodes == len(model.forwarded)


def test_a_sharp_model_visits_few_nodes() -> None:
    model = made(wide_catalogue(3000, seed=1), 2, ties=False)
    found = top_titles(model.trie, model, 5, at_once=4)
    needed = len(model.trie.forward_nodes())
    assert 0 < found.nodes < needed / 3
    assert found.titles.tolist() == np.argsort(-model.everything(), kind="stable")[:5].tolist()


def test_a_prefix_as_probable_as_the_last_is_still_opened() -> None:
    """Behind a the first step is certain to rounding, so 0 ties with 2 and comes before it."""
    titles = [(1, 2, 0), (1, 3, 0), (4, 0)]
    logits = torch.tensor([0.0, 0.0, 200.0, 0.0])  # a as probable as d; b beats all else behind a
    model = Model(trie_of(titles), logits)
    assert model.everything()[0] == model.everything()[2]
    assert top_titles(model.trie, model, 1, at_once=1).titles.tolist() == [0]


@pytest.mark.parametrize("max_nodes", [0, 1, 5, 20])
def test_a_bound_is_an_error_or_said(max_nodes: int) -> None:
    titles = wide_catalogue(3000, seed=1)
    logps = made(titles, 2, ties=False).everything()
    model = made(titles, 2, ties=False)
    with pytest.raises(SettingsError, match=rf"^max_nodes: \d+ nodes .* more than {max_nodes} are needed"):
        top_titles(model.trie, model, 50, at_once=4, max_nodes=max_nodes)
    model = made(titles, 2, ties=False)
    found = top_titles(model.trie, model, 50, at_once=4, max_nodes=max_nodes, exact=False)
    assert not found.exact
    assert found.nodes == len(model.forwarded) <= max_nodes
    assert found.logps.tolist() == logps[found.titles].tolist()
    assert set(found.titles) != set(np.argsort(-logps)[:50])
    improbable = int(np.argsort(-logps)[900])
    cost = len(lay_out(model.trie, np.array([[improbable]])).nodes.token)
    with pytest.raises(SettingsError, match=r"^max_nodes: "):
        title_rank(model.trie, made(titles, 2, ties=False), improbable, max_nodes=cost + max_nodes)
    model = made(titles, 2, ties=False)
    rank = title_rank(model.trie, model, improbable, max_nodes=cost + max_nodes, exact=False)
    assert not rank.exact
    assert rank.rank < 901
    assert rank.nodes == len(model.forwarded) <= cost + max_nodes


def test_a_bound_that_is_enough_is_silent() -> None:
    model = hand_model()
    assert top_titles(model.trie, model, 3, max_nodes=2).exact
    model = hand_model()
    assert title_rank(model.trie, model, 0, max_nodes=2).exact


def test_a_bound_below_the_path_of_the_target() -> None:
    model = hand_model()
    with pytest.raises(SettingsError, match="max_nodes: got 1, which is less than the target's own path"):
        title_rank(model.trie, model, 0, max_nodes=1, exact=False)


def test_one_title_asks_nothing() -> None:
    model = made([(7, 8, 0)], 1, ties=False)
    found = top_titles(model.trie, model, 4)
    assert (found.titles.tolist(), found.logps.tolist(), found.nodes) == ([0], [0.0], 0)
    assert title_rank(model.trie, model, 0) == (1, 0.0, 0, True)
    assert top_titles(model.trie, model, 4, left_out=[0]).titles.tolist() == []
    assert model.calls == []


def test_a_logit_that_is_no_number() -> None:
    model = hand_model()
    model.logits[4] = torch.nan
    with pytest.raises(NumericsError, match="a logit is not finite"):
        top_titles(model.trie, model, 1)


def test_logits_of_another_shape() -> None:
    trie = trie_of(HAND)
    with pytest.raises(ValueError, match=r"child_logits: wanted \(3,\), got \(2,\)"):
        top_titles(trie, lambda numbers: torch.zeros(2), 1)
