"""What the doctor finds, and what it says to do."""

from __future__ import annotations

import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.commands import doctor


@pytest.fixture(autouse=True)
def roomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 << 30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 << 30))


def test_nothing_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(b"x" * 300_000_000)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("!")]
    shown = "\n".join(lines)
    assert f"recbole    {version('recbole')}" in shown
    assert "auto is float32 here" in shown or "auto is bfloat16 here, as always on CUDA" in shown
    assert f"{tmp_path / 'cache'}, 0.3 GB" in shown
    assert f"records into sqlite:///{tmp_path / 'mlflow.db'}" in shown


def test_each_lack_has_a_remedy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))

    def lacks(name: str) -> Any:
        if name == "recbole":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", lacks)
    assert main(["doctor"]) == 2
    said = capsys.readouterr()
    marked = [line for line in said.out.splitlines() if line.startswith("!")]
    assert [line.split()[1] for line in marked] == ["recbole", "MLflow", "Prefect", "disk", "memory"]
    assert marked[0].endswith("not installed; pip install --no-deps recbole==1.2.1")
    assert f"{address} does not answer" in marked[1]
    assert "1.1 GB free, the default job wants 2.0; make room" in marked[3]
    assert "5 of 13 findings want something done" in said.err
