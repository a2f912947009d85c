"""A CPU taken for a GPU: notes each place where the host would have to wait for the device."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_dynamicpo.language_model import packed

aten = torch.ops.aten
# What tells the host a number, or a size that depends on numbers.
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave),
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
METHODS = ("cpu", "numpy", "tolist", "__array__")


class PretendedDevice(TorchDispatchMode):
    """Tells tensors on the device from others by where they come from; operations on the first are watched.

    On the device are a model's weights, what ``on_device`` brings over, and all that is computed from these.
    What was made of nothing, such as zeros, may be anywhere. All else lies on the host; an operation that has
    it beside the first means a copy that was made late, for which the host waits on a GPU.

    Attributes:
        waits: what makes the host wait, and the line that does it.
        brought: tensors that ``on_device`` brought over.
        sent: tensors that are on their way to the host; who reads one of them waits where that is wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.brought, self.sent = 0, 0
        self._there: dict[int, Any] = {}  # storages, kept so that no other gets their place
        self._anywhere: dict[int, Any] = {}

    def put(self, *tensors: Tensor) -> None:
        """Say that tensors lie on the device."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._there[storage._cdata] = storage

    def has(self, tensor: Tensor) -> bool:
        """Say whether a tensor lies on the device."""
        return tensor.untyped_storage()._cdata in self._there

    def bring(self, tensors: list[Tensor], device: torch.device) -> list[Tensor]:
        """Stand in for what ``on_device`` does."""
        found = [tensor.clone() for tensor in tensors]
        self.put(*found)
        self.brought += len(found)
        return found

    def send(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Stand in for what ``Sent`` does."""
        found = tensor.clone()
        self._there.pop(found.untyped_storage()._cdata)
        self._anywhere[found.untyped_storage()._cdata] = found.untyped_storage()
        self.sent += 1
        return lambda: found

    def note(self, what: str) -> None:
        """Write down what waits, and the last line outside of torch that led there."""
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
        name, line = next(at for at in reversed(places) if at[0] != __file__ and "/torch/" not in at[0])
        self.waits.append(f"{what} at {name.rpartition('/')[2]}:{line}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in given if self.has(tensor)]
        if there:
            self._watch(func, args, given)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if there:
                    self._there[storage._cdata] = storage
                elif all(self._is_anywhere(one) for one in given):
                    self._anywhere[storage._cdata] = storage
        return result

    def _watch(self, func: Any, args: Any, given: list[Tensor]) -> None:
        name = func.overloadpacket
        if name in READS:
            self.note(str(func))
        if name in INDEXED and any(
            isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1]
        ):
            self.note(f"{func} by a mask")
        late = [one for one in given if one.dim() and not self.has(one) and not self._is_anywhere(one)]
        if late:
            self.note(f"{func} with a tensor {tuple(late[0].shape)} of the host")

    def _is_anywhere(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._anywhere


@contextmanager
def pretended_device(*modules: nn.Module) -> Iterator[PretendedDevice]:
    """Take the CPU for a GPU that holds the modules' weights, inside the block, backward passes included."""
    device = PretendedDevice()
    for module in modules:
        device.put(*module.parameters(), *module.buffers())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_moved", device.bring)
        patch.setattr(packed, "_sent", device.send)
        for name in METHODS:
            patch.setattr(Tensor, name, _noted(device, name))
        # RecBole's SINE module turns anomaly detection on when it is imported; the trainer turns it off.
        with torch.autograd.set_detect_anomaly(False), device:
            yield device


def _noted(device: PretendedDevice, name: str) -> Any:
    own = getattr(Tensor, name)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if device.has(self):
            device.note(name)
        return own(self, *args, **kwargs)

    return method
