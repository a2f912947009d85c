"""A study of seconds: run, killed, gone on with; cells that fail; hours that are not enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo import pipeline
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import NumericsError, SettingsError, StoppedError
from recbole_dynamicpo.job import Job
from recbole_dynamicpo.settings import properties_folder
from recbole_dynamicpo.study import run as study_run
from recbole_dynamicpo.study.grid import Cell, cells
from recbole_dynamicpo.study.results import CELLS, keep, kept_cells
from recbole_dynamicpo.study.run import Study, run_study
from recbole_dynamicpo.title_trie.catalogue_scorer import CatalogueScorer
from recbole_dynamicpo.tracking.journal import Journal

from .made_cells import made_cell

AXES = {"objective": ["dmpo"], "dynamic": [False, True], "num_negatives": [1, 4], "seed": [7]}
SMALL = {
    "likelihood": "catalogue", "prompt": "sequence", "positions": "all", "window": 4, "max_history": 8,
    "sft_rows": 24, "preference_rows": 24, "sft_batch_size": 12, "train_batch_size": 12,
}  # fmt: skip


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """Those of seconds that the study's own file does not have."""
    file = (properties_folder() / "collapse.yaml").read_text()
    own = {**toy_settings, **SMALL}
    kept = {name: value for name, value in own.items() if f"\n{name}:" not in file}
    return {n: v for n, v in kept.items() if n not in (*AXES, "checkpoint_dir")} | {"num_candidates": 6}


@pytest.fixture
def study(settings: dict[str, Any], tmp_path: Path) -> Study:
    files = (str(properties_folder() / "collapse.yaml"),)
    return Study(Job("DynamicPO", "toy", files, settings, str(tmp_path / "saved")), AXES, tmp_path / "study")


def command(settings: dict[str, Any], *more: str) -> list[str]:
    axes = {"objective": "dmpo", "num_negatives": "[1,4]", "seed": 7}
    words = [f"--{name}={value}" for name, value in {**settings, **axes}.items()]
    given = [word for word in words if not any(word.startswith(one.partition("=")[0]) for one in more)]
    return ["study", "--dataset=toy", "--out=study", *given, *more]


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / CELLS).glob("*.json"))


def test_a_killed_study_goes_on_where_it_was(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its third cell; then the first two stay as they are, byte for byte."""
    script = [sys.executable, "-m", "recbole_dynamicpo.cli", *command(settings)]
    home, environment = tmp_path / "study", {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        while len(list((home / "saved" / "stages").glob("preference-*"))) < 3:
            assert child.poll() is None, child.stderr
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    order = [cell.name for cell in cells(AXES)]
    assert names(home) == sorted(order[:2])
    before = {path.name: path.read_bytes() for path in (home / CELLS).iterdir() if path.is_file()}
    assert main(command(settings)) == 0
    assert names(home) == sorted(order)
    assert {name: (home / CELLS / name).read_bytes() for name in before} == before
    assert len(list((home / "saved" / "stages").glob("sft-*"))) == 1
    said = capsys.readouterr().out
    assert "4 runs done, 0 failed, 0 left" in said
    assert "dmpo: the plain form" in said
    assert (home / "figure.png").is_file()
    assert "## Paired tests" in (home / "table.md").read_text()


def test_one_sft_stage_and_one_reference_for_all_cells(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference speaks in the first cell alone, of the most negatives; those of fewer are among them."""
    asked: list[str] = []
    logps = CatalogueScorer.logps

    def noted(self: CatalogueScorer, *args: Any) -> Any:
        asked.append(f"{args[-1]} {len(names(study.home))}")  # the voice, where one is named
        return logps(self, *args)

    monkeypatch.setattr(CatalogueScorer, "logps", noted)
    outcome = run_study(study)
    assert (len(outcome.done), outcome.failed, outcome.left) == (4, [], [])
    assert {told for told in asked if told.startswith("reference")} == {"reference 0"}
    found = list(kept_cells(study.home))
    assert {one["ranked"] for one in found} == {"after DynamicPO"}
    assert {one["rows"] for one in found} == {12}
    assert all(one["steps"] == 2 and one["seconds"]["preference"] > 0 for one in found)
    assert all(0 <= one["violated"] <= one["boundary"] <= 1 for one in found)
    stages = list((tmp_path / "saved" / "stages").glob("*"))
    kinds = [path.name.partition("-")[0] for path in stages if path.is_dir()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "prepare": 1, "sft": 1, "preference": 4, "evaluate": 4,
    }  # fmt: skip
    for path in stages:
        if path.name.startswith("preference-"):
            assert "valid" not in {entry["kind"] for entry in Journal(path / "metrics.jsonl").entries()}


def fake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float = 10.0, failing: tuple[str, ...] = ()
) -> list[str]:
    """Let cells take so long on a clock of the test's, or fail; return those that are run."""
    clock, ran = [0.0], []

    def cell_run(cell: Cell, job: Job) -> dict[str, Any]:
        ran.append(cell.name)
        clock[0] += seconds
        if cell.name in failing:
            raise NumericsError("loss nan in rows [3]")
        spent = {"sft": 0.0, "preference": seconds / 2, "evaluate": seconds / 2}
        values = pipeline.prepare(job).outputs["ingredients"]
        return made_cell(tmp_path / "runs", cell, [1, 2], seconds=spent, ingredients=values)

    monkeypatch.setattr(study_run, "run_cell", cell_run)
    monkeypatch.setattr(study_run.time, "monotonic", lambda: clock[0])
    return ran


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = fake(monkeypatch, tmp_path, failing=("dmpo-plain-K4-s7",))
    outcome = run_study(study)
    assert (outcome.failed, len(outcome.done)) == (["dmpo-plain-K4-s7"], 3)
    errors = [one["error"] for one in kept_cells(study.home) if "error" in one]
    assert errors == ["NumericsError: loss nan in rows [3]"]
    assert len(ran) == 4
    ran = fake(monkeypatch, tmp_path)
    assert len(run_study(study).done) == 4
    assert ran == ["dmpo-plain-K4-s7"]


