"""A catalogue of a million items fits a small machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.dataset import dataset
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.host.run import run

from .conftest import at_length

GIB = 1 << 30


def test_a_million_items_within_four_gigabytes(
    tmp_path: Path, pytestconfig: pytest.Config, tally: dict[str, Counter[str]]
) -> None:
    if not at_length(pytestconfig):
        pytest.skip("takes two minutes: part of pytest -m robustness")
    command = [sys.executable, "-W", "ignore", "-m", "tests.robustness.large", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECBOLE_DYNAMICPO_CACHE": str(tmp_path / "cache")}
    home = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    peak = int(done.stdout.split()[-1])
    assert peak < 4 * GIB
    tally.setdefault(f"a million items in {peak / GIB:.2f} GiB", Counter())["read"] += 1


def test_fewer_rows_at_once_rank_alike(
    toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 items and a padding: 100 scores hold two rows, where eight were asked for."""
    settings = {**toy_settings, "epochs": 0, "compare_stages": False, "eval_batch_size": 8}
    sizes, ranks = [], []
    write = dataset.DynamicPODataset.prompt_rows
    for name, most in (("all", 1 << 24), ("two", 100)):
        seen: list[int] = []

        def prompt_rows(self: Any, rows: Any, scored: Any, seen: list[int] = seen) -> Any:
            seen.append(len(rows))
            return write(self, rows, scored)

        monkeypatch.setattr(dataset, "_MOST_SCORES", most)
        monkeypatch.setattr(dataset.DynamicPODataset, "prompt_rows", prompt_rows)
        run("SFTRec", "toy", overrides={**settings, "checkpoint_dir": str(tmp_path / name)})
        (folder,) = (tmp_path / name).iterdir()
        sizes.append(seen[-1])
        ranks.append(read_ranks(folder).ranks.tolist())
    assert sizes == [4, 2]  # of the last batch of 12 rows
    assert ranks[0] == ranks[1]
