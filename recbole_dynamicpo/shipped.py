"""Where the shipped YAML files and prompt templates lie."""

from __future__ import annotations

from pathlib import Path


def package_folder() -> Path:
    """Return the folder of this package's modules."""
    return Path(__file__).parent


def properties_folder() -> Path:
    """Return the folder of shipped settings and templates, in an installed package as in a checkout."""
    inside = package_folder() / "properties"
    return inside if inside.is_dir() else package_folder().parent / "properties"
