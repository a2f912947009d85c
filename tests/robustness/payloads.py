"""Payloads that leave a canary behind where somebody runs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> object:
        return os.mkdir, (self.canary,)


def message_of(call: Callable[[], Any], kind: type[Exception]) -> str:
    """Return what ``call`` says when it refuses with ``kind``; nothing where it goes well."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def code(canary: Path) -> str:
    """Return a Python expression that makes the canary."""
    return f"__import__('os').mkdir({str(canary)!r})"
