"""Transformers' own beam search, held to a trie of titles: what exact ranking is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recbole_dynamicpo.title_trie.trie import Trie


def allowed(trie: Trie) -> dict[tuple[int, ...], list[int]]:
    """Return the tokens that may follow each prefix of a title."""
    prefix: list[tuple[int, ...]] = [()]
    following: dict[tuple[int, ...], list[int]] = {}
    for node in range(1, len(trie.parent)):
        above = prefix[trie.parent[node]]
        prefix.append((*above, int(trie.token[node])))
        following.setdefault(above, []).append(int(trie.token[node]))
    return following


@torch.no_grad()
def beam_titles(model: Any, trie: Trie, prompt: Sequence[int], following: Any, beams: int) -> set[int]:
    """Return the distinct titles that transformers' beam search finds behind one prompt."""
    length, device = len(prompt), model.get_output_embeddings().weight.device
    end = trie.terminator
    longest = int(trie.depth.max())
    found = model.generate(
        input_ids=torch.tensor([prompt], device=device),
        attention_mask=torch.ones(1, length, dtype=torch.int64, device=device),
        num_beams=beams, num_return_sequences=beams, do_sample=False, max_new_tokens=longest,
        eos_token_id=end, pad_token_id=end, length_penalty=0.0,
        prefix_allowed_tokens_fn=lambda _, ids: following.get(tuple(ids[length:].tolist()), [end]),
    )  # fmt: skip
    leaves = {tuple(trie.token[trie.path(int(leaf))].tolist()): title for title, leaf in enumerate(trie.leaf)}
    written = []
    for line in found[:, length:].tolist():
        cut = line.index(end) + 1 if end in line else len(line)
        written.append(leaves.get(tuple(line[:cut])))
    return {title for title in written if title is not None}
