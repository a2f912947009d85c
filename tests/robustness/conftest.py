"""Marks everything in this folder ``robustness``, decides how long it takes, and counts what was tried.

By default each file reader gets a few damaged files. ``pytest -m robustness`` tries many more, and
``ROBUSTNESS_CASES=20000 pytest -m robustness`` as many as it says for each reader.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .resumed import undisturbed, warm  # noqa: F401

FOLDER = Path(__file__).parent
SHORT, LONG = 40, 800  # damaged files for each reader
TALLY = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.robustness)


def at_length(config: pytest.Config) -> bool:
    """Say whether the long versions were asked for."""
    return str(config.getoption("markexpr", "")).strip() == "robustness"


@pytest.fixture(scope="session")
def cases(pytestconfig: pytest.Config) -> int:
    """How many damaged files each reader gets."""
    given = os.environ.get("ROBUSTNESS_CASES")
    return int(given) if given else (LONG if at_length(pytestconfig) else SHORT)


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> dict[str, Counter[str]]:
    """Counts by reader or vector; printed at the end of the run."""
    return pytestconfig.stash.setdefault(TALLY, {})


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """The path that payloads make; checked after each test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the payload was run"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash.get(TALLY, {})
    if not tally:
        return
    terminalreporter.section("robustness: what was tried")
    total: Counter[str] = Counter()
    for name, counts in sorted(tally.items()):
        total.update(counts)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        terminalreporter.write_line(f"{name:<42} {counts.total():>7} tried: {told}")
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.items()))
    terminalreporter.write_line(f"{'all':<42} {total.total():>7} tried: {told}")
