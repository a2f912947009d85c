"""The examples run as they stand, on a small data set and with a tiny backbone."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> None:
    """Run an example as a script with these arguments."""
    sys.argv[:] = [str(EXAMPLES / name), *arguments]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def flags(toy_settings: dict[str, Any]) -> list[str]:
    """Settings of a run of seconds, as a command line has them."""
    own = {"data_path", "load_col", "checkpoint_dir", "mlflow_tracking_uri"}
    values = {key: value for key, value in toy_settings.items() if key not in own}
    return [f"--{key}={value}" for key, value in {**values, "mlflow_tracking_uri": "none"}.items()]


def test_train_then_rank(
    flags: list[str], toy_settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"--{key}={toy_settings[key]}" for key in ("data_path", "load_col")]
    run("train.py", "--dataset=toy", *flags, *more)
    said = capsys.readouterr().out
    assert re.search(r"^ndcg@5: 0\.\d{4}$", said, re.MULTILINE)
    (folder,) = re.findall(r"^python examples/rank\.py (saved/DynamicPO-toy-\S+)$", said, re.MULTILINE)
    run("rank.py", folder)
    lines = capsys.readouterr().out.splitlines()
    ranked, catalogue = lines[:3], lines[3:]
    assert {re.fullmatch(r"\d\. (\w+)  \(-\d+\.\d\d nats\)", line)[1] for line in ranked} == {
        *("Alien", "Babe", "Fargo")
    }
    assert [line.partition(". ")[0] for line in catalogue] == [str(place) for place in range(1, 11)]


def test_your_own_data(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"u{n % 12},i{n * 7 % 40},{1_700_000_000 + n},Film {n * 7 % 40}" for n in range(96)]
    (tmp_path / "films.csv").write_text("user,item,time,title\n" + "\n".join(lines) + "\n", encoding="utf-8")
    run("your_own_data.py", "films.csv", *flags)
    said = capsys.readouterr().out
    assert said.startswith("films: 40 items, 40 distinct titles")
    assert "'ndcg@5': 0." in said.splitlines()[-1]
