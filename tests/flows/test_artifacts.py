"""What is shown in Prefect's UI."""

from __future__ import annotations

import base64
import contextvars
import threading
from typing import Any
from uuid import uuid4

import pytest
from matplotlib.figure import Figure

from recbole_dynamicpo.flows import artifacts


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts.FlowRunContext, "get", lambda: object())


@pytest.fixture
def sent(in_a_run: None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The values of a progress artifact, as they reach the server."""
    values: list[float] = []

    def create(progress: float, **more: Any) -> Any:
        values.append(progress)
        return uuid4()

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda key, value: values.append(value))
    return values


def test_keys_are_as_prefect_wants_them() -> None:
    assert artifacts.artifact_key("progress", "My_Data.v2", "sft") == "progress-my-data-v2-sft"


def test_progress_ends_at_a_hundred(sent: list[float]) -> None:
    with artifacts.progress("sft", "toy") as report:
        for step in range(1, 200):
            report("sft", step, 200)
    assert sent[-1] == 100
    assert len(sent) < 10, "the server is asked seldom"


def test_the_progress_of_a_failed_stage_stays_where_it_was(sent: list[float]) -> None:
    def fail() -> None:
        with artifacts.progress("sft", "toy") as report:
            report("sft", 1, 4)
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        fail()
    assert sent[-1] == 25


@pytest.mark.parametrize("silent", ["create_progress_artifact", "update_progress_artifact"])
def test_a_silent_server_holds_nothing_up(
    sent: list[float], monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(artifacts, "CLOSE_WITHIN", 0.05)
    thaw = threading.Event()
    monkeypatch.setattr(artifacts, silent, lambda *args, **more: thaw.wait(60))
    with artifacts.progress("sft", "toy") as report:
        for step in range(1000):
            report("sft", step, 1000)
    assert not thaw.is_set()
    thaw.set()


def test_a_silent_server_is_a_line_in_the_log(
    in_a_run: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artifacts, "SHOWN_WITHIN", 0.05)
    thaw = threading.Event()
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *args, **more: thaw.wait(60))
    artifacts.show_table("key", [{"a": 1}], "text")
    assert not thaw.is_set()
    thaw.set()
    assert caplog.messages == ["not shown in Prefect's UI: show_table (no answer within 0 s)"]


def test_a_refusing_server_is_a_line_in_the_log(
    in_a_run: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)
    monkeypatch.setattr(artifacts, "create_table_artifact", refuse)
    with artifacts.progress("sft", "toy") as report:
        report("sft", 1, 2)
        artifacts.show_table("key", [{"a": 1}], "text")
    assert sorted(caplog.messages) == [
        "not shown in Prefect's UI: progress (gone)",
        "not shown in Prefect's UI: show_table (gone)",
    ]


def test_what_is_shown_belongs_to_the_run(sent: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect finds the run of an artifact in the context, which a thread does not have by itself."""
    run = contextvars.ContextVar("run", default="")
    run.set("mine")
    seen = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *args, **more: seen.append(run.get()))
    artifacts.show_table("key", [{"a": 1}], "text")
    assert seen == ["mine"]


def test_a_figure_travels_in_its_address() -> None:
    figure = Figure(figsize=(1, 1))
    address = artifacts.data_uri(figure)
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG\r\n")


def test_links_lead_to_the_server_or_to_where_one_would_be() -> None:
    assert artifacts.ui_address("http://host:5001/") == "http://host:5001"
    assert artifacts.ui_address("sqlite:////tmp/mlflow.db") == "http://127.0.0.1:5000"
