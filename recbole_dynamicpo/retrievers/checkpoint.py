"""A checkpoint of RecBole's as plain data: reading one executes nothing, whatever the file holds.

RecBole's trainer writes a zip archive by ``torch.save``: one pickle, and a member for each storage of its
tensors. The pickle's protocol is one that torch's reader of plain weights refuses, and torch's other reader
runs what it reads. Here a pickle may ask for a closed list of names, and each stands for a class of this
module that keeps what it is handed: no function of Python's, torch's or RecBole's own is within its reach.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError
from ..storage import sha256_file, sha256_json

_WANTED = "wanted a checkpoint that RecBole's trainer wrote (saved/<model>-<time>.pth)"
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
# Names of others that a configuration, its values and an optimizer's state are made of.
_NAMES = {
    "torch": {*_STORAGES, "device", "Size"},
    "numpy": {"dtype"},
    "numpy.core.multiarray": {"scalar"},
    "numpy._core.multiarray": {"scalar"},
    "yaml.loader": {"FullLoader"},
    "recbole.config.configurator": {"Config"},
    "recbole.utils.enum_type": {"ModelType", "InputType", "EvaluatorType", "KGDataLoaderState"},
}
# Of this package, wherever they lie in it.
_OURS = {"PlainConfig", "BaselineConfig", "_SafeYaml"}
_MODELS = "recbole.model."  # where the classes lie that a configuration names as its model
# Values of a configuration, written out.
_MOST_VALUES = 100_000


@dataclass(frozen=True)
class Checkpoint:
    """What RecBole's trainer saved of a model.

    Attributes:
        path: of the file.
        written_for: name of the class of the configuration.
        settings: final ones of the run that trained it, as JSON values; other values as their class's name.
        state: the model's tensors by name.
    """

    path: Path
    written_for: str
    settings: Mapping[str, Any]
    state: Mapping[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what a file holds.

    Raises:
        AdapterError: it is missing, damaged, no checkpoint, or asks for a name that none of RecBole's needs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}); {_WANTED}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read(path, _Archive(archive))
    except AdapterError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise whatever a damaged file leads them to
        said = str(error).partition("\n")[0][:200]
        raise AdapterError(f"{path}: cannot be used ({type(error).__name__}: {said}); {_WANTED}") from error


def checkpoints_digest(paths: Mapping[str, str]) -> str:
    """Return the SHA-256 of the files of setting ``retriever_checkpoints``, each under its model's name.

    Raises:
        AdapterError: a file that cannot be read.
    """
    found = {}
    for model, path in paths.items():
        try:
            found[model] = sha256_file(Path(path))
        except OSError as error:
            raise AdapterError(f"{path}: cannot be read ({error.strerror}); {_WANTED}") from error
    return sha256_json(found)


def plain(value: Any) -> Any:
    """Return a value of a configuration as JSON has it; an object of a class as the class's name.

    Raises:
        ValueError: it is too large, written out.
    """
    left = [_MOST_VALUES]

    def of(value: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"a configuration of more than {_MOST_VALUES} values")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [of(one) for one in value]
        if isinstance(value, dict):
            return {str(key): of(one) for key, one in value.items()}
        return f"<{getattr(value, '__name__', type(value).__name__)}>"

    return of(value)


class _Kept:
    """Stands in for an object, or as a class for a class: keeps what it is made from and does nothing."""

    given: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Ordered(dict[str, Any]):
    """Stands in for ``collections.OrderedDict``."""

    def __setstate__(self, state: Any) -> None:
        """Pass over attributes, which for tensors of a model are versions of its layers."""


class _Tensor(_Kept):
    """Stands in for what makes a tensor of a storage."""


class _Member(_Kept):
    """Stands in for ``getattr``, by which Python 3.11 pickles the member of an enumeration."""

    def __init__(self, owner: Any, name: Any) -> None:
        if not (isinstance(owner, type) and issubclass(owner, _Kept) and isinstance(name, str)):
            raise pickle.UnpicklingError("it asks for builtins.getattr of what is no enumeration")
        super().__init__(owner, name)


_STANDING_IN = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("builtins", "getattr"): _Member,
}


class _Unpickler(pickle.Unpickler):
    """Makes stand-ins of all names in the list, and refuses any other before anything is done with it."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content))
        self.path = path

    def find_class(self, module: str, name: str) -> type:
        if (found := _STANDING_IN.get((module, name))) is not None:
            return found
        ours = module.startswith(f"{__name__.partition('.')[0]}.") and name in _OURS
        if ours or name in _NAMES.get(module, ()) or module.startswith(_MODELS):
            return type(name, (_Kept,), {})
        raise AdapterError(
            f"{self.path}: refused, nothing of it was executed: it asks for {module}.{name}; {_WANTED}"
        )

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        """Return a storage's dtype and the name of its member."""
        kind, storage, key, *_ = pid
        if kind != "storage":
            raise ValueError(f"got a {kind!r} beside the pickle, wanted storages")
        return _STORAGES[storage.__name__], str(key)


class _Archive:
    """The members of a file of ``torch.save``."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        self._archive, self._home = archive, name.partition("/")[0]

    def member(self, name: str) -> bytes:
        """Return a member's content; its checksum is compared."""
        about = self._archive.getinfo(f"{self._home}/{name}")
        if about.compress_type != zipfile.ZIP_STORED:  # a few bytes may stand for any number of them
            raise ValueError(f"{name} is compressed")
        return self._archive.read(about)

    def tensor(self, made: Any) -> Tensor:
        """Return the tensor of a stand-in."""
        if not isinstance(made, _Tensor):
            raise ValueError(f"got {type(made).__name__} among the model's tensors")
        (dtype, key), offset, size, stride, *_ = made.given
        content = bytearray(self.member(f"data/{key}"))
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
        if math.prod(size) > len(flat):
            raise ValueError(f"a tensor of shape {tuple(size)} in a storage of {len(flat)} numbers")
        return torch.as_strided(flat, size, stride, offset)


def _read(path: Path, archive: _Archive) -> Checkpoint:
    saved = _Unpickler(archive.member("data.pkl"), path).load()
    config, state = saved["config"], saved["state_dict"]
    if saved.get("other_parameter"):
        raise ValueError("its model keeps more than tensors (other_parameter)")
    return Checkpoint(
        path,
        type(config).__name__,
        plain(config.state["final_config_dict"]),
        {str(name): archive.tensor(made) for name, made in state.items()},
    )
