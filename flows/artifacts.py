"""What a run shows in Prefect's UI: progress, metrics, links, the figure.

All of it is a convenience: trouble with Prefect's server is logged, and the run goes on.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import re
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
# Where MLflow's UI is found by default, for a store that is a local file.
LOCAL_UI = "http://127.0.0.1:5000"

Report = Callable[[str, int, int], None]  # stage, done, total


def artifact_key(*parts: str) -> str:
    """Return a key as Prefect wants it: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _forgiving(show: Callable[..., Any]) -> Callable[..., None]:
    """Return ``show`` so that it does nothing outside of a flow run, and only logs that it failed."""

    @functools.wraps(show)
    def shown(*args: Any, **kwargs: Any) -> None:
        if FlowRunContext.get() is None:
            return
        try:
            show(*args, **kwargs)
        except Exception as error:  # whatever the server has, the results are safe
            logger.warning("not shown in Prefect's UI: %s (%s)", show.__name__, error)

    return shown


class _Progress:
    """One progress artifact, updated from a thread of its own, so that training never waits for a server."""

    def __init__(self, stage: str, dataset: str) -> None:
        self._percent = 0.0
        self._news, self._closing = threading.Event(), threading.Event()
        text = f"Stage {stage} of data set {dataset}."
        created = create_progress_artifact(
            0.0, key=artifact_key("progress", dataset, stage), description=text
        )
        assert isinstance(created, UUID)
        self._id = created
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._thread.start()

    def report(self, stage: str, done: int, total: int) -> None:
        """Note how far the stage is; returns at once."""
        self._percent = 100 * done / max(1, total)
        self._news.set()

    def close(self) -> None:
        """Send the last value, waiting a bounded time."""
        self._closing.set()
        self._news.set()
        self._thread.join(CLOSE_WITHIN)

    def _work(self) -> None:
        closing = False
        while not closing:
            self._news.wait()
            closing = self._closing.is_set()  # read before the value, so that the last one is sent
            self._news.clear()
            try:
                update_progress_artifact(self._id, self._percent)
            except Exception as error:  # the next update may get through
                logger.debug("progress not sent (%s)", error)
            self._closing.wait(EVERY)


@contextmanager
def progress(stage: str, dataset: str) -> Iterator[Report]:
    """Show the progress of a stage; yields the function that it reports with."""
    shown: list[_Progress] = []
    _forgiving(lambda: shown.append(_Progress(stage, dataset)))()
    if not shown:
        yield lambda stage, done, total: None
        return
    try:
        yield shown[0].report
        shown[0].report(stage, 1, 1)
    finally:
        shown[0].close()


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
    return f"Recorded in a local file; see it with: mlflow server --backend-store-uri {uri}"
