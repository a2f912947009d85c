"""Random catalogues for hypothesis: few tokens, so that titles repeat, share prefixes and are short."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from recbole_dynamicpo.title_trie.trie import Trie
from recbole_dynamicpo.title_trie.trie_builder import build_trie
from tests.helpers.trie_oracle import Title

END = 0

TITLES = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=5).map(lambda tokens: (*tokens, END)),
    min_size=1,
    max_size=25,
)


def trie_of(titles: Sequence[Title], terminator: int = END) -> Trie:
    """Return the trie of titles that end in the terminator; a title's text is its tokens'."""
    return build_trie([str(title) for title in titles], (title[:-1] for title in titles), terminator)


def wide_catalogue(count: int, seed: int, vocabulary: int = 50) -> list[Title]:
    """Return titles of 1 to 6 tokens, the first ones drawn unevenly, so that the root has many children."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 7, size=count)
    return [
        (*(1 + int((vocabulary - 1) * draw.random() ** 2) for _ in range(length)), END) for length in lengths
    ]
