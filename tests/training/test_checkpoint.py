"""A killed run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_dynamicpo.cli import run_recbole
from recbole_dynamicpo.errors import CheckpointError, LockedError
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.host import run as host_run
from recbole_dynamicpo.host.config import checked_config
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.likelihoods.likely import LikelyTitles
from recbole_dynamicpo.storage import locked
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.tracking.record import settings_of_run
from recbole_dynamicpo.training import trainer
from recbole_dynamicpo.training.checkpoint import load_progress

from .test_dense_rows import DENSE

# What is no part of a run, and nobody's business here.
OF_THE_MACHINE = ["--mlflow_tracking_uri=None", "--state=WARNING", "--show_progress=False"]
OTHER = "cannot be resumed with other settings or data:\n  "
# Two stages of two epochs with three steps each.
STEPS = 12


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **toy_settings,
        "sft_epochs": 2,
        "epochs": 2,
        "lora_dropout": 0.1,
        "compare_stages": False,
        "eval_rows": 4,
    }


Outcome = tuple[list[float], dict[str, torch.Tensor]]


def outcome(folder: Path, last: str = "preference") -> Outcome:
    """Return all training losses in order and the adapter of the last stage."""
    entries = [entry for entry in Journal(folder / "metrics.jsonl").entries() if entry["kind"] == "train"]
    return [entry["loss"] for entry in entries], load_file(folder / last / "adapter_model.safetensors")


def only_run(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], Path]:
    """Return settings with an output folder of their own, and that folder."""
    folder = Path(settings["checkpoint_dir"]) / name
    return {**settings, "checkpoint_dir": str(folder)}, folder


@pytest.fixture(scope="module")
def whole_runs() -> list[tuple[dict[str, Any], Path]]:
    """Settings and folder of the one undisturbed run."""
    return []


@pytest.fixture
def whole(
    settings: dict[str, Any], whole_runs: list[tuple[dict[str, Any], Path]]
) -> tuple[dict[str, Any], Path]:
    """Settings and folder of a run that nobody disturbed; both are only read."""
    if not whole_runs:
        own, home = only_run(settings, "whole")
        run("DynamicPO", "toy", overrides=own)
        whole_runs.append((own, next(home.iterdir())))
    return whole_runs[0]


@pytest.fixture
def undisturbed(whole: tuple[dict[str, Any], Path]) -> Outcome:
    """What that run came to."""
    return outcome(whole[1])


@pytest.fixture
def finished(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A copy of its folder that may be altered, and its settings."""
    settings, folder = whole
    copy = Path(shutil.copytree(folder, tmp_path / "finished" / folder.name))
    return {**settings, "checkpoint_dir": str(copy.parent)}, copy


def at_step(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, act: Callable[[], None]) -> None:
    """Call ``act`` when a training step is in the journal."""
    write = Journal.write

    def watched(self: Journal, *entry: Any) -> None:
        write(self, *entry)
        if entry[:3] == (stage, step, "train"):
            act()

    monkeypatch.setattr(Journal, "write", watched)


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the journal be the last thing that a run does at its ``steps``-th training step."""
    write, seen = Journal.write, []

    def dying(self: Journal, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        write(self, stage, step, kind, values)
        seen.append(kind)
        if seen.count("train") == steps:
            raise Killed

    monkeypatch.setattr(Journal, "write", dying)


def test_killed_at_any_step_and_resumed_equals_undisturbed(
    settings: dict[str, Any], undisturbed: Outcome
) -> None:
    losses, adapter = undisturbed
    assert len(losses) == STEPS
    for steps in (1, 2, 4, 6, 7, 10, 12):
        cut, home = only_run(settings, f"cut{steps}")
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed):
                run("DynamicPO", "toy", overrides=cut)
        (folder,) = home.iterdir()
        run("DynamicPO", "toy", overrides={**cut, "resume": str(folder)})
        resumed_losses, resumed = outcome(folder)
        assert resumed_losses == losses, f"killed at step {steps}"
        assert all(torch.equal(resumed[name], adapter[name]) for name in adapter), f"killed at step {steps}"


@pytest.mark.parametrize("source", ["moving", "own"])
def test_negatives_by_the_policy_are_those_of_an_undisturbed_run(
    source: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within an epoch, when the policy has moved on from where they were drawn, and while they are."""
    dense = {**settings, **DENSE, "negatives": source, "hard_pool": 8, "sft_epochs": 1, "checkpoint_every": 2}
    dense |= {"sft_batch_size": 24, "train_batch_size": 24}
    own, home = only_run(dense, "whole")
    run("DynamicPO", "toy", overrides=own)
    losses, adapter = outcome(next(home.iterdir()))
    assert len(losses) == 9
    top, asked = LikelyTitles.top, []

    def dying(self: LikelyTitles, *given: Any) -> Any:
        asked.append(given)
        if len(asked) == 2:
            raise Killed
        return top(self, *given)

    for steps in (4, 6, 7, 8, "second draw"):
        cut, home = only_run(dense, f"cut{steps}")
        with monkeypatch.context() as patch:
            if isinstance(steps, int):
                kill_after(patch, steps)
            else:
                patch.setattr(LikelyTitles, "top", dying)
            with pytest.raises(Killed):
                run("DynamicPO", "toy", overrides=cut)
        (folder,) = home.iterdir()
        if steps == 8:
            spoilt = folder.parent / "spoilt" / folder.name
            shutil.copytree(folder, spoilt)
            file = spoilt / "checkpoint" / "drawn.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\xff")
            with pytest.raises(CheckpointError, match=r"drawn\.safetensors: damaged checkpoint"):
                run("DynamicPO", "toy", overrides={**cut, "resume": str(spoilt)})
        run("DynamicPO", "toy", overrides={**cut, "resume": str(folder)})
        resumed_losses, resumed = outcome(folder)
        assert resumed_losses == losses, f"killed at {steps}"
        assert all(torch.equal(resumed[name], adapter[name]) for name in adapter), f"killed at {steps}"


