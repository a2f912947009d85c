"""Where the shipped YAML files and prompt templates lie."""

from __future__ import annotations

from pathlib import Path


def properties_folder() -> Path:
    """Return ``properties/``: inside the installed package, else beside it in a checkout."""
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "properties"
