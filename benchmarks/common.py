"""What the benchmarks share: options, timing ways against each other, peak memory, tables and JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

# As the console scripts do: read when torch loads its OpenMP runtime.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from recbole_dynamicpo.storage import write_json

LIBRARIES = ("torch", "transformers", "peft", "recbole")
MEGABYTE = 1e6

_Way = TypeVar("_Way")


class Spread(NamedTuple):
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median, least and greatest of ``values``."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g}..{self.high:.4g})"


def options(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        description: what is measured.
        defaults: of ``dataset`` and ``rounds``.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Every other --key=value is a setting of the package, such as --backbone=FOLDER.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: does it run at all?")
    parser.add_argument("--dataset", default="ml-100k", help="whose prompts are used (ml-100k)")
    parser.add_argument("--rounds", type=int, help="measurements of each way")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.set_defaults(**{"rounds": 3, **defaults})
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the options and the settings of the package among ``arguments``."""
    from recbole_dynamicpo.host.config import parse_overrides

    # RecBole's and peft's uses of old names; nothing that a reader of figures could act on.
    warnings.filterwarnings("ignore", category=FutureWarning)
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.quick:
        chosen.rounds = 1
    return chosen, parse_overrides(rest)


def machine(dtype: torch.dtype | str, device: str = "cpu") -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, dtype, versions."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "processor": torch.cuda.get_device_name() if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def wait_for(device: str) -> None:
    """Let the device finish what it was given, so that the clock sees it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Return the wall time of one call."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def interleave(
    ways: Mapping[_Way, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    before: Mapping[_Way, Callable[[], object]] | None = None,
) -> dict[_Way, list[float]]:
    """Return the seconds of each way, measured in turns A, B, A, B, so that all meet the same machine.

    Args:
        ways: what is measured.
        rounds: how often each is.
        device: where it works.
        before: what is done, unmeasured, each time before a way is.
    """
    times: dict[_Way, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            if before and name in before:
                before[name]()
            times[name].append(seconds(work, device))
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the ratio of two ways, taken within each round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


class PeakMemory:
    """Bytes that a block takes above what was taken at its start.

    On a GPU torch's own peak; else the kernel's high-water mark of the process's resident memory (Linux).
    What a Python heap keeps of earlier work is given back to the system first.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device.startswith("cuda")
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
            return self
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the mark so far
        self._start = resident_peak()
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident_peak()
        self.bytes = peak - self._start


def resident_peak() -> int:
    """Return the high-water mark of this process's resident memory, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print(f"\n{title}\n", *[lines[0], rule, *lines[1:]], sep="\n", flush=True)


def print_machine(found: Mapping[str, Any]) -> None:
    """Print the machine's line."""
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON if a file was asked for."""
    if path is not None:
        write_json(path, figures)
