"""What a run on a GPU comes to: tables in markdown, and the hours of the paper's main experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# The hours that the paper gives for DMPO at K = 15, on A100s.
PUBLISHED_HOURS = 62.6


class Recipe(NamedTuple):
    """The main experiment: rows and epochs of ``properties/paper.yaml``; rows of the published LastFM."""

    rows: int = 47_872
    sft_epochs: int = 5
    epochs: int = 3


class RowSeconds(NamedTuple):
    """What a row takes on one device, seconds; K = 15."""

    sft: float
    reference: float
    preference: float  # with the reference known


def from_steps(step: Mapping[str, Any], rows: int) -> RowSeconds:
    """Return seconds a row by steps as they were measured.

    Args:
        step: part ``step``: of K = 1 and K = 15 the seconds of a step whose reference is computed
            (``ours_s``), and of one where it is known (``cached_s``).
        rows: of a step. A row of SFT has one title: at most what K = 1 takes.
    """
    most, least = step["K = 15"], step["K = 1"]
    return RowSeconds(
        least["cached_s"] / rows, (most["ours_s"] - most["cached_s"]) / rows, most["cached_s"] / rows
    )


def from_use(use: Mapping[str, Any], step: Mapping[str, Any], rows: int) -> RowSeconds:
    """Return seconds a row if all passes were as full as those of part ``use``.

    A token takes 4 operations a frozen weight with a gradient and 2 without; ``step`` tells tokens alone.
    """
    speed = use["tokens_per_second"]
    tokens = {name: step[name]["tokens"] / rows for name in ("K = 1", "K = 15")}
    return RowSeconds(tokens["K = 1"] / speed, tokens["K = 15"] / speed / 2, tokens["K = 15"] / speed)


def hours(row: RowSeconds, recipe: Recipe) -> float:
    """Return the hours of SFT, the reference once, and the preference stage; evaluation is left out."""
    seconds = recipe.sft_epochs * row.sft + row.reference + recipe.epochs * row.preference
    return recipe.rows * seconds / 3600


def projected(parts: Mapping[str, Any], rows: int, recipe: Recipe) -> dict[str, Any]:
    """Return the main experiment's hours on this device, as far as the parts of one shape tell.

    Args:
        parts: name -> figures of each part.
        rows: of a step.
        recipe: what is done.
    """
    step, use = parts.get("step", {}), parts.get("use", {})
    known = all("cached_s" in step.get(name, {}) for name in ("K = 1", "K = 15"))
    if not known:
        return {"lacked": "part step at K = 1 and K = 15"}
    found: dict[str, Any] = {**recipe._asdict(), "published_a100_hours": PUBLISHED_HOURS}
    found["hours_by_steps"] = hours(from_steps(step, rows), recipe)
    if "tokens_per_second" in use:
        found["hours_by_use"] = hours(from_use(use, step, rows), recipe)
    return found


def _flat(figures: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return what a part found as lines of a name and a value."""
    lines = []
    for name, value in figures.items():
        full = f"{above}{name}"
        if isinstance(value, Mapping):
            lines += _flat(value, f"{full}, ")
        else:
            lines.append((full, value))
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).replace("|", "/")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as a page: a table a part."""
    about = {name: value for name, value in report.items() if not isinstance(value, Mapping)}
    lines = ["# This package on a GPU", "", ", ".join(f"{name} {value}" for name, value in about.items()), ""]
    for name, found in report.items():
        if isinstance(found, Mapping):
            lines += [f"## {name}", "", "| what | figure |", "|---|---|"]
            lines += [f"| {what} | {_shown(value)} |" for what, value in _flat(found)]
            lines.append("")
    return "\n".join(lines)
