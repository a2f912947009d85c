"""The errors that a user can cause. Each message says what was got, what was wanted, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DynamicPOError(Exception):
    """Base of every error that this package raises on purpose."""


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


class NumericsError(DynamicPOError):
    """A loss, gradient or log-probability is not finite; the message names the rows."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
