"""The package's log records in the log of the flow run, beside Prefect's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

_PACKAGE = "recbole_dynamicpo"


class _RunStamp(logging.Filter):
    """Says which run a record belongs to, whichever thread it comes from."""

    def __init__(self, flow_run_id: str) -> None:
        super().__init__()
        self._flow_run_id = flow_run_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.flow_run_id = self._flow_run_id
        task = TaskRunContext.get()
        if task is not None:
            record.task_run_id = str(task.task_run.id)
        return True


@contextmanager
def run_logs() -> Iterator[None]:
    """Send the package's records to the present flow run's log and to where Prefect prints; a subflow's
    records go to its own log alone. Does nothing outside of a flow run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    to_server = APILogHandler()
    to_server.addFilter(_RunStamp(str(context.flow_run.id)))
    logger = logging.getLogger(_PACKAGE)
    before, level = logger.handlers[:], logger.level
    logger.handlers = [to_server, *logging.getLogger("prefect").handlers]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level_now = before, logger.level
        if level_now == logging.INFO:
            logger.setLevel(level)
