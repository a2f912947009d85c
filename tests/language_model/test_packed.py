"""Layouts on their way to the device: the same tensors, in few copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_dynamicpo.language_model import packed
from recbole_dynamicpo.language_model.packed import TokenBatch, on_device, unpack

CPU = torch.device("cpu")


class Part(NamedTuple):
    ids: Tensor
    count: int


class Whole(NamedTuple):
    parts: tuple[Part, ...]
    mask: Tensor
    name: str | None


def whole() -> Whole:
    parts = (
        Part(torch.arange(6).view(2, 3), 2),
        Part(torch.arange(4)[::2], 3),
        Part(torch.zeros(0, 3).long(), 0),
    )
    return Whole(parts, torch.tensor([[True], [False]]), None)


@pytest.mark.parametrize("in_one_copy", [False, True])
def test_everything_arrives_as_it_was(in_one_copy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_one_copy:  # as on a GPU, but for the pinned memory
        monkeypatch.setattr(
            packed, "_moved", lambda tensors, device: packed._in_one_copy(tensors, device, pinned=False)
        )
    found, wanted = on_device(whole(), CPU), whole()
    assert isinstance(found, Whole)
    assert all(isinstance(part, Part) for part in found.parts)
    assert [part.count for part in found.parts] == [2, 3, 0]
    assert found.name is None
    for one, other in zip([*found.parts, found.mask], [*wanted.parts, wanted.mask], strict=True):
        mine, right = (value.ids if isinstance(value, Part) else value for value in (one, other))
        assert mine.dtype == right.dtype
        assert torch.equal(mine, right)
    assert torch.equal(on_device(torch.ones(2), CPU), torch.ones(2))
    assert on_device((None, 3), CPU) == (None, 3)


def test_one_copy_for_each_dtype() -> None:
    """Views of one buffer, which share its memory."""
    tensors = [torch.arange(3), torch.ones(2), torch.arange(4), torch.zeros(1, 1)]
    found = packed._in_one_copy(tensors, CPU, pinned=False)
    first, second, third, fourth = (tensor.untyped_storage().data_ptr() for tensor in found)
    assert first == third != second == fourth


def test_the_cpu_keeps_what_it_has() -> None:
    given = whole()
    assert on_device(given, CPU).mask is given.mask


class _Copies(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_another_device_gets_one_copy_for_each_dtype() -> None:
    """The device without memory takes copies as a GPU does."""
    with _Copies() as copies:
        found = packed._in_one_copy(
            [torch.arange(3), torch.arange(4), torch.ones(2)], torch.device("meta"), pinned=False
        )
    assert copies.names.count("_to_copy") == 2
    assert [tensor.shape for tensor in found] == [(3,), (4,), (2,)]
    assert all(tensor.is_meta for tensor in found)


def test_sequences_by_hand() -> None:
    """Prompt 5 6 7 before 8 9; prompt 4 before 3; an absent completion. Parts count from their own start."""
    batch = TokenBatch(
        torch.tensor([[5, 6, 7], [4, 0, 0]]),
        torch.tensor([3, 1]),
        torch.tensor([[[8, 9], [0, 0]], [[3, 0], [2, 1]]]),
        torch.tensor([[2, 0], [1, 2]]),
    )
    sequences, owner = unpack(batch)
    assert owner.tolist() == [0, 2, 3]
    assert sequences.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0], [4, 2, 1, 0, 0]]
    assert sequences.present.tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert sequences.targets.tolist() == [8, 9, 3, 2, 1]
    assert sequences.sources.tolist() == [2, 3, 5, 10, 11]
    assert sequences.row.tolist() == [0, 0, 1, 2, 2]
    first, second = sequences.split(2)
    assert [second.sources.tolist(), second.targets.tolist(), second.row.tolist()] == [[0, 1], [2, 1], [0, 0]]
    assert first.sources.tolist() == [2, 3, 5]
    (all_of_them,) = sequences.split(9)
    for one, other in zip(all_of_them, sequences, strict=True):
        assert torch.equal(one, other)
