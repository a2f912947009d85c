"""The converted folder in the cache is used only while every file in it is the one that was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recbole_dynamicpo.language_model import embedded
from recbole_dynamicpo.storage import sha256_file


@pytest.fixture
def conversions(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache and a conversion that writes a tiny backbone; the list grows with each."""
    done: list[Path] = []

    def write(gguf: Path, folder: Path) -> None:
        done.append(gguf)
        shutil.copytree(tiny_backbone, folder, dirs_exist_ok=True)

    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_find_gguf", lambda: tmp_path / embedded.GGUF_NAME)
    monkeypatch.setattr(embedded, "_write_model", write)
    return done


def test_a_whole_folder_is_converted_once(conversions: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    assert embedded.embedded_in_cache() is None
    folder = embedded.embedded_folder()
    assert embedded.embedded_folder() == embedded.embedded_in_cache() == folder
    assert len(conversions) == 1
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    others = {path for path in folder.iterdir() if path.name != "source.json"}
    assert source["sha256"] == embedded.EMBEDDED_SHA256
    assert source["files"] == {path.name: sha256_file(path) for path in others}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= source["files"].keys()
    assert "not used" not in caplog.text


def test_what_a_killed_conversion_left_is_removed(conversions: list[Path], tmp_path: Path) -> None:
    folder = embedded.embedded_folder()
    shutil.rmtree(folder)
    left = folder.with_name(f".{folder.name}.killed.tmp")
    left.mkdir()
    embedded.embedded_folder()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors has changed"),
    "tokenizer": (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json has changed"),
    "cut off": (lambda folder: (folder / "config.json").write_bytes(b""), "config.json has changed"),
    "missing": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "planted": (lambda folder: (folder / "adapter_config.json").touch(), "does not list adapter_config.json"),
    "no list": (lambda folder: (folder / "source.json").unlink(), "source.json cannot be read"),
    "empty list": (lambda folder: (folder / "source.json").write_text('{"files": {}}'), "does not list"),
    "other list": (lambda folder: (folder / "source.json").write_text("[]"), "source.json cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_made_again(
    name: str, conversions: list[Path], tiny_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, told = DAMAGES[name]
    folder = embedded.embedded_folder()
    damage(folder)
    assert embedded.embedded_in_cache() is None
    assert embedded.embedded_folder() == folder
    assert len(conversions) == 2
    assert f"{folder}: not used, " in caplog.text
    assert told in caplog.text
    assert embedded.embedded_in_cache() == folder
    assert not (folder / "adapter_config.json").exists()
    for path in tiny_backbone.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_error_of_the_disk_replaces_nothing(
    conversions: list[Path], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A folder that cannot be read now may be whole."""
    folder = embedded.embedded_folder()

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            embedded.embedded_folder()
    assert Path(caught.value.filename).parent == folder
    assert embedded.embedded_in_cache() == folder
    assert len(conversions) == 1
