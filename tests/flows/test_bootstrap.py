"""What bootstrap finds wrong before it makes anything; that it makes things: test_server.py."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.flows import bootstrap
from recbole_dynamicpo.flows.bootstrap import BootstrapError, Options


@pytest.fixture(autouse=True)
def _nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bootstrap, "_make", lambda options: pytest.fail("made something"))


def test_without_a_server_it_says_how_to_start_one() -> None:
    wanted = pytest.raises(BootstrapError, match=r"PREFECT_API_URL: got none.*prefect server start")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), wanted:
        bootstrap.bootstrap(Options())


def test_a_dead_server_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(BootstrapError, match=address):
        bootstrap.bootstrap(Options())


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "_check_server", lambda: "server")
    monkeypatch.setenv("RECBOLE_DYNAMICPO_STORE", str(tmp_path / "a" / "b"))
    with pytest.raises(BootstrapError, match=rf"{tmp_path}: .* GB free, wanted 1000000\.0"):
        bootstrap.bootstrap(Options(free_gb=1e6))


def test_what_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "_IMPORTED", ("recbole_dynamicpo.nonesuch",))
    assert main(["bootstrap"]) == 2
    assert "recbole_dynamicpo.nonesuch cannot be imported" in capsys.readouterr().err


def answers(status: int, **content: Any) -> httpx.Client:
    """Return a client whose server answers every question alike."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/admin/settings"
        return httpx.Response(status, **content)

    raising = {"response": [lambda response: response.raise_for_status()]}  # as Prefect's client does
    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server", event_hooks=raising)


@pytest.mark.parametrize(
    ("forgets", "status", "content"),
    [
        (True, 200, {"json": {"server": {"concurrency": {"lease_storage": f"{bootstrap.LEASES}.memory"}}}}),
        (
            False,
            200,
            {"json": {"server": {"concurrency": {"lease_storage": f"{bootstrap.LEASES}.filesystem"}}}},
        ),
        (False, 200, {"json": {"server": {}}}),
        (False, 200, {"text": "<html>"}),
        (False, 404, {"json": {"detail": "Not Found"}}),
    ],
)
def test_a_server_that_forgets_leases_is_told_from_others(
    forgets: bool, status: int, content: dict[str, Any]
) -> None:
    assert bootstrap._forgets_leases(answers(status, **content)) is forgets
