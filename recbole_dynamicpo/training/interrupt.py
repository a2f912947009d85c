"""A polite end: SIGTERM is noted, and whoever trains stops after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.received = False
        self._before: Any = None

    def pass_on(self) -> None:
        """Let the handler that was there before have its say, if it was somebody's own."""
        if callable(self._before):
            self._before(signal.SIGTERM, None)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGTERM inside the block instead of dying of it.

    Only the main thread can listen to signals; in any other the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.received = True

    request._before = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, request._before)
