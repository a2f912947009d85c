"""Token trees: a row of tokens in preorder, each of which sees those above it, and itself.

A prompt is a chain. What may come next branches off it, perhaps in the middle; a branch sees the chain up to
there and itself, never another branch, and its positions go on from where it hangs. So one pass scores what
would take as many sequences as the tree has leaves. Where a model cannot do that, they are taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .decoder import ONE, as_taken, decoder_of
from .packed import on_device


class TreeBatch(NamedTuple):
    """Rows of token trees in preorder: a token's descendants follow it without a gap."""

    input_ids: Tensor  # (B, T) int64, padding 0
    position_ids: Tensor  # (B, T) int64: tokens above
    end: Tensor  # (B, T) int64: first place behind a token's descendants; of padding the next place
    length: Tensor  # (B,) int64: tokens without padding, which may stand anywhere
    read: Tensor  # (S,) int64: flat (B * T) places whose hidden states are wanted

    def tokens(self) -> int:
        """Return the tokens without padding; the batch lies on the CPU, where it was made."""
        return int(self.length.sum())

    def padded_tokens(self) -> int:
        """Return B * T."""
        return self.input_ids.numel()


class TreeStates(NamedTuple):
    """What the decoder says at the places read."""

    states: Tensor  # (S, D)
    kind: Any  # of the decoder's output, which a head of the model's own asks for


def tree_mask(query: Tensor, key: Tensor, end: Tensor) -> Tensor:
    """Return (..., Tq, Tk) bool: is the key at or above the query in the tree?

    Args:
        query: (..., Tq) places of the queries in a sequence in preorder.
        key: (..., Tk) places of the keys.
        end: (..., Tk) first place behind each key's descendants. A prompt token's is the end of the
            sequence without padding; padding's is the next place, so that it sees itself alone.
    """
    place = query[..., :, None]
    return (key[..., None, :] <= place) & (place < end[..., None, :])


def shared_states(model: Any, batch: TreeBatch, *, form: str = ONE) -> TreeStates:
    """Return the hidden states of one pass over whole trees.

    Args:
        model: a Hugging Face causal language model whose decoder takes a 4-D mask.
        batch: on any device.
        form: of the mask; see ``decoder.mask_forms``.
    """
    batch = on_device(batch, model.get_output_embeddings().weight.device)
    place = torch.arange(batch.input_ids.shape[1], device=batch.end.device)
    mask = tree_mask(place, place, batch.end)[:, None]
    output = decoder_of(model)(
        input_ids=batch.input_ids,
        attention_mask=as_taken(model, mask, batch.position_ids, form=form),
        position_ids=batch.position_ids,
        use_cache=False,
    )
    return TreeStates(output.last_hidden_state.flatten(0, 1)[batch.read], type(output))


def separate_states(model: Any, batch: TreeBatch, most_tokens: int | None = None) -> TreeStates:
    """Return what ``shared_states`` returns, from an ordinary sequence for each leaf that is needed.

    Right for any causal language model, at the cost of repeating what leaves share.

    Args:
        model: a Hugging Face causal language model.
        batch: on the CPU.
        most_tokens: padded tokens that pass the decoder at once, though never less than one sequence; the
            backward pass computes such parts again. None: all.
    """
    device = model.get_output_embeddings().weight.device
    rows, places, state_of = _leaves(batch)
    above = tree_mask(places[:, None], torch.arange(batch.end.shape[1]), batch.end[rows])[:, 0]
    order = (~above).int().argsort(dim=1, stable=True)[:, : int(above.sum(dim=1).max())]
    ids, present = batch.input_ids[rows].gather(1, order), above.gather(1, order).long()
    kinds: list[Any] = []

    def run(ids: Tensor, present: Tensor) -> Tensor:
        output = decoder_of(model)(input_ids=ids, attention_mask=present, use_cache=False)
        kinds.append(type(output))
        states: Tensor = output.last_hidden_state
        return states

    at_once = len(ids) if most_tokens is None else max(1, most_tokens // ids.shape[1])
    depth = batch.position_ids.flatten()[batch.read]
    ids, present, state_of, depth = on_device((ids, present, state_of, depth), device)
    parts = list(zip(ids.split(at_once), present.split(at_once), strict=True))
    again = len(parts) > 1 and torch.is_grad_enabled()
    found = [checkpoint(run, *part, use_reentrant=False) if again else run(*part) for part in parts]
    return TreeStates(torch.cat(found)[state_of, depth], kinds[0])


def _leaves(batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (n,) rows and (n,) places of what ends a sequence, and (S,) in which of them each state lies.

    What is read ends a sequence where nothing else that is read lies below it.
    """
    width = batch.end.shape[1]
    flat = torch.arange(batch.end.numel()) // width * width
    end = batch.end.flatten() + flat
    reads = batch.read.unique()  # in preorder
    following = torch.cat([reads[1:], end.new_full((1,), batch.end.numel())])
    chosen = reads[following >= end[reads]]
    return chosen // width, chosen % width, torch.searchsorted(chosen, batch.read)


class KeptKeys:
    """One history's keys and values, so that each token of its tree passes the model once.

    Args:
        model: a Hugging Face causal language model whose decoder takes a 4-D mask and a cache.
        form: of the mask; see ``decoder.mask_forms``.
    """

    def __init__(self, model: Any, *, form: str = ONE) -> None:
        from transformers import DynamicCache

        self.model = model
        self.form = form
        self.positions = torch.zeros(0, dtype=torch.int64)  # of the kept tokens
        self.cache = DynamicCache()  # plain layers: what a window would drop is hidden by the mask
        self.kept = 0
        self.forwarded = 0

    def forward(self, ids: Tensor, positions: Tensor, visible: Tensor) -> TreeStates:
        """Return the (N, D) states of new tokens, whose keys and values are kept too.

        Args:
            ids: (N,) int64.
            positions: (N,) int64.
            visible: (N, kept + N) bool: which tokens each sees, in the order in which they came.
        """
        device = self.model.get_output_embeddings().weight.device
        self.positions = torch.cat([self.positions, positions])
        ids, visible, query, key = on_device(
            (ids[None], visible[None, None], positions[None], self.positions[None]), device
        )
        output = decoder_of(self.model)(
            input_ids=ids,
            attention_mask=as_taken(self.model, visible, query, key, form=self.form),
            position_ids=query,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.kept += len(positions)
        self.forwarded += len(positions)
        return TreeStates(output.last_hidden_state[0], type(output))

    def keep(self, chosen: Tensor) -> None:
        """Forget all tokens but (n,) ``chosen`` ones."""
        layers: list[Any] = self.cache.layers
        place = on_device(chosen, self.model.get_output_embeddings().weight.device)
        for layer in layers:
            layer.keys, layer.values = layer.keys.index_select(2, place), layer.values.index_select(2, place)
        self.positions = self.positions[chosen]
        self.kept = len(chosen)
