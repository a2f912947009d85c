"""The errors that a user can cause. Each message says what was got, what was wanted, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "AdapterError",
    "BackboneError",
    "CheckpointError",
    "DataError",
    "DynamicPOError",
    "LockedError",
    "NumericsError",
    "PeerError",
    "SettingsError",
    "StoppedError",
    "TrackingError",
]


class DynamicPOError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message; what it quotes of a damaged file may be no valid Unicode."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class SettingsError(DynamicPOError):
    """A setting is unknown, of the wrong type or out of range; all problems are in one message."""


class DataError(DynamicPOError):
    """A data file, row or title cannot be used; the message names the file and the row."""


class BackboneError(DynamicPOError):
    """The causal language model cannot be found, fetched or used."""


class AdapterError(DynamicPOError):
    """An adapter folder is missing, damaged, or made for another backbone."""


class CheckpointError(DynamicPOError):
    """A training checkpoint is partial, damaged, or belongs to another run."""


class TrackingError(DynamicPOError):
    """MLflow cannot be reached, or refuses what is sent to it."""


class NumericsError(DynamicPOError):
    """A loss, gradient or log-probability is not finite; the message names the rows."""


class LockedError(DynamicPOError):
    """Another process works in the folder; the message names it."""


class PeerError(DynamicPOError):
    """Another process of the same run ended, or does not answer."""


class StoppedError(BaseException):
    """The run was asked to stop; it saved what it had, and the message says how to go on.

    Like KeyboardInterrupt it may be raised anywhere and is no ``Exception``: whoever forgives all errors,
    here or in a library, must not forgive this.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string; case is no matter.

    Close is what a slip of some letters makes of it (in a word of four, two that changed places), or what
    begins or ends with it, as ``timestamp`` with ``time``.
    """
    spelt: dict[str, str] = {}
    for one in known:
        spelt.setdefault(one.casefold(), one)
    wanted = name.casefold()
    close = difflib.get_close_matches(wanted, spelt, n=1, cutoff=0.7)
    close = close or sorted((other for other in spelt if _goes_on(wanted, other)), key=len)
    return f" (did you mean '{spelt[close[0]]}'?)" if close else ""


def _goes_on(one: str, other: str) -> bool:
    """Say whether the shorter of two names, of at least three letters, is how the longer begins or ends."""
    short_one, long_one = sorted((one, other), key=len)
    return len(short_one) >= 3 and (long_one.startswith(short_one) or long_one.endswith(short_one))


def short(value: Any) -> str:
    """Return ``repr(value)``, cut where it is too long for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
