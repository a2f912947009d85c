"""The trie of a catalogue: numbers by hand, then the oracle on random catalogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.title_trie.trie import Trie
from recbole_dynamicpo.title_trie.trie_builder import build_trie
from tests.helpers import trie_oracle as oracle
from tests.helpers.catalogues import END, TITLES, trie_of, wide_catalogue
from tests.helpers.trie_oracle import Title, golden_cases

# a b, c, a b d, a b (again), e f; 0 ends a title.
#
#   root -+- a=1 - b=2 -+- 0
#         |             +- d=4 - 0
#         +- c=3 - 0
#         +- e=5 - f=6 - 0
HAND = [(1, 2, 0), (3, 0), (1, 2, 4, 0), (1, 2, 0), (5, 6, 0)]


def check(titles: list[Title], trie: Trie) -> None:
    """Hold a trie against the oracle."""
    known = oracle.distinct(titles)
    nodes = [oracle.prefix(trie, node) for node in range(len(trie.parent))]
    assert nodes == sorted(oracle.prefixes(known))  # preorder is the order of prefixes
    assert trie.depth.tolist() == [len(node) for node in nodes]
    assert [nodes[leaf] for leaf in trie.leaf] == known
    assert [known[title] for title in trie.title_of_item] == titles
    for title, tokens in enumerate(known):
        assert trie.items(title).tolist() == [i for i, t in enumerate(titles) if t == tokens]

    assert [nodes[node] for node in trie.branching] == sorted(oracle.branching(known))
    for number, node in enumerate(trie.branching):
        edges = range(*trie.edge_start[number : number + 2])
        assert [trie.edge_from[edge] for edge in edges] == [number] * len(edges)
        below = [nodes[trie.edge_node[edge]] for edge in edges]
        assert below == [(*nodes[node], token) for token in oracle.children(known, nodes[node])]
    assert trie.edge_start[-1] == len(trie.edge_node)
    check_paths(known, trie, nodes)


def check_paths(known: list[Title], trie: Trie, nodes: list[Title]) -> None:
    """Hold the edges on each path, and where edges lead, against the oracle."""
    deciding = oracle.branching(known)
    for title, tokens in enumerate(known):
        wanted = [tokens[: n + 1] for n in range(len(tokens)) if tokens[:n] in deciding]
        owner, edges = trie.steps(np.array([title]))
        assert [nodes[trie.edge_node[edge]] for edge in edges] == wanted
        assert owner.tolist() == [0] * len(wanted)
        assert trie.decisions()[title] == len(wanted)
        assert [nodes[node] for node in trie.path(trie.leaf[title])] == [
            tokens[:n] for n in range(1, len(tokens) + 1)
        ]
    for edge, node in enumerate(trie.edge_node):
        place = nodes[node]
        while place not in deciding and place not in known:
            (token,) = oracle.children(known, place)
            place = (*place, token)
        assert trie.edge_to[edge] == (-1 if place in known else sorted(deciding).index(place))
        assert trie.edge_title[edge] == (known.index(place) if place in known else -1)


def test_by_hand() -> None:
    trie = trie_of(HAND)
    assert trie.token.tolist() == [-1, 1, 2, 0, 4, 0, 3, 0, 5, 6, 0]
    assert trie.parent.tolist() == [-1, 0, 1, 2, 2, 4, 0, 6, 0, 8, 9]
    assert trie.depth.tolist() == [0, 1, 2, 3, 3, 4, 1, 2, 1, 2, 3]
    assert trie.branching.tolist() == [0, 2]
    assert trie.edge_start.tolist() == [0, 3, 5]
    assert trie.edge_node.tolist() == [1, 6, 8, 3, 4]
    assert trie.branching_edge.tolist() == [-1, 0]
    assert trie.edge_to.tolist() == [1, -1, -1, -1, -1]
    assert trie.edge_title.tolist() == [-1, 1, 3, 0, 2]
    assert trie.leaf.tolist() == [3, 7, 5, 10]
    assert trie.num_titles == 4
    assert trie.title_of_item.tolist() == [0, 1, 2, 0, 3]
    assert [trie.items(title).tolist() for title in range(4)] == [[0, 3], [1], [2], [4]]
    assert trie.forward_nodes().tolist() == [1, 2]
    assert trie.forward_nodes(np.array([1, 3])).tolist() == []  # c and e f part at the root
    assert trie.forward_nodes(np.array([2])).tolist() == [1, 2]
    check(HAND, trie)


@settings(max_examples=60, deadline=None)
@given(TITLES)
def test_random_catalogues(titles: list[Title]) -> None:
    trie = trie_of(titles)
    check(titles, trie)
    known = oracle.distinct(titles)
    nodes = sorted(oracle.prefixes(known))
    for chosen in (None, np.arange(0, len(known), 2), np.array([len(known) - 1])):
        scored = known if chosen is None else [known[title] for title in chosen]
        found = trie.forward_nodes(chosen)
        assert [nodes[node] for node in found] == sorted(oracle.forward(known, scored))


def test_a_larger_catalogue() -> None:
    titles = wide_catalogue(300, seed=5)
    check(titles, trie_of(titles))


@pytest.mark.parametrize("titles", [[(7, 8, 0)], [(7, 0), (7, 0), (7, 0)]])
def test_one_title_needs_nothing(titles: list[Title]) -> None:
    trie = trie_of(titles)
    check(titles, trie)
    assert len(trie.branching) == len(trie.forward_nodes()) == 0
    assert trie.title_edge.tolist() == [-1]


def test_the_terminator_may_be_any_token() -> None:
    """A terminator in the middle of the vocabulary sorts between the others."""
    titles = [(1, 9, 5), (1, 5), (9, 5), (1, 2, 5), (1, 9, 1, 5)]
    check(titles, trie_of(titles, terminator=5))


def test_a_very_long_title_costs_no_matrix() -> None:
    """A dense array of 2,000 titles by the longest one would take 3 GB."""
    titles = [(1 + i % 40, 1 + i // 40, END) for i in range(2000)] + [(*([3] * 200_000), END)]
    trie = trie_of(titles)
    assert int(trie.depth.max()) == 200_001
    assert trie.forward_nodes().tolist() == trie.branching[1:].tolist()


def test_digest() -> None:
    """Of tokens, titles and their order."""
    base = {"titles": ["A B", "C"], "tokens": [[1, 2], [3]], "terminator": 0}
    others: list[dict[str, Any]] = [
        {"titles": ["A b", "C"]},
        {"titles": ["A B", "C"], "tokens": [[1, 4], [3]]},
        {"titles": ["C", "A B"], "tokens": [[3], [1, 2]]},
        {"titles": ["A BC", ""]},
        {"tokens": [[1], [2, 3]]},
        {"terminator": 9},
    ]
    digests = [build_trie(**{**base, **other}).digest for other in [{}, *others]]
    assert len(set(digests)) == len(digests)
    assert digests[0] == build_trie(["A B", "C"], (t for t in ([1, 2], (3,))), 0).digest
    assert len(digests[0]) == 64
    assert set(digests[0]) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("titles", "tokens", "message"),
    [
        ([], [], "catalogue: got no title"),
        (["A", " ", "C"], [[1], [], [3]], "item 1 of the catalogue: title ' ' has no tokens"),
        (["A", "B;C"], [[1], [2, 0, 3]], "item 1 of the catalogue: title 'B;C' holds the token 0"),
        (["A;", "B"], [[1, 0], [2]], "item 0 of the catalogue: title 'A;' holds the token 0"),
        (["e\u0301", "B", "\u00e9"], [[1], [2], [1]], "items 0 and 2 of the catalogue: titles 'e\u0301' and"),
    ],
)
def test_what_cannot_be_a_catalogue(titles: list[str], tokens: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        build_trie(titles, tokens, 0)


def test_as_many_tokens_as_titles() -> None:
    with pytest.raises(ValueError, match="wanted those of 2 titles, got 1"):
        build_trie(["A", "B"], [[1]], 0)


if golden_cases():  # worked cases of one's own, named by an environment variable

    @pytest.mark.parametrize("case", golden_cases())
    def test_golden_tries(case: dict[str, Any]) -> None:
        titles = [tuple(title) for title in case["titles"]]
        trie = trie_of(titles)
        assert [oracle.prefix(trie, leaf) for leaf in trie.leaf] == [tuple(t) for t in case["distinct"]]
        for nodes, wanted in ((trie.branching, "branching"), (trie.forward_nodes(), "forward")):
            found = [" ".join(map(str, oracle.prefix(trie, int(node)))) for node in nodes]
            assert sorted(found) == sorted(case[wanted])
