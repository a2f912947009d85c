"""Rows as the language model takes them: token ids row by row, then each row as one sequence.

Shape letters everywhere: B rows, K negatives, C candidates (the positive and the negatives), P
prompt tokens, L completion tokens, T tokens of a packed row, V vocabulary entries, N predicted
tokens of a batch. Log-probabilities are in nats and summed over a completion's tokens,
end-of-sequence included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Layout = TypeVar("Layout")


def on_device(laid_out: Layout, device: torch.device) -> Layout:
    """Return a tensor, or tuples of tensors however deep, on a device; what is no tensor stays.

    Lay everything out on the CPU and bring it over by this alone: a GPU gets one copy a dtype, from pinned
    memory, which the host does not wait for.
    """
    moved: Layout = _rebuilt(laid_out, iter(_moved(list(_tensors(laid_out)), device)))
    return moved


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return _in_one_copy(tensors, device, pinned=True)


def _in_one_copy(tensors: list[Tensor], device: torch.device, *, pinned: bool) -> list[Tensor]:
    """Return the tensors on the device, those of one dtype that lie on the CPU as views of one buffer."""
    found = list(tensors)
    places: dict[torch.dtype, list[int]] = {}
    for at, tensor in enumerate(tensors):
        if tensor.device.type == "cpu":
            places.setdefault(tensor.dtype, []).append(at)
    for dtype, here in places.items():
        sizes = [found[at].numel() for at in here]
        buffer = torch.empty(sum(sizes), dtype=dtype, pin_memory=pinned)
        torch.cat([found[at].detach().flatten() for at in here], out=buffer)
        parts = buffer.to(device, non_blocking=True).split(sizes)
        for at, part in zip(here, parts, strict=True):
            found[at] = part.view(found[at].shape)
    return found


class Sent:
    """A tensor on its way back to the host, which waits for it where it is read and nowhere else."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived = _sent(tensor.detach())

    def read(self) -> Tensor:
        """Return it on the host."""
        return self._arrived()


