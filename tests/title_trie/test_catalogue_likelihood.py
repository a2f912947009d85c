"""The catalogue likelihood: numbers by hand, worked cases, and every way of driving it against the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dynamicpo.title_trie import title_layout
from recbole_dynamicpo.title_trie.catalogue_likelihood import (
    Mixture,
    catalogue_logps,
    child_products,
    edge_logits,
    segment_log_softmax,
)
from recbole_dynamicpo.title_trie.prior import edge_masses, history_prior
from recbole_dynamicpo.title_trie.title_layout import Layout, child_edges, lay_out
from recbole_dynamicpo.title_trie.trie import Trie
from tests.helpers import trie_oracle as oracle
from tests.helpers.catalogues import TITLES, trie_of, wide_catalogue
from tests.helpers.trie_oracle import Title, golden_cases

WIDTH, VOCABULARY = 6, 64
NONE = np.zeros(0, np.int64)


def whole(trie: Trie) -> Layout:
    return lay_out(trie, np.arange(trie.num_titles)[None])


def world(seed: int, rows: int, trie: Trie) -> tuple[Tensor, Tensor]:
    """Return (rows, M, D) hidden states at every node and a (V, D) output layer."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, len(trie.parent), WIDTH, generator=draw, dtype=torch.float64)
    return states, torch.randn(VOCABULARY, WIDTH, generator=draw, dtype=torch.float64)


def read(states: Tensor, trie: Trie, layout: Layout) -> Tensor:
    """Return (S, D) the states that a layout reads, each query from a row of its own."""
    nodes = torch.from_numpy(trie.branching)[layout.edges.branching]
    return states[layout.edges.query, nodes]


def oracle_logps(titles: list[Title], states: Tensor, weight: Tensor, trie: Trie) -> list[float]:
    """Return each title's log-probability under the (M, D) states of one row."""
    place = {oracle.prefix(trie, node): node for node in range(len(trie.parent))}
    logits = (states @ weight.T).tolist()
    return [oracle.logp(titles, title, lambda node, token: logits[place[node]][token]) for title in titles]


def test_by_hand() -> None:
    """Titles a, a b and c; the root decides 3 : 1 for a, and a decides 4 : 1 for its end.

    P(a) = 3/4 * 4/5, P(a b) = 3/4 * 1/5, P(c) = 1/4. What follows the last decision is certain.
    """
    trie = trie_of([(1, 0), (1, 2, 7, 7, 0), (3, 9, 0)])
    logits = torch.tensor([3.0, 1.0, 4.0, 1.0]).log()  # a, c; end, b
    logps = catalogue_logps(logits, whole(trie))
    assert logps.exp().tolist() == [[pytest.approx(0.6), pytest.approx(0.15), pytest.approx(0.25)]]


def test_logits_by_hand() -> None:
    """s (h.W - c) + a_1 r_1 + a_2 r_2 = 2 (3 - 1) + 0.5 * 4 - 10 = -4, and 2 (5 - 2) + 0.5 * 6 = 9."""
    ratios = torch.tensor([[4.0, 6.0], [-1.0, 0.0]], dtype=torch.float64)
    mixture = Mixture(2.0, [0.5, 10.0], centre=torch.tensor([7.0, 1.0, 2.0]))
    found = mixture.logits(torch.tensor([3.0, 5.0]), ratios, edge=torch.tensor([1, 2]))
    assert found.tolist() == [-4.0, 9.0]
    plain = edge_logits(torch.tensor([2.0, 3.0]), torch.tensor(2.0), torch.tensor([0.5, 10.0]), ratios)
    assert plain.tolist() == found.tolist()
    assert found.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(TITLES, st.integers(0, 2**31))
