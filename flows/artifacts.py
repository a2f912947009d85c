"""What a run shows in Prefect's UI: progress, metrics, links, the figure.

All of it is a convenience: trouble with Prefect's server is logged, and the run goes on. Everything is sent
from threads of its own, as Prefect's client tries for minutes to reach a server that does not answer.
"""

from __future__ import annotations

import base64
import contextvars
import functools
import io
import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext

logger = logging.getLogger("recbole_dynamicpo.flows")

# Seconds between two updates of a progress artifact.
EVERY = 3.0
# Seconds that the end of a stage waits for the last one.
CLOSE_WITHIN = 5.0
# Seconds that a run waits for anything else that is to be shown.
SHOWN_WITHIN = 10.0
# Where MLflow's UI is found by default, for a store that is a local file.
LOCAL_UI = "http://127.0.0.1:5000"

Report = Callable[[str, int, int], None]  # stage, done, total


def artifact_key(*parts: str) -> str:
    """Return a key as Prefect wants it: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _forgiving(show: Callable[..., Any]) -> Callable[..., None]:
    """Return ``show`` so that it does nothing outside of a flow run, waits a bounded time, and only logs that
    it failed."""

    @functools.wraps(show)
    def shown(*args: Any, **kwargs: Any) -> None:
        if FlowRunContext.get() is None:
            return
        failures: list[Exception] = []

        def attempt() -> None:
            try:
                show(*args, **kwargs)
            except Exception as error:  # whatever the server has, the results are safe
                failures.append(error)

        thread = _in_this_run(attempt)
        thread.join(SHOWN_WITHIN)
        late = [f"no answer within {SHOWN_WITHIN:.0f} s"] if thread.is_alive() else []
        for reason in [*failures, *late]:
            logger.warning("not shown in Prefect's UI: %s (%s)", show.__name__, reason)

    return shown


def _in_this_run(work: Callable[[], None]) -> threading.Thread:
    """Start a thread that belongs to the present run and that the end of the process does not wait for."""
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(work,), name="artifacts", daemon=True)
    thread.start()
    return thread


class _Progress:
    """One progress artifact, made and updated from a thread of its own: training never waits for a server."""

    def __init__(self, stage: str, dataset: str) -> None:
        self._key = artifact_key("progress", dataset, stage)
        self._text = f"Stage {stage} of data set {dataset}."
        self._percent = 0.0
        self._id: UUID | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._news.set()
        self._thread = _in_this_run(self._work)

    def report(self, done: int, total: int) -> None:
        """Note how far the stage is; returns at once."""
        self._percent = 100 * done / max(1, total)
        self._news.set()

    def close(self) -> None:
        """Send the last value, waiting a bounded time."""
        self._closing.set()
        self._news.set()
        self._thread.join(CLOSE_WITHIN)

    def _work(self) -> None:
        warned = closing = False
        while not closing:
            self._news.wait()
            closing = self._closing.is_set()  # read before the value, so that the last one is sent
            self._news.clear()
            try:
                self._send(self._percent)
            except Exception as error:  # the next one may get through
                level = logging.DEBUG if warned else logging.WARNING
                logger.log(level, "not shown in Prefect's UI: progress (%s)", error)
                warned = True
            self._closing.wait(EVERY)

    def _send(self, percent: float) -> None:
        if self._id is None:
            made = create_progress_artifact(percent, key=self._key, description=self._text)
            assert isinstance(made, UUID)
            self._id = made
        else:
            update_progress_artifact(self._id, percent)


@contextmanager
def progress(stage: str, dataset: str) -> Iterator[Report]:
    """Show the progress of a stage; yields the function that it reports with."""
    if FlowRunContext.get() is None:
        yield lambda stage, done, total: None
        return
    shown = _Progress(stage, dataset)
    try:
        yield lambda stage, done, total: shown.report(done, total)
        shown.report(1, 1)
    finally:
        shown.close()


@_forgiving
def show_metrics(dataset: str, contestants: Sequence[Mapping[str, Any]], run: str) -> None:
    """Show the lines of the report as a table, HR@1 with its 95 % interval."""
    rows = [metrics_row(line) for line in contestants]
    create_table_artifact(rows, key=artifact_key("metrics", dataset), description=f"Run {run}, test rows.")


@_forgiving
def show_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Show a table."""
    create_table_artifact(rows, key=key, description=description)


def metrics_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the report as it is shown."""
    return {
        "model": line["name"],
        "HR@1": round(line["hr_at_1"], 4),
        "95 % interval": f"{line['hr_at_1_low']:.4f} to {line['hr_at_1_high']:.4f}",
        "NDCG@5": round(line["ndcg_at_5"], 4),
        "MRR": round(line["mrr"], 4),
        "rows": line["rows"],
    }


@_forgiving
def show_figure(key: str, figure: Any, description: str) -> None:
    """Show a matplotlib figure; the image is in the artifact itself."""
    create_image_artifact(image_url=data_uri(figure), key=key, description=description)


def data_uri(figure: Any) -> str:
    """Return a figure as the address of an image that is its own content."""
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode("ascii")


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@_forgiving
def link_run(dataset: str, uri: str, run_id: str, experiment_id: str) -> None:
    """Link to a run in MLflow's UI."""
    address = f"{ui_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}"
    create_link_artifact(
        address, "run in MLflow", key=artifact_key("mlflow-run", dataset), description=_how_to_see(uri)
    )


@_forgiving
def link_model(dataset: str, uri: str, name: str, version: str) -> None:
    """Link to a registered model in MLflow's UI."""
    address = f"{ui_address(uri)}/#/models/{name}/versions/{version}"
    text = f"{name}, version {version}. {_how_to_see(uri)}"
    create_link_artifact(address, "registered model", key=artifact_key("model", dataset), description=text)


def ui_address(uri: str) -> str:
    """Return where MLflow's UI for a store is: the server itself, or where it is by default."""
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL_UI


def _how_to_see(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        return f"Recorded at {uri}."
    command = f"mlflow server --backend-store-uri {shlex.quote(uri)}"
    return f"Recorded in a local file; see it with: {command}"