def _sent(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to bring a tensor to the host; return who waits for it."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def arrived() -> Tensor:
        done.synchronize()
        return there

    return arrived


class Moment:
    """When a device comes to what it is told next; on a CPU that is now."""

    def __init__(self, device: torch.device) -> None:
        self._now = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()

    def seconds_since(self, earlier: Moment) -> float:
        """Return the seconds from an earlier moment of the same device, both over."""
        if self._event is None or earlier._event is None:
            return self._now - earlier._now
        return float(earlier._event.elapsed_time(self._event)) / 1e3


def _tensors(laid_out: Any) -> Iterator[Tensor]:
    if isinstance(laid_out, Tensor):
        yield laid_out
    elif isinstance(laid_out, tuple):
        for part in laid_out:
            yield from _tensors(part)


def _rebuilt(laid_out: Any, moved: Iterator[Tensor]) -> Any:
    if isinstance(laid_out, Tensor):
        return next(moved)
    if not isinstance(laid_out, tuple):
        return laid_out
    parts = [_rebuilt(part, moved) for part in laid_out]
    return type(laid_out)(*parts) if hasattr(laid_out, "_fields") else tuple(parts)


class TokenBatch(NamedTuple):
    """Rows as token ids: one prompt each and its C completions, padded on the right with 0.

    A completion is a title with its leading space, then the end-of-sequence token.
    """

    prompt: Tensor  # (B, P) int64
    prompt_length: Tensor  # (B,) int64, at least 1
    completions: Tensor  # (B, C, L) int64
    completion_length: Tensor  # (B, C) int64; 0 marks an absent candidate

    def tokens(self) -> int:
        """Return the tokens in the batch without padding; it lies on the CPU, where it was made."""
        return int(self.prompt_length.sum() + self.completion_length.sum())

    def padded_tokens(self) -> int:
        """Return the tokens of the packed batch, padding included."""
        widest = (self.prompt_length + self.completion_length.sum(dim=1)).max()
        return int(widest) * len(self.prompt_length)


class PackedBatch(NamedTuple):
    """Each row as one sequence: the prompt, then the inputs of every completion, then padding."""

    input_ids: Tensor  # (B, T) int64
    position_ids: Tensor  # (B, T) int64; every completion restarts after the prompt
    segment: Tensor  # (B, T) int64: 0 prompt, 1 + c completion c, -1 padding
    sources: Tensor  # (U,) int64: flat (B * T) positions whose output predicts something
    source_of: Tensor  # (N,) int64: index into ``sources`` of each predicted token
    targets: Tensor  # (N,) int64: the predicted tokens
    owner: Tensor  # (N,) int64: flat (B * C) completion of each predicted token


class SequenceBatch(NamedTuple):
    """Each completion behind a copy of its prompt, padded on the right; S present completions."""

    input_ids: Tensor  # (S, T) int64
    present: Tensor  # (S, T) int64: 1 where there is no padding
    sources: Tensor  # (N,) int64: flat (S * T) positions whose output predicts a token, ascending
    targets: Tensor  # (N,) int64: the predicted tokens
    row: Tensor  # (N,) int64: sequence of each

    def split(self, rows: int) -> tuple[SequenceBatch, ...]:
        """Return parts of at most so many sequences; runs on the CPU."""
        width = self.input_ids.shape[1]
        found = []
        for start in range(0, len(self.input_ids), rows):
            here = (self.row >= start) & (self.row < start + rows)
            found.append(
                SequenceBatch(
                    self.input_ids[start : start + rows],
                    self.present[start : start + rows],
                    self.sources[here] - start * width,
                    self.targets[here],
                    self.row[here] - start,
                )
            )
        return tuple(found)


def pack(batch: TokenBatch) -> PackedBatch:
    """Lay out each row as prompt, completion inputs, padding; runs where the batch lies."""
    rows, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    step = torch.arange(length, device=device)
    is_input = step[:-1] + 1 < batch.completion_length[:, :, None]  # the last token is never an input
    in_prompt = torch.arange(width, device=device) < batch.prompt_length[:, None]
    present = torch.cat([in_prompt, is_input.flatten(1)], dim=1)
    order = (~present).int().argsort(dim=1, stable=True)[:, : int(present.sum(dim=1).max())]

    tokens = torch.cat([batch.prompt, batch.completions[:, :, :-1].flatten(1)], dim=1)
    places = batch.prompt_length[:, None, None] + step[:-1].expand(rows, count, -1)
    positions = torch.cat([torch.arange(width, device=device).expand(rows, -1), places.flatten(1)], dim=1)
    numbers = torch.arange(1, count + 1, device=device)[:, None].expand(rows, -1, length - 1)
    segments = torch.cat([torch.zeros_like(batch.prompt), numbers.flatten(1)], dim=1)
    segments = segments.masked_fill(~present, -1)
    sources, source_of, targets, owner = _predictions(batch, present, order.shape[1])
    return PackedBatch(
        tokens.gather(1, order),
        positions.gather(1, order),
        segments.gather(1, order),
        sources,
        source_of,
        targets,
        owner,
    )


def _predictions(batch: TokenBatch, present: Tensor, packed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Say which packed position predicts which token of which completion."""
    rows, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    row_start = torch.arange(rows, device=device) * packed
    place = (present.cumsum(dim=1) - 1) + row_start[:, None]  # flat packed position of a present token
    last_prompt = (row_start + batch.prompt_length - 1)[:, None, None].expand(-1, count, 1)
    before = torch.cat([last_prompt, place[:, width:].view(rows, count, length - 1)], dim=2)
    scored = torch.arange(length, device=device) < batch.completion_length[:, :, None]
    owner = torch.arange(rows * count, device=device).view(rows, count, 1).expand_as(scored)
    sources, source_of = before[scored].unique(return_inverse=True)
    return sources, source_of, batch.completions[scored], owner[scored]


def block_mask(segment: Tensor) -> Tensor:
    """Return (B, 1, T, T) bool: may the query (row) attend to the key (column)?

    Padding attends to itself alone, which keeps its softmax finite.
    """
    length = segment.shape[1]
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    visible = ((key == 0) | (key == query)) & (key >= 0) & causal
    return (visible | torch.eye(length, dtype=torch.bool, device=segment.device))[:, None]


def unpack(batch: TokenBatch) -> tuple[SequenceBatch, Tensor]:
    """Lay out each completion that is there as a sequence of its own; runs where the batch lies.

    Returns:
        The sequences, and the (S,) flat (B * C) completion of each.
    """
    _, count, length = batch.completions.shape
    width = batch.prompt.shape[1]
    device = batch.prompt.device
    owner = batch.completion_length.flatten().nonzero().squeeze(1)
    prompt_end = batch.prompt_length.repeat_interleave(count)[owner][:, None]
    end = batch.completion_length.flatten()[owner][:, None]
    row = owner // count
    ids = torch.cat([batch.prompt[row], batch.completions.flatten(0, 1)[owner]], dim=1)
    in_prompt = torch.arange(width, device=device) < prompt_end
    in_completion = torch.arange(length, device=device) < end
    present = torch.cat([in_prompt, in_completion], dim=1)
    order = (~present).int().argsort(dim=1, stable=True)  # padding inside goes to the end
    order = order[:, : int(present.sum(dim=1).max())]
    ids, present = ids.gather(1, order), present.gather(1, order)
    scored = present & (torch.arange(ids.shape[1], device=device) >= prompt_end)
    places = scored.flatten().nonzero().squeeze(1)
    targets = ids.flatten()[places]
    return SequenceBatch(ids, present.long(), places - 1, targets, places // ids.shape[1]), owner
