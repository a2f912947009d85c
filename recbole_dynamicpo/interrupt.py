"""A polite end: SIGTERM is noted, and whoever trains stops after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from .errors import StoppedError


class StopRequest:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.received = False
        self._before: Any = None

    def end_run(self, stage: str, step: int, goes_on: str) -> None:
        """End a run where somebody asked for it; what there is has been saved.

        The handler that was there before has its say first, if it was somebody's own.

        Args:
            stage: at hand.
            step: of it that was the last.
            goes_on: how to go on, in words.

        Raises:
            StoppedError: saying how to go on.
        """
        if not self.received:
            return
        if callable(self._before):
            with suppress(StoppedError):
                self._before(signal.SIGTERM, None)
        raise StoppedError(f"stopped by SIGTERM after step {step} of stage {stage}; {goes_on}")


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
