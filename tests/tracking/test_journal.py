"""The journal of a run survives lines that were cut short."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from recbole_dynamicpo.tracking.journal import Journal


def test_an_entry_behind_a_cut_line_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write("sft", 1, "train", {"loss": 2.0})
    with journal.path.open("ab") as handle:
        handle.write(b'{"stage": "sft", "ste')
    journal.write("sft", 2, "train", {"loss": 1.0})
    journal.write("sft", 3, "train", {"loss": 0.5})
    with caplog.at_level(logging.WARNING):
        found = [(entry["step"], entry["loss"]) for entry in journal.entries()]
    assert found == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert f"{journal.path}, line 2" in caplog.text
    journal.rewind("sft", 2, ())
    assert [entry["step"] for entry in journal.entries()] == [1, 2]
    assert journal.path.read_bytes().count(b"\n") == 2
