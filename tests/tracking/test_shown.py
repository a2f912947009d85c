"""A run as lines of text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.host.config import plain_config
from recbole_dynamicpo.settings import read_settings
from recbole_dynamicpo.storage import load_json, write_json
from recbole_dynamicpo.tracking.record import write_record
from recbole_dynamicpo.tracking.shown import PLAIN, curve_lines, read_run, setting_lines, spark
from recbole_dynamicpo.training.recording import params_of

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
    params = {"beta": 7.5, "seed": 2020, "lora_targets": ["all-linear"], "topk": [1], "data_source": None}
    run = read_run(RunFolder(tmp_path / "run", toy_record(params=params)).whole().path)
    assert run.changed() == {"beta": 7.5, "lora_targets": ["all-linear"]}
    ours, theirs = run.settings()
    assert set(ours) == {"beta", "seed", "lora_targets", "data_source"}
    assert theirs == {"topk": [1]}
    assert setting_lines({"a": [1, 2], "b": "x y"}) == ["--a=[1, 2] --b=x y"]


@pytest.mark.parametrize(("model", "dataset"), [("DynamicPO", "ml-100k"), ("SDPO", "lastfm"), ("Own", "toy")])
@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_a_run_without_settings_differs_in_none(
    model: str, dataset: str, device: str, dtype: str, tmp_path: Path
) -> None:
    """Its settings are those of RecBole's configuration, as it reads the shipped files."""
    name = "DynamicPO" if model == "Own" else model
    config = plain_config(name, dataset, [], {"use_gpu": False})
    params = {**params_of(config, read_settings(config)), "dtype": dtype}
    described = {"model": model, "dataset": dataset, "ingredients": {"fact.device": device}}
    record = toy_record(params=params, **described)
    assert read_run(RunFolder(tmp_path / "run", record).whole().path).changed() == {}
    other = toy_record(
        params={**params, "dtype": "float16", "retriever_settings.hidden_size": 8}, **described
    )
    run = read_run(RunFolder(tmp_path / "other", other).whole().path)
    assert run.changed() == {"dtype": "float16", "retriever_settings.hidden_size": 8}


def test_stages_in_folders_of_their_own(tmp_path: Path) -> None:
    """As the stages of a flow leave them."""
    stages = {"evaluate": str(tmp_path / "evaluate-1")}
    folder = RunFolder(tmp_path / "run", toy_record(stages=stages))
    (tmp_path / "evaluate-1").mkdir()
    folder.evaluate(place=tmp_path / "evaluate-1")
    assert read_run(tmp_path / "run").report["contestants"][-1]["name"] == "after DynamicPO"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the run is not finished, as it has no report.json yet; run it again with --resume={}"),
        ({"stages": {"evaluate": "evaluate-1"}}, "as it has no report.json yet; run its job again"),
        ({"model": "SASRec"}, "the run of a model of RecBole's own, which has no report.json"),
    ],
)
def test_a_run_without_a_report_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", toy_record(**changes)).path
    with pytest.raises(DataError, match=re.escape(said.format(run))):
        read_run(run)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has neither record\.json nor report\.json; wanted the folder of a run"
    ):
        read_run(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder; wanted the folder of a run"):
        read_run(tmp_path / "gone")


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
    write_record(run.path, toy_record(params={"beta": 1.0}))
    assert main(["show", str(run.path)]) == 0
    assert "settings that differ from the defaults:\nnone\n" in capsys.readouterr().out
