"""What is forwarded and read for chosen titles: numbers by hand, then the oracle on random catalogues."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.language_model.tree import tree_mask
from recbole_dynamicpo.title_trie import title_layout
from recbole_dynamicpo.title_trie.title_layout import Layout, lay_out
from recbole_dynamicpo.title_trie.trie import Trie
from tests.helpers import trie_oracle as oracle
from tests.helpers.catalogues import TITLES, trie_of, wide_catalogue
from tests.helpers.trie_oracle import Title

# As in test_trie: titles 0 a b, 1 c, 2 a b d, 3 e f; branching: the root (a, c, e) and a b (end, d).
HAND = [(1, 2, 0), (3, 0), (1, 2, 4, 0), (5, 6, 0)]


def check(titles: list[Title], trie: Trie, chosen: np.ndarray, layout: Layout) -> None:
    """Hold the layout of (Q, C) titles against the oracle, query by query."""
    known = oracle.distinct(titles)
    nodes, edges, steps = layout.nodes, layout.edges, layout.steps
    deciding = oracle.branching(known)
    places = list(
        zip(nodes.query.tolist(), (oracle.prefix(trie, n) for n in nodes.node.tolist()), strict=True)
    )
    scored = [[known[title] for title in row if title >= 0] for row in chosen]
    assert places == [(q, n) for q, row in enumerate(scored) for n in sorted(oracle.forward(known, row))]
    assert nodes.token.tolist() == [node[-1] for _, node in places]
    assert nodes.depth.tolist() == [len(node) for _, node in places]
    for i, (q, node) in enumerate(places):
        assert nodes.parent[i] == (places.index((q, node[:-1])) if len(node) > 1 else -1)
        assert nodes.end[i] == i + sum((p == q) and n[: len(node)] == node for p, n in places)
        on_path = [c for c, t in enumerate(chosen[q]) if t >= 0 and known[t][: len(node)] == node]
        assert nodes.candidate[i] == on_path[0]

    states = [
        (q, oracle.prefix(trie, trie.branching[b])) for q, b in zip(edges.query, edges.branching, strict=True)
    ]
    read = [{t[:n] for t in row for n in range(len(t))} & deciding for row in scored]
    assert states == [(q, node) for q, found in enumerate(read) for node in sorted(found)]
    assert layout.source.tolist() == [places.index(state) if state[1] else -1 for state in states]
    tokens = [oracle.children(known, node) for _, node in states]
    assert edges.token.tolist() == [token for row in tokens for token in row]
    assert edges.source.tolist() == [s for s, row in enumerate(tokens) for _ in row]
    assert edges.start.tolist() == [0, *np.cumsum([len(row) for row in tokens]).tolist()]
    ends = [oracle.prefix(trie, n) for n in trie.edge_node[edges.edge.numpy()]]
    assert ends == [(*states[s][1], t) for s, t in zip(edges.source, edges.token.tolist(), strict=True)]

    found: dict[int, list[tuple[int, Title]]] = {}
    for edge, flat in zip(steps.edge.tolist(), steps.title.tolist(), strict=True):
        found.setdefault(flat, []).append((states[edges.source[edge]][0], ends[edge]))
    for flat, title in enumerate(chosen.ravel()):
        path = known[title] if title >= 0 else ()
        wanted = [path[: n + 1] for n in range(len(path)) if path[:n] in deciding]
        assert found.get(flat, []) == [(flat // chosen.shape[1], end) for end in wanted]


def test_by_hand() -> None:
    """Two queries: b's continuation against c; an absent one beside e, which the root decides."""
    trie = trie_of(HAND)
    layout = lay_out(trie, np.array([[1, 2], [-1, 3]]))
    assert layout.nodes.query.tolist() == [0, 0]
    assert layout.nodes.token.tolist() == [1, 2]
    assert layout.nodes.depth.tolist() == [1, 2]
    assert layout.nodes.parent.tolist() == [-1, 0]
    assert layout.nodes.end.tolist() == [2, 2]
    assert layout.nodes.candidate.tolist() == [1, 1]
    assert layout.source.tolist() == [-1, 1, -1]
    assert layout.edges.query.tolist() == [0, 0, 1]
    assert layout.edges.token.tolist() == [1, 3, 5, 0, 4, 1, 3, 5]
    assert layout.edges.source.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    # c; a and then d; e.
    assert sorted(zip(layout.steps.title.tolist(), layout.steps.edge.tolist(), strict=True)) == [
        (0, 1), (1, 0), (1, 4), (3, 7),
    ]  # fmt: skip
    check(HAND, trie, np.array([[1, 2], [-1, 3]]), layout)


