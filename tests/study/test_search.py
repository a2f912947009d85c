"""A search: what it tries, that it goes on, gives up, and never sees a test row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DynamicPOError, SettingsError, StoppedError
from recbole_dynamicpo.job import Job
from recbole_dynamicpo.stage_results import StageResult
from recbole_dynamicpo.study import search as module
from recbole_dynamicpo.study.search import BEST_FILE, DATABASE, SPACE, search
from recbole_dynamicpo.tracking.journal import Journal


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in toy_settings.items() if name != "checkpoint_dir"}
    return {**own, "preference_rows": 24, "train_batch_size": 4, "valid_rows": 6, "register": False}


@pytest.fixture
def job(settings: dict[str, Any], tmp_path: Path) -> Job:
    return Job("DynamicPO", "toy", (), settings, str(tmp_path / "saved"))


def trials(home: Path) -> list[Any]:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{home / DATABASE}").trials


def fake(monkeypatch: pytest.MonkeyPatch, job: Job, scores: list[list[float]]) -> list[Job]:
    """Let the validations of each trial say so, without training; return the jobs that are run."""
    ran: list[Job] = []
    left = iter(scores)

    def train(own: Job, stage: str, prepared: StageResult, progress: Any = None) -> StageResult:
        folder = Path(prepared.outputs["places"][stage][1])
        if stage == "sft":
            return StageResult(stage, "", str(folder))
        ran.append(own)
        values = next(left)
        for step, value in enumerate(values, start=1):
            Journal(folder / "metrics.jsonl").write(stage, step, "valid", {"ndcg_at_5": value})
            progress(stage, step + 1, len(values))
        return StageResult(stage, "", str(folder), {"valid_score": max(values)})

    monkeypatch.setattr(module.pipeline, "train", train)
    return ran


def test_a_search_trains_and_validates_and_ranks_no_test_row(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The real thing, two trials; a fourth of six steps is one, rounded down: each step is validated."""
    words = [f"--{name}={value}" for name, value in {**settings, "catalogue_prior": None}.items()]
    assert main(["study", "--dataset=toy", "--out=search", "--search=2", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("trial ") == 2
    assert "best of 2 trials on validation rows" in said
    best = json.loads((Path("search") / BEST_FILE).read_text())
    assert set(best["settings"]) == set(SPACE)
    for name, value in best["settings"].items():
        assert f"--{name}={value:.6g}" in said
    stages = {path.name.partition("-")[0] for path in Path("search/saved/stages").glob("[a-z]*")}
    assert stages == {"prepare", "sft", "preference"}
    for path in Path("search/saved/stages").glob("preference-*"):
        kinds = [entry["kind"] for entry in Journal(path / "metrics.jsonl").entries()]
        assert kinds.count("valid") == 6
        assert "test" not in kinds


def test_a_search_goes_on_with_the_trial_that_was_killed(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = fake(monkeypatch, job, [[0.2], [0.5]])
    search(job, tmp_path / "search", 2, None, lambda text: None)

    def die(*args: Any, **kwargs: Any) -> None:
        raise StoppedError("stopped")

    monkeypatch.setattr(module.pipeline, "train", die)
    with pytest.raises(StoppedError):
        search(job, tmp_path / "search", 4, None, lambda text: None)
    killed = trials(tmp_path / "search")[-1].params
    more = fake(monkeypatch, job, [[0.1], [0.4]])
    found = search(job, tmp_path / "search", 4, None, lambda text: None)
    assert {name: more[0].overrides[name] for name in SPACE} == killed
    assert len(more) == 2
    assert found["settings"] == {name: ran[1].overrides[name] for name in SPACE}
    assert found["valid_score"] == 0.5
    assert search(job, tmp_path / "search", 4, None, lambda text: None) == found, "nothing is left to do"


def test_a_trial_below_the_median_is_given_up(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the fifth on."""
    fake(monkeypatch, job, [*[[0.5, 0.6]] * 4, [0.1, 0.9]])
    told: list[str] = []
    found = search(job, tmp_path / "search", 5, None, told.append)
    assert told[-1].startswith("trial 4: beta ")
    assert told[-1].endswith(": pruned")
    assert [trial.state.name for trial in trials(tmp_path / "search")] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert found["valid_score"] == 0.6


def test_what_is_searched_lies_within_bounds(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = fake(monkeypatch, job, [[0.5]] * 6)
    search(job, tmp_path / "search", 6, None, lambda text: None)
    for one in ran:
        assert all(low <= one.overrides[name] <= high for name, (low, high, _) in SPACE.items())
    assert len({one.overrides["beta"] for one in ran}) == 6


def test_other_settings_are_another_search(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, job, [[0.5]])
    search(job, tmp_path / "search", 1, None, lambda text: None)
    other = Job("DynamicPO", "toy", (), {**job.overrides, "num_clusters": 2}, job.store)
    with pytest.raises(SettingsError, match="search with other num_clusters; wanted the same settings"):
        search(other, tmp_path / "search", 2, None, lambda text: None)


def test_no_time_for_a_single_trial(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DynamicPOError, match="no trial was finished"):
        search(job, tmp_path / "search", 2, 0.0, lambda text: None)


def test_optuna_is_asked_for_by_name(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"recbole-dynamicpo\[study\]"):
        search(job, tmp_path / "search", 2, None, lambda text: None)
