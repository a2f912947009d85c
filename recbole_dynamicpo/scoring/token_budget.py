"""How many tokens may pass the model at once, and what to do when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from ..names import AUTO

if TYPE_CHECKING:
    from ..settings import Settings

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# What torch says where the processor's own memory cannot be had; it has no kind of error for that.
_ALLOCATOR = "DefaultCPUAllocator"

T = TypeVar("T")


class TokenBudget:
    """Padded tokens of one forward pass; halved for the rest of the run where memory runs out.

    Args:
        tokens: to begin with; a single row may exceed it.
        fills: the rows of an optimizer step make up passes as large as the budget allows, however many rows a
            batch has.
        max_memory: GiB that this process may take before the budget is halved, 0 for no limit. Meant
            for CPUs, where nothing else says in time that memory is short. Linux only.
        beside: what a pass costs beside its tokens, in tokens; None: so much that fewer passes cost less than
            less padding.
    """

    def __init__(
        self, tokens: int, max_memory: float = 0.0, *, fills: bool = False, beside: int | None = None
    ) -> None:
        self.tokens = tokens
        self.fills = fills
        self.beside = beside
        self.max_memory = max_memory
        self._warned = False
        if max_memory:
            _reset_peak()

    @classmethod
    def of(cls, settings: Settings, device: torch.device) -> TokenBudget:
        """Return the budget that settings want on a device."""
        fills = settings.fill_passes
        return cls(
            settings.tokens_per_batch,
            settings.max_memory,
            fills=device.type == "cuda" if fills == AUTO else bool(fills),
            beside=beside_on(device),
        )

    def split(self, sizes: Sequence[int]) -> list[list[int]]:
        """Return consecutive groups of row indices, a pass each, which fit and together cost least.

        Args:
            sizes: (n,) tokens of each row; rows of similar size should lie beside each other.
        """
        beside = self.tokens if self.beside is None else self.beside
        cost, start_of = [0], [0]  # of the best groups of the first n rows, and where the last of them starts
        for stop in range(1, len(sizes) + 1):
            widest, best = 0, (math.inf, 0)
            for start in range(stop - 1, -1, -1):
                widest = max(widest, sizes[start])
                padded = widest * (stop - start)
                if padded > self.tokens and stop - start > 1:
                    break
                best = min(best, (cost[start] + padded + beside, start))
            cost.append(int(best[0]))
            start_of.append(best[1])
        groups: list[list[int]] = []
        stop = len(sizes)
        while stop:
            groups.insert(0, list(range(start_of[stop], stop)))
            stop = start_of[stop]
        return groups

    def shrink(self, rows: int, tokens: int, reason: str) -> bool:
        """Halve the budget after a forward pass that took too much; say whether it helps.

        Args:
            rows: parts that the pass could have been split into; one alone cannot be.
            tokens: padded tokens of that pass.
            reason: what happened, for the log.
        """
        if rows == 1 or self.tokens == 1:
            return False
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        logger.warning("%s with %d rows in one pass: now at most %d tokens a pass", reason, rows, self.tokens)
        return True

    def lower(self, tokens: int) -> None:
        """Go on with what an earlier part of the run had come down to; 0 changes nothing."""
        self.tokens = min(self.tokens, tokens or self.tokens)

    def check(self, rows: int, tokens: int) -> None:
        """Halve the budget if the memory limit was exceeded since the last look."""
        if not self.max_memory:
            return
        peak = _peak_gib()
        if peak <= self.max_memory:
            return
        reason = f"{peak:.2f} GiB in use, max_memory is {self.max_memory:g}"
        if self.shrink(rows, tokens, reason):
            _reset_peak()
        elif not self._warned:
            self._warned = True
            logger.warning("%s with a single row: it cannot be split; going on", reason)


def beside_on(device: torch.device) -> int | None:
    """Return what a pass costs there beside its tokens, in tokens.

    A GPU is busy with few tokens as with many. On a CPU reading the weights takes about as long as computing
    with some dozens of tokens does.
    """
    return 64 if device.type == "cpu" else None


class Shortage(NamedTuple):
    """An allocation that failed: the reason that torch gave."""

    reason: str

    def error(self) -> torch.OutOfMemoryError:
        """Return the error to raise where there is no way out."""
        return torch.OutOfMemoryError(self.reason)


def if_memory_allows(work: Callable[[], T]) -> T | Shortage:
    """Return what ``work`` returns, or that memory ran out.

    What the failed pass had made is free again by then: the error that held it is gone, and the blocks that
    torch keeps of a CUDA device are given back.
    """
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Shortage(reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that an allocation failed, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _ALLOCATOR in str(error)


def _peak_gib() -> float:
    """Return the most memory in use since the last reset, in GiB; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _GIB
    except (OSError, ValueError, IndexError):
        pass
    return 0.0


def _reset_peak() -> None:
    """Let the kernel forget the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        logger.warning("max_memory: this system does not let the peak be measured anew; it is the run's")
