"""A run as lines of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.storage import load_json, write_json
from recbole_dynamicpo.tracking.shown import PLAIN, curve_lines, read_run, setting_lines, spark

from ..helpers.run_folders import RunFolder, toy_record


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0.0, 7.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, 0, 7], "█▁█"),
        ([2.5], "▅"),
        ([3, 3, 3], "▅▅▅"),
        ([0, float("nan"), 7], "▁ █"),
        ([float("nan")] * 2, "  "),
    ],
)
def test_a_curve_as_a_line(values: list[float], line: str) -> None:
    assert spark(values) == line


def test_a_long_curve_is_averaged() -> None:
    assert spark([0.0] * 480 + [1.0] * 480) == "▁" * 24 + "█" * 24


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    run = read_run(RunFolder(tmp_path / "run").whole().path)
    lines = list(curve_lines(run, PLAIN))
    assert lines == [
        "sft        loss, nats _+@ 0.1250 to 0.3750, steps 1 to 3",
        "sft        NDCG@5     + 0.5000 to 0.5000, steps 3 to 3",
        "preference loss, nats _-*@ 0.1250 to 0.5000, steps 1 to 4",
        "preference NDCG@5     + 0.7500 to 0.7500, steps 4 to 4",
    ]


def test_the_settings_that_differ(tmp_path: Path) -> None:
    params = {"beta": 7.5, "seed": 2020, "lora_targets": ["q_proj"], "topk": [1], "data_source": None}
    run = read_run(RunFolder(tmp_path / "run", toy_record(params=params)).whole().path)
    assert run.changed() == {"beta": 7.5, "lora_targets": ["q_proj"]}
    ours, theirs = run.settings()
    assert set(ours) == {"beta", "seed", "lora_targets", "data_source"}
    assert theirs == {"topk": [1]}
    assert setting_lines({"a": [1, 2], "b": "x y"}) == ["--a=[1, 2] --b=x y"]


def test_stages_in_folders_of_their_own(tmp_path: Path) -> None:
    """As the stages of a flow leave them."""
    stages = {"evaluate": str(tmp_path / "evaluate-1")}
    folder = RunFolder(tmp_path / "run", toy_record(stages=stages))
    (tmp_path / "evaluate-1").mkdir()
    folder.evaluate(place=tmp_path / "evaluate-1")
    assert read_run(tmp_path / "run").report["contestants"][-1]["name"] == "after DynamicPO"


def test_a_run_without_a_report_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match=r"run.report\.json: not a readable report"):
        read_run(tmp_path / "run")


def test_the_command_shows_curves_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run", toy_record(params={"beta": 7.5, "topk": [1]})).whole()
    report = load_json(run.path / "report.json")
    write_json(run.path / "report.json", {**report, "seconds": {}, "notes": []})
    assert main(["show", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "preference loss, nats" in shown
    assert "settings that differ from the defaults:\n--beta=7.5\n" in shown
    assert main(["show", str(run.path), "--all-settings"]) == 0
    assert "settings:\n--beta=7.5 --topk=[1]\n" in capsys.readouterr().out
