"""A checkpoint of RecBole's: read without executing anything, whole or refused with the file's name."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.retrievers.checkpoint import checkpoints_digest, plain, read_checkpoint

from ..helpers.stock_checkpoint import OWN, StockFile, train_stock


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> StockFile:
    return train_stock(tmp_path_factory.mktemp("stock"))


def archive(path: Path, content: bytes, **how: Any) -> Path:
    """Write what torch would take for a checkpoint, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("x/data.pkl", content)
        file.writestr("x/version", "3")
    return path


class Calls:
    """Unpickled as the value of a call."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.given


def test_what_recbole_saved_is_read_as_torch_reads_it(stock: StockFile) -> None:
    found, wanted = read_checkpoint(stock.path), stock.loaded()
    assert found.written_for == "PlainConfig"
    assert found.settings["model"] == "SASRec"
    assert {key: found.settings[key] for key in OWN} == OWN
    assert found.settings["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert found.settings["device"] == "<device>"
    assert list(found.state) == list(wanted["state_dict"])
    for name, tensor in wanted["state_dict"].items():
        assert torch.equal(found.state[name], tensor.cpu())
        assert found.state[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "call", [os.system, os.makedirs, builtins.eval, builtins.exec, builtins.__import__, torch.load]
)
def test_a_pickle_that_calls_is_refused_before_the_call(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {os.system: "mkdir marker", os.makedirs: "marker"}
    saved = {
        "config": Calls(call, words.get(call, "__import__('os').mkdir('marker')")),
        "state_dict": {},
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = archive(tmp_path / "evil.pth", pickle.dumps(saved, protocol))
        wanted = rf"evil\.pth: refused, nothing of it was executed: it asks for \w+(\.\w+)*\.{call.__name__};"
        with pytest.raises(AdapterError, match=wanted):
            read_checkpoint(path)
    # As torch.save wrote before it wrote archives.
    (tmp_path / "old.pth").write_bytes(pickle.dumps(saved, 4))
    with pytest.raises(AdapterError, match=r"old\.pth: cannot be used \(BadZipFile"):
        read_checkpoint(tmp_path / "old.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("owner", [{}, "text", collections.OrderedDict, torch.Size([1])])
def test_attributes_of_what_is_no_enumeration_are_refused(owner: Any, tmp_path: Path) -> None:
    """Python 3.11 pickles the member of an enumeration by ``getattr``; it gets no other."""
    path = archive(tmp_path / "x.pth", pickle.dumps({"config": Calls(getattr, owner, "__class__")}, 4))
    with pytest.raises(AdapterError, match=r"x\.pth: cannot be used .*getattr of what is no enumeration"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["collections\nOrderedDict", "torch\nSize", "torch._utils\n_rebuild_tensor_v2"]
)
def test_nothing_of_the_process_can_be_changed(name: str, tmp_path: Path) -> None:
    """State that a pickle gives to a class, by which a class in use could be made another."""
    opcodes = b"c" + name.encode() + b"\n" + b"N}X\x04\x00\x00\x00evilI1\ns\x86b."
    path = archive(tmp_path / "x.pth", opcodes)
    with pytest.raises(AdapterError, match=r"x\.pth: cannot be used \(TypeError"):
        read_checkpoint(path)
    assert not hasattr(collections.OrderedDict, "evil")
    assert not hasattr(torch.Size, "evil")


def test_a_file_cut_anywhere_is_refused(stock: StockFile, tmp_path: Path) -> None:
    content = stock.path.read_bytes()
    path = tmp_path / "cut.pth"
    for size in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(AdapterError, match=r"cut\.pth: cannot be used .*wanted a checkpoint"):
            read_checkpoint(path)


def test_a_turned_bit_is_refused_or_changes_nothing(stock: StockFile, tmp_path: Path) -> None:
    content, wanted = stock.path.read_bytes(), read_checkpoint(stock.path)
    path, refused = tmp_path / "turned.pth", 0
    places = range(0, len(content), len(content) // 150)
    for place in places:
        turned = bytearray(content)
        turned[place] ^= 4
        path.write_bytes(bytes(turned))
        try:
            found = read_checkpoint(path)
        except AdapterError:
            refused += 1
            continue
        assert found.settings == wanted.settings
        assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items())
    assert refused > len(places) / 4


@pytest.mark.parametrize(
    ("saved", "complaint"),
    [
        ({}, "KeyError"),
        ([1, 2], "TypeError"),
        ({"config": 1, "state_dict": {}}, "AttributeError"),
        ({"config": 1, "state_dict": {}, "other_parameter": [1]}, "keeps more than tensors"),
    ],
)
def test_another_pickle_is_no_checkpoint(saved: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=rf"x\.pth: cannot be used \(.*{complaint}"):
        read_checkpoint(archive(tmp_path / "x.pth", pickle.dumps(saved, 4)))


def test_what_would_grow_in_memory_is_refused(tmp_path: Path) -> None:
    small = archive(tmp_path / "x.pth", b"N." + b"0" * 10**6, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(AdapterError, match=r"data\.pkl is compressed"):
        read_checkpoint(small)
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    with pytest.raises(ValueError, match="more than 100000 values"):
        plain(nested)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(AdapterError, match=rf"{path}: cannot be read"):
            read_checkpoint(path)
        with pytest.raises(AdapterError, match=rf"{path}: cannot be read"):
            checkpoints_digest({"SASRec": str(path)})
