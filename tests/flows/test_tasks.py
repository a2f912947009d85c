"""The tasks: which failures are tried again, and what a cached stage looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.states import Completed, Failed

from recbole_dynamicpo import errors
from recbole_dynamicpo.flows import tasks
from recbole_dynamicpo.flows.parameters import make_job
from recbole_dynamicpo.stage_results import StageResult

TASKS = {
    "prepare": tasks.prepare_task,
    "sft": tasks.sft_task,
    "preference": tasks.preference_task,
    "evaluate": tasks.evaluate_task,
    "register": tasks.register_task,
}


class MlflowException(Exception):  # noqa: N818
    """Has the name of MLflow's base class, and stands for a subclass of it below."""


class RestException(MlflowException):
    pass


class TaskRunTimeoutError(TimeoutError):
    """Has the name of what Prefect raises when a task's time is over."""


def caused(error: Exception, cause: Exception) -> Exception:
    """Return ``error`` as it is after ``raise error from cause``."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(5, "Input/output error"), True),
        (OSError(28, "No space left on device"), True),
        (ConnectionResetError(), True),
        (TimeoutError("socket"), True),
        (RestException("503"), True),
        (errors.LockedError("in use"), True),
        (errors.TrackingError("no answer"), True),
        (TaskRunTimeoutError("72 h"), False),
        (FileNotFoundError("adapter"), False),
        (PermissionError("saved"), False),
        (errors.SettingsError("beta"), False),
        (errors.DataError("row 3"), False),
        (errors.NumericsError("nan"), False),
        (caused(errors.DataError("download"), ConnectionResetError()), True),
        (caused(errors.DataError("no such file"), FileNotFoundError()), False),
        (caused(errors.DataError("row 3"), ValueError()), False),
        (ValueError("ours"), False),
        (MemoryError(), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert tasks.may_pass(None, None, Failed(data=error)) is again


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_limits(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.timeout_seconds
    assert task.retries == 3
    assert task.retry_delay_seconds == [10, 20, 40]
    assert task.retry_condition_fn is tasks.may_pass
    assert task.result_serializer == "json"
    assert task.persist_result is False
    assert (tasks.GPU in task.tags) == (name in ("sft", "preference", "evaluate"))


@pytest.mark.parametrize(("cached", "name"), [(True, "Cached"), (False, "Completed")])
def test_a_stage_that_was_done_already_says_so(
    cached: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = StageResult("prepare", "key", "folder", {"rows": {"test": 3}}, cached=cached)
    monkeypatch.setattr("recbole_dynamicpo.pipeline.prepare", lambda job: result)
    state = tasks.prepare_task.fn(make_job())
    assert (state.name, state.type) == (name, "COMPLETED")
    assert state.data["outputs"] == {"rows": {"test": 3}}


def test_training_reports_to_the_tracker_and_to_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Tracker:
        def changed(self) -> None:
            seen.append("changed")

    def train(job: Any, stage: str, prepared: Any, tracker: Any, progress: Any) -> StageResult:
        progress(stage, 1, 2)
        seen.append((stage, prepared, tracker))
        return StageResult(stage, "key", "folder")

    monkeypatch.setattr("recbole_dynamicpo.pipeline.train", train)
    tracker = Tracker()
    run = tasks.Run(make_job(), "prepared", tmp_path, tracker)
    assert tasks.preference_task.fn(run).data["stage"] == "preference"
    assert seen == [("preference", "prepared", tracker), "changed"]


class Stage:
    """A task that meets trouble with Prefect's server before it has its result."""

    name = "sft"

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)

    def __call__(self, *args: Any, return_state: bool) -> Any:
        if self.troubles:
            raise self.troubles.pop(0)
        return Completed(name="Cached", data={"of": args})


def test_a_stage_whose_end_was_not_reported_is_asked_once_more(caplog: pytest.LogCaptureFixture) -> None:
    gone = httpx.ConnectError("refused")
    assert tasks.result_of(Stage(gone), 1) == {"of": (1,)}
    assert "stage sft: Prefect's server does not answer (ConnectError('refused'))" in caplog.text
    with pytest.raises(httpx.ConnectError):
        tasks.result_of(Stage(gone, gone))


def test_a_server_that_was_waited_for_is_not_asked_again() -> None:
    with pytest.raises(httpx.ReadTimeout):
        tasks.result_of(Stage(httpx.ReadTimeout("60 s")))