def test_all_titles_equal_the_oracle_and_sum_to_one(titles: list[Title], seed: int) -> None:
    trie, known = trie_of(titles), oracle.distinct(titles)
    states, weight = world(seed, 2, trie)
    layout = whole(trie)
    nodes = torch.from_numpy(trie.branching)[layout.edges.branching]
    logps = catalogue_logps(child_products(states[:, nodes], weight, layout.edges), layout)
    assert logps.shape == (2, 1, len(known))
    for row in range(2):
        wanted = oracle_logps(known, states[row], weight, trie)
        assert logps[row, 0].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert logps.exp().sum(dim=2).flatten().tolist() == pytest.approx([1.0, 1.0], rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(TITLES, st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_chosen_titles_equal_the_oracle(
    titles: list[Title], queries: int, candidates: int, seed: int
) -> None:
    """With each query's own states; absent ones are 0."""
    trie, known = trie_of(titles), oracle.distinct(titles)
    states, weight = world(seed, queries, trie)
    chosen = np.random.default_rng(seed).integers(-1, len(known), size=(queries, candidates))
    layout = lay_out(trie, chosen)
    logps = catalogue_logps(child_products(read(states, trie, layout), weight, layout.edges), layout)
    for query, row in enumerate(chosen):
        everything = oracle_logps(known, states[query], weight, trie)
        wanted = [everything[title] if title >= 0 else 0.0 for title in row]
        assert logps[query].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("least", [1, 20, 10**9])
def test_products_do_not_depend_on_the_grouping(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All by matrix products, some, none: values and gradients, against the plain way."""
    monkeypatch.setattr(title_layout, "GROUP_LOGITS", least)
    trie = trie_of(wide_catalogue(200, seed=1))
    chosen = np.random.default_rng(2).integers(0, trie.num_titles, size=(9, 4))
    layout = lay_out(trie, chosen)
    assert (len(layout.edges.products.groups) > 1) == (least < 100)
    assert (len(layout.edges.products.single) > 0) == (least > 1)
    states, weight = world(3, 9, trie)
    mine = read(states, trie, layout).requires_grad_()
    plain = mine.detach().clone().requires_grad_()
    found = child_products(mine, weight, layout.edges)
    wanted = (plain @ weight.T)[layout.edges.source, layout.edges.token]
    torch.testing.assert_close(found, wanted)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (found * slope).sum().backward()
    (wanted * slope).sum().backward()
    torch.testing.assert_close(mine.grad, plain.grad)


def test_chunks_of_states_give_the_same_logits() -> None:
    """The edges of a run of states are a run of the layout's edges."""
    trie = trie_of(wide_catalogue(200, seed=5))
    layout = whole(trie)
    states, weight = world(6, 1, trie)
    mine = states[0, torch.from_numpy(trie.branching)]
    parts = []
    for run in np.split(np.arange(len(mine)), [1, 7, 30]):
        edges = child_edges(trie, layout.edges.query.numpy()[run], layout.edges.branching.numpy()[run])
        parts.append(child_products(mine[run], weight, edges))
    torch.testing.assert_close(torch.cat(parts), child_products(mine, weight, layout.edges))


def test_low_precision_states_are_widened() -> None:
    trie = trie_of([(1, 0), (2, 0)])
    edges = whole(trie).edges
    states = torch.ones(1, 512, dtype=torch.bfloat16)
    weight = torch.full((3, 512), 1.0, dtype=torch.bfloat16)
    weight[:, 0] = 2.0
    found = child_products(states, weight, edges)
    assert found.dtype == torch.float32
    assert found.tolist() == [513.0, 513.0]  # 512 in bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_never_above_zero(dtype: torch.dtype) -> None:
    """Whatever the magnitude; a prefix must bound the titles below it."""
    draw = torch.Generator().manual_seed(7)
    source = torch.arange(200).repeat_interleave(5)
    for size in (1e-3, 1.0, 30.0, 1e4, 1e30):
        logits = size * torch.randn(1000, generator=draw, dtype=dtype)
        found = segment_log_softmax(logits, source, 200)
        assert torch.isfinite(found).all()
        assert (found <= 0).all()
        torch.testing.assert_close(found.view(200, 5), logits.view(200, 5).log_softmax(dim=1))


def test_gradients() -> None:
    """With respect to hidden states, s and the weights of the priors."""
    trie = trie_of(wide_catalogue(12, seed=8, vocabulary=5))
    chosen = np.array([[0, 3, -1], [2, 2, 5]])
    layout = lay_out(trie, chosen)
    states, weight = world(9, 2, trie)
    draw = np.random.default_rng(10)
    ratios = []
    for _ in range(2):
        masses = edge_masses(trie, draw.random(trie.num_titles) + 0.01)
        prior = history_prior(trie, masses, np.ones(2), NONE, NONE, np.zeros(0))
        ratios.append(prior.log_ratios(layout.edges, layout.edges.query[layout.edges.source].numpy()))
    centre = torch.randn(len(layout.edges.edge), generator=torch.Generator().manual_seed(1)).double()

    def logps(states: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        products = child_products(states, weight, layout.edges)
        return catalogue_logps(edge_logits(products - centre, scale, weights, torch.stack(ratios)), layout)

    inputs = (read(states, trie, layout), torch.tensor(0.7).double(), torch.tensor([1.2, -0.3]).double())
    assert torch.autograd.gradcheck(logps, tuple(value.requires_grad_() for value in inputs))


if golden_cases():  # worked cases of one's own, named by an environment variable

    @pytest.mark.parametrize("case", golden_cases())
    def test_golden_logps(case: dict[str, Any]) -> None:
        """Both the package and the oracle agree with the worked cases."""
        known = [tuple(title) for title in case["distinct"]]
        trie = trie_of([tuple(title) for title in case["titles"]])

        def lookup(name: str, node: Title, token: int) -> float:
            row = case[name].get(" ".join(map(str, node)))
            return 0.0 if row is None and not case[name] else row[token]

        options = {"scale": case["scale"], "priors": case["priors"], "weights": case["weights"]}
        logit, centre = (lambda n, t, name=name: lookup(name, n, t) for name in ("logits", "centre"))
        oracles = [oracle.logp(known, title, logit, centre=centre, **options) for title in known]
        assert oracles == pytest.approx(case["logps"], rel=1e-9, abs=1e-12)

        layout = whole(trie)
        ratios = [
            history_prior(
                trie, edge_masses(trie, np.array(p0)), np.ones(1), NONE, NONE, np.zeros(0)
            ).log_ratios(layout.edges, np.zeros(1, np.int64))
            for p0 in case["priors"].values()
        ]
        own = torch.from_numpy(oracle.edge_values(trie, logit))
        if case["centre"]:
            own -= torch.from_numpy(oracle.edge_values(trie, centre))
        logits = edge_logits(
            own,
            torch.tensor(case["scale"], dtype=torch.float64),
            torch.tensor([case["weights"][name] for name in case["priors"]], dtype=torch.float64),
            torch.stack(ratios) if ratios else torch.zeros(0, dtype=torch.float64),
        )
        logps = catalogue_logps(logits, layout)[0]
        assert logps.tolist() == pytest.approx(case["logps"], rel=1e-9, abs=1e-12)
        assert math.fsum(logps.exp().tolist()) == pytest.approx(1.0, rel=1e-9)