def test_same_seed_twice_is_bitwise_equal_and_another_seed_is_not(settings: dict[str, Any]) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        own, home = only_run({**settings, "seed": seed}, name)
        run("DynamicPO", "toy", overrides=own)
        results.append(outcome(next(home.iterdir())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
    assert results[0][0] != results[2][0]


def test_sigterm_ends_after_the_step_and_says_how_to_go_on(
    settings: dict[str, Any], undisturbed: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers of step 2 are written when step 3 has been taken.

    A process of its own that is stopped anywhere: robustness/test_kills.py.
    """
    cut, home = only_run({**settings, "checkpoint_every": 100}, "cut")
    flags = [f"--{key}={value}" for key, value in cut.items()]
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, "preference", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_recbole(["--model=DynamicPO", "--dataset=toy", *flags]) == 128 + signal.SIGTERM
    (folder,) = home.iterdir()
    said, given = capsys.readouterr().err.strip().splitlines()[-1].split(": run_recbole ")
    assert said == "stopped by SIGTERM after step 3 of stage preference; go on with"
    assert given == f"--model=DynamicPO --resume={folder} --data_path={cut['data_path']}"
    assert run_recbole([*given.split(), *OF_THE_MACHINE]) == 0
    assert outcome(folder)[0] == undisturbed[0]


@pytest.mark.parametrize("stage", ["sft", "evaluate"])
def test_an_interrupted_run_says_how_to_go_on(
    stage: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cut, home = only_run({**settings, "epochs": 0, "checkpoint_every": 100}, "cut")

    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if stage == "sft":
            at_step(patch, "sft", 2, interrupt)
        else:
            patch.setattr(trainer, "rank_all", interrupt)
        assert (
            run_recbole(["--model=SFTRec", "--dataset=toy", *(f"--{k}={v}" for k, v in cut.items())]) == 130
        )
    (folder,) = home.iterdir()
    said, given = capsys.readouterr().err.strip().splitlines()[-1].split(": run_recbole ")
    assert said == f"interrupted in stage {stage}; go on with"
    assert run_recbole([*given.split(), *OF_THE_MACHINE]) == 0
    assert len(outcome(folder, "sft")[0]) == 6


def test_an_interruption_before_there_is_anything_is_no_more_than_that(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.DynamicPOTrainer, "_run_stage", interrupt)
    own, _ = only_run(settings, "own")
    assert run_recbole(["--model=SFTRec", "--dataset=toy", *(f"--{k}={v}" for k, v in own.items())]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"


def test_a_run_keeps_what_nobody_says_anew(settings: dict[str, Any], undisturbed: Outcome) -> None:
    """Model, data set and every setting, those of an evaluation too; the data's place is the machine's."""
    cut, home = only_run(settings, "cut")
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            run("DynamicPO", "toy", overrides=cut)
    (folder,) = home.iterdir()
    assert run_recbole([f"--resume={folder}", f"--data_path={cut['data_path']}", *OF_THE_MACHINE]) == 0
    losses, adapter = outcome(folder)
    assert losses == undisturbed[0]
    assert all(torch.equal(adapter[name], value) for name, value in undisturbed[1].items())
    assert len(read_ranks(folder).ranks) == settings["eval_rows"]


def test_a_second_process_is_told_who_holds_the_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it loads anything; the run stays in the hands of who holds it."""
    own, home = only_run(settings, "own")
    run("SFTRec", "toy", overrides=own)
    (folder,) = home.iterdir()
    said = rf"in use by process {os.getpid()} on"
    with locked(folder, wait=False), monkeypatch.context() as patch:
        patch.setattr(host_run, "load", lambda config: pytest.fail("loaded"))
        for _ in range(2):
            with pytest.raises(LockedError, match=said):
                run("SFTRec", "toy", overrides={**own, "resume": str(folder)})
    run("SFTRec", "toy", overrides={**own, "resume": str(folder)})


def test_other_settings_are_refused_by_name(finished: tuple[dict[str, Any], Path]) -> None:
    own, folder = finished
    with pytest.raises(CheckpointError, match=r"beta: then 1.0, now 2.0"):
        run("DynamicPO", "toy", overrides={**own, "beta": 2.0, "resume": str(folder)})


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--beta=2.0", f"{OTHER}beta: then 1.0, now 2.0"),
        ("--clip_grad_norm={'max_norm': 2.0}", f"{OTHER}clip_grad_norm.max_norm: then 1.0, now 2.0"),
        ("--model=DMPO", "cannot be resumed as another model: then 'DynamicPO', now 'DMPO'"),
    ],
)
def test_a_word_against_a_run_is_the_only_one_that_is_named(
    word: str, said: str, finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own, folder = finished
    (folder.parent / "go_on.yaml").write_text(f"resume: {folder}\ndata_path: {own['data_path']}\n")
    assert run_recbole([f"--config_files={folder.parent / 'go_on.yaml'}", word, *OF_THE_MACHINE]) == 2
    assert capsys.readouterr().err == f"error: {folder}: {said}\n"


def test_a_damaged_record_is_named(finished: tuple[dict[str, Any], Path]) -> None:
    own, folder = finished
    for text in ("[", "[]", "{}", '{"params": 3}'):
        (folder / "record.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"record\.json: not the record of a run"):
            run("DynamicPO", "toy", overrides={**own, "resume": str(folder)})


def test_settings_that_this_version_does_not_know_are_named(finished: tuple[dict[str, Any], Path]) -> None:
    """Passed over, a setting of another name would be trained with its default."""
    own, folder = finished
    record = json.loads((folder / "record.json").read_text())
    record["params"]["ref_negs"] = 30
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="by this version, which has no setting ref_negs; wanted the"):
        run("DynamicPO", "toy", overrides={**own, "resume": str(folder)})


def test_a_setting_of_a_later_version_has_its_bare_default(finished: tuple[dict[str, Any], Path]) -> None:
    """Not that of the shipped files, which may be what the version brought."""
    _, folder = finished
    for name, key in (("record.json", "params"), ("run.json", None)):
        kept = json.loads((folder / name).read_text())
        for one in ("centre", "warmup_ratio"):
            (kept[key] if key else kept).pop(one)
        (folder / name).write_text(json.dumps(kept))
    config = checked_config("DynamicPO", "toy", [], {"resume": str(folder)})
    assert (config["centre"], config["warmup_ratio"]) == (False, 0.05)
    (folder / "record.json").unlink()
    assert settings_of_run(folder)["centre"] is False


def test_a_folder_of_a_stage_tells_what_decides_its_training(finished: tuple[dict[str, Any], Path]) -> None:
    _, folder = finished
    whole = settings_of_run(folder)
    (folder / "record.json").unlink()
    part = settings_of_run(folder)
    assert part["beta"] == 1.0
    assert part["clip_grad_norm"] == {"max_norm": 1.0}
    assert part.items() <= whole.items()
    assert {"model", "backbone", "eval_rows"} <= whole.keys() - part.keys()
    (folder / "run.json").unlink()
    assert settings_of_run(folder) == {}


@pytest.mark.parametrize("file", ["state.json", "optimizer.safetensors", "adapter_model.safetensors"])
def test_a_damaged_checkpoint_is_named(file: str, finished: tuple[dict[str, Any], Path]) -> None:
    own, folder = finished
    damaged = folder / "checkpoint" / file
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(Exception, match=file) as caught:
        run("DynamicPO", "toy", overrides={**own, "resume": str(folder)})
    assert type(caught.value).__module__ == "recbole_dynamicpo.errors"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_an_error_of_the_disk_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Damage lets a stage be begun again; a disk that fails now does not."""
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_progress(tmp_path)

    def fail(*args: object, **how: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        load_progress(tmp_path)
    assert caught.value.filename == str(tmp_path / "state.json")