def test_no_cell_is_begun_that_would_not_fit(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ten seconds each; in 25 seconds there is room for two, the third would end at 30."""
    ran, told = fake(monkeypatch, tmp_path), []
    outcome = run_study(study, hours=25 / 3600, tell=told.append)
    assert (len(outcome.done), len(outcome.left)) == (2, 2)
    assert len(ran) == 2
    assert told[-1] == "no time for dmpo-plain-K1-s7 and 1 after it"
    assert run_study(study, hours=0).done == outcome.done


def test_a_folder_of_other_settings_is_refused(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, tmp_path)
    run_study(study)
    other = replace(study, job=replace(study.job, overrides={**study.job.overrides, "beta": 0.5}))
    with pytest.raises(SettingsError, match=r"other beta; wanted the same settings, or another --out"):
        run_study(other)


def test_a_grid_with_a_wrong_cell_is_refused_before_it_begins(study: Study) -> None:
    """More negatives than the candidates have."""
    with pytest.raises(SettingsError, match="num_negatives: got 9"):
        run_study(replace(study, axes={**AXES, "num_negatives": [1, 9]}))
    assert names(study.home) == []


def test_cells_of_other_code_are_taken_with_a_word(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake(monkeypatch, tmp_path)
    run_study(study)
    (first, *_) = kept_cells(study.home)
    cell = Cell(*(first[name] for name in ("objective", "dynamic", "num_negatives", "seed")))
    keep(study.home, cell, {**first, "code": "other"})
    assert len(run_study(study).done) == 4
    assert f"made by other code than this, and taken as they are: {cell.name}" in caplog.text


def test_a_study_that_is_stopped_says_how_to_go_on(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any) -> None:
        raise StoppedError("stopped by SIGTERM after step 3 of stage sft")

    monkeypatch.setattr(study_run, "run_cell", stop)
    assert main(command(settings)) == 128 + signal.SIGTERM
    assert "the same command goes on with the study in study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds=0"], "--seeds: got 0, wanted at least 1"),
        (["--hours=-1"], "--hours: got -1, wanted at least 0"),
        (["--grid=nowhere.yaml"], "grid nowhere.yaml: cannot be read"),
        (["--objective=dpo"], "objective: got 'dpo'"),
    ],
)
def test_wrong_arguments(
    more: list[str], said: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(settings, *more)) == 2
    assert said in capsys.readouterr().err


def test_seeds_count_from_the_grids_first(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = fake(monkeypatch, tmp_path)
    assert main(command(settings, "--seeds=2", "--dynamic=[True]")) == 0
    assert ran == [f"dmpo-dynamic-K{width}-s{seed}" for seed in (7, 8) for width in (4, 1)]
    kept = json.loads((Path("study") / CELLS / f"{ran[0]}.json").read_text())
    assert (kept["num_negatives"], kept["seed"]) == (4, 7)
