"""The metrics of a run as points: read from journal entries, picked and packed for sending."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..storage import is_number

Entry = dict[str, Any]  # of a journal

# MLflow's limit of one request.
METRICS_AT_ONCE = 1000


@dataclass(frozen=True)
class Point:
    """The metrics of one journal entry.

    Attributes:
        kind: of the entry; steps of a kind only grow.
        step: of the entry; of a status, how many stages of that name ended before.
        time: in milliseconds since 1970.
        values: name with its group (``train/loss``) -> finite number; never empty.
    """

    kind: str
    step: int
    time: int
    values: dict[str, float]


def measured(entries: Iterable[Entry]) -> list[Point]:
    """Return the metrics of what was measured; lists and texts are no metrics."""
    found = []
    for entry in entries:
        if entry["kind"] == "status":
            continue
        values = {
            f"{entry['kind']}/{name}": float(value)
            for name, value in entry.items()
            if name not in ("step", "time") and is_number(value)
        }
        if values:
            found.append(Point(entry["kind"], entry["step"], milliseconds(entry["time"]), values))
    return found


def spent(entries: Iterable[Entry]) -> list[Point]:
    """Return time and peak memory each time that a stage ended."""
    names = {"seconds": "usage/seconds", "peak_memory_mb": "usage/peak_memory_mb"}
    found: list[Point] = []
    for entry in entries:
        values = {name: float(entry[key]) for key, name in names.items() if is_number(entry.get(key))}
        if entry["kind"] == "status" and values:
            found.append(Point("status", len(found), milliseconds(entry["time"]), values))
    return found


def unsent(points: list[Point], mark: int, shown: dict[str, float]) -> list[Point]:
    """Return the points of one kind to send.

    A resumed run writes steps again that it had lost; they are the same, so the first ones stay. A
    test that was made again may have other rows, so that its result is sent as one more step.

    Args:
        points: in the journal's order.
        mark: last step sent.
        shown: the last value of each metric in MLflow.
    """
    found = [point for point in points if point.step > mark]
    last = points[-1]
    if (
        not found
        and last.kind == "test"
        and any(shown.get(key) != value for key, value in last.values.items())
    ):
        found = [Point(last.kind, mark + 1, last.time, last.values)]
    return found


def batches(points: Iterable[Point]) -> Iterator[list[Point]]:
    """Yield points in groups that fit into one request; a point is never split."""
    batch: list[Point] = []
    size = 0
    for point in points:
        if batch and size + len(point.values) > METRICS_AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += len(point.values)
    if batch:
        yield batch


def milliseconds(seconds: float) -> int:
    """Return a time of day as MLflow writes it."""
    return round(seconds * 1000)
