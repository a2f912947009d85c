"""Tells a copy of a run that there is more to copy, without ever holding the run up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..errors import DynamicPOError

logger = logging.getLogger(__name__)

# Seconds between two copies of a growing run.
EVERY = 5.0
# Seconds that the pause after a failure grows to.
LONGEST_PAUSE = 60.0
# Seconds that the end of a run waits for its copy.
CLOSE_WITHIN = 30.0
THREAD = "recbole-dynamicpo tracker"
LONGEST_REASON = 200  # characters


class Tracker(Protocol):
    """Told of what is new in a run folder; never raises, never waits long."""

    def changed(self) -> None:
        """The journal has new entries; returns at once."""

    def close(self, status: str) -> None:
        """The run ended, as ``FINISHED`` or ``FAILED``; waits a bounded time until all is sent.

        More entries may follow: the next ``changed`` opens the tracker again.
        """


class NullTracker:
    """Tracks nothing."""

    def changed(self) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


class Tracking(Protocol):
    """What is done with the folder of a run: copied while it grows, published when it is whole."""

    def open(self, folder: Path, uri: str | None) -> Tracker:
        """Return who copies the run in ``folder``; ``uri`` is setting ``mlflow_tracking_uri``."""

    def publish(self, folder: Path, uri: str | None) -> str | None:
        """Do what follows a finished run, such as registering its model; never raises for a server.

        Returns:
            What became of it, on one line; None where there is nothing to say.
        """


class NoTracking:
    """Leaves the folder of a run alone."""

    def open(self, folder: Path, uri: str | None) -> Tracker:
        """Return a tracker that tracks nothing."""
        return NullTracker()

    def publish(self, folder: Path, uri: str | None) -> str | None:
        """Do nothing."""
        return None


class LiveTracker:
    """Copies a run from a thread of its own, which the end of the process does not wait for.

    Args:
        send: makes the copy agree with the run as it is now; may raise anything.
        where: the place of the copy, for messages.
        remedy: what the user can do later where it failed.
        every: seconds between two copies.
        close_within: seconds that ``close`` waits at most.
    """

    def __init__(
        self,
        send: Callable[[], None],
        *,
        where: str,
        remedy: str,
        every: float = EVERY,
        close_within: float = CLOSE_WITHIN,
    ) -> None:
        self._send, self._where, self._remedy = send, where, remedy
        self._every, self._close_within = every, close_within
        self._lock = threading.Lock()
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._warned = False

    def changed(self) -> None:
        """Wake the thread, which sends at most every few seconds."""
        self._wake(closing=False)

    def close(self, status: str) -> None:
        """Send what is left, waiting a bounded time."""
        thread = self._wake(closing=True)
        thread.join(self._close_within)
        late = f"no answer within {self._close_within:.0f} s" if thread.is_alive() else None
        why = late or self._failure
        if why:
            logger.warning(
                "%s: the record of this run is not complete (%s). The run folder has all of it; send it "
                "later: %s", self._where, why, self._remedy,
            )  # fmt: skip

    def _wake(self, *, closing: bool) -> threading.Thread:
        with self._lock:
            self._closing.set() if closing else self._closing.clear()
            self._news.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
                self._thread.start()
            return self._thread

    def _work(self) -> None:
        pause = self._every
        while True:
            self._news.wait()
            last = self._closing.is_set()  # read before sending, so that all written before it is sent
            self._news.clear()
            if self._try():
                pause = self._every
            else:
                pause = min(2 * pause, LONGEST_PAUSE)
                self._news.set()
            with self._lock:
                if last and self._closing.is_set():
                    self._thread = None
                    return
            self._closing.wait(pause)

    def _try(self) -> bool:
        """Send, and return whether that worked."""
        try:
            self._send()
        except Exception as error:  # whatever is wrong with the copy, the run goes on
            self._failure = reason(error)
            if not self._warned:
                logger.warning("%s: %s; the run goes on, and tries again", self._where, self._failure)
            self._warned = True
            return False
        self._failure = None
        return True


def reason(error: BaseException) -> str:
    """Return in one line why something failed: the first cause, which clients wrap in many words."""
    while not isinstance(error, DynamicPOError):
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if deeper is None:
            break
        error = deeper
    line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."