@settings(max_examples=50, deadline=None)
@given(TITLES, st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_random_titles(titles: list[Title], queries: int, candidates: int, seed: int) -> None:
    trie = trie_of(titles)
    chosen = np.random.default_rng(seed).integers(-1, trie.num_titles, size=(queries, candidates))
    check(titles, trie, chosen, lay_out(trie, chosen))


@settings(max_examples=20, deadline=None)
@given(TITLES)
def test_all_titles(titles: list[Title]) -> None:
    trie = trie_of(titles)
    chosen = np.arange(trie.num_titles)[None]
    layout = lay_out(trie, chosen)
    check(titles, trie, chosen, layout)
    assert layout.nodes.node.tolist() == trie.forward_nodes().tolist()
    assert layout.edges.edge.tolist() == list(range(len(trie.edge_node)))


def test_groups_and_single_edges_are_all_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(title_layout, "GROUP_LOGITS", 20)
    trie = trie_of(wide_catalogue(200, seed=1))
    chosen = np.random.default_rng(2).integers(0, trie.num_titles, size=(9, 4))
    edges = lay_out(trie, chosen).edges
    assert len(edges.products.groups) >= 2
    assert 0 < len(edges.products.single) < len(edges.edge)
    order: list[int] = []
    for states, tokens in edges.products.groups:
        assert len(states) * len(tokens) >= 20
        assert len(set(edges.branching[states].tolist())) == 1
        for state in states.tolist():
            mine = range(int(edges.start[state]), int(edges.start[state + 1]))
            assert edges.token[mine].tolist() == tokens.tolist()
            order.extend(mine)
    order.extend(edges.products.single.tolist())
    assert [order[place] for place in edges.products.place.tolist()] == list(range(len(edges.edge)))
    sizes = Counter(edges.branching[edges.source[edges.products.single]].tolist())
    assert max(sizes.values()) < 20


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_chunks_forward_each_node_once_behind_all_above_it(limit: int) -> None:
    trie = trie_of(wide_catalogue(200, seed=3, vocabulary=6))
    nodes = lay_out(trie, np.arange(trie.num_titles)[None]).nodes
    count = len(nodes.token)
    chunks = nodes.chunks(limit)
    assert [n for c in chunks for n in range(c.start, c.stop)] == list(range(count))
    assert max(c.stop - c.start for c in chunks) == min(limit, count)
    for chunk in chunks:
        carried = chunk.carried.tolist()
        assert carried == sorted(carried)
        assert len(carried) <= int(nodes.depth.max())
        at_hand = {-1, *carried}
        for node in range(chunk.start, chunk.stop):
            assert int(nodes.parent[node]) in at_hand
            at_hand.add(node)


def test_the_mask_of_a_chunk_is_the_tree() -> None:
    """Of a prompt of 3 tokens, carried nodes and the chunk's own, against ancestors by walking."""
    trie = trie_of(wide_catalogue(60, seed=4, vocabulary=5))
    nodes = lay_out(trie, np.arange(trie.num_titles)[None]).nodes
    prompt, count = 3, len(nodes.token)
    end = torch.cat([torch.full((prompt,), prompt + count), prompt + nodes.end])
    for chunk in nodes.chunks(10):
        own = torch.arange(chunk.start, chunk.stop)
        key = torch.cat([torch.arange(prompt), prompt + chunk.carried, prompt + own])
        found = tree_mask(prompt + own, key, end[key])
        for query, row in zip(own.tolist(), found.tolist(), strict=True):
            above = [0, 1, 2, *(prompt + n for n in _walk(nodes.parent.tolist(), query))]
            assert [k for k, sees in zip(key.tolist(), row, strict=True) if sees] == sorted(above)


def _walk(parent: list[int], node: int) -> list[int]:
    return [] if node < 0 else [node, *_walk(parent, parent[node])]


def test_mask_with_padding_by_hand() -> None:
    """Two rows: prompt p q, node a with its child b, node c; and prompt p, node a, then padding."""
    end = torch.tensor([[5, 5, 4, 4, 5], [2, 2, 3, 4, 5]])
    place = torch.arange(5).expand(2, 5)
    wanted = [
        ["1....", "11...", "111..", "1111.", "11..1"],
        ["1....", "11...", "..1..", "...1.", "....1"],
    ]
    found = tree_mask(place, place, end).tolist()
    assert [["".join(".1"[cell] for cell in query) for query in row] for row in found] == wanted


def test_nothing_to_decide() -> None:
    layout = lay_out(trie_of([(7, 0)]), np.array([[0, 0]]))
    assert (
        len(layout.nodes.token) == len(layout.source) == len(layout.edges.edge) == len(layout.steps.edge) == 0
    )
    assert layout.nodes.chunks(5) == []
    assert (layout.steps.queries, layout.steps.candidates) == (1, 2)
