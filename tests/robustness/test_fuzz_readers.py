"""Damaged files of every kind, to every reader: each case ends in success or in one of our errors.

``pytest`` tries 40 for each reader, ``pytest -m robustness`` 800, ``ROBUSTNESS_CASES=20000 pytest -m
robustness`` as many as it says. Success must also be right: against a plain reading of the same bytes, or
against the checksums that a file carries.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.language_model.backbone import Backbone, load_backbone
from recbole_dynamicpo.serving import folder

from .harness import fuzz, judge, quiet
from .run_targets import RECORDS, WITH_BACKBONE, copied
from .targets import DATA

READERS = {**DATA, **RECORDS}


@pytest.fixture(scope="session")
def backbone(tiny_backbone: Path) -> Backbone:
    return load_backbone(str(tiny_backbone), dtype="float32")


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path, cases: int, tally: dict[str, Counter[str]]) -> None:
    wrong = fuzz(READERS[name](tmp_path), cases, tally)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", WITH_BACKBONE)
def test_damaged_files_around_a_backbone(
    name: str,
    tmp_path: Path,
    backbone: Backbone,
    cases: int,
    tally: dict[str, Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = folder.load_backbone
    monkeypatch.setattr(  # the backbone itself is whole and need not be read a thousand times
        folder,
        "load_backbone",
        lambda place, **more: copied(backbone) if place == backbone.name else load(place, **more),
    )
    wrong = fuzz(WITH_BACKBONE[name](tmp_path, backbone), cases, tally)
    assert not wrong, "\n".join(wrong)


# --- files that nobody damaged: anything at all ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
TABLE = st.lists(st.lists(st.text(max_size=4), max_size=4).map("\t".join), max_size=4).map("\n".join)
CONTENT = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=64).map(lambda text: text.encode("utf-8", "surrogatepass")),
    JSON.map(lambda value: json.dumps(value).encode()),
    TABLE.map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@pytest.mark.parametrize("name", READERS)
def test_any_file(name: str, tmp_path: Path, cases: int, tally: dict[str, Counter[str]]) -> None:
    target = READERS[name](tmp_path)
    counts = tally.setdefault(f"{target.name}, any file", Counter())

    @settings(
        max_examples=max(10, cases // 4 // target.slow), deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(CONTENT)
    def try_one(content: bytes) -> None:
        outcome, seen = judge(target, content)
        counts[outcome] += 1
        assert outcome in ("read", "refused"), seen

    with quiet():
        try_one()
