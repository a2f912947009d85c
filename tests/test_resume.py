"""A killed run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recbole_dynamicpo.errors import CheckpointError, LockedError
from recbole_dynamicpo.journal import Journal
from recbole_dynamicpo.locks import locked
from recbole_dynamicpo.runner import run

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


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return all training losses in order and the final adapter."""
    entries = [entry for entry in Journal(folder / "metrics.jsonl").entries() if entry["kind"] == "train"]
    return [entry["loss"] for entry in entries], load_file(
        folder / "preference" / "adapter_model.safetensors"
    )


def only_run(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], Path]:
    """Return settings with an output folder of their own, and that folder."""
    folder = Path(settings["checkpoint_dir"]) / name
    return {**settings, "checkpoint_dir": str(folder)}, folder


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the journal be the last thing that a run does at its ``steps``-th training step."""
    write, seen = Journal.write, []

    def dying(self: Journal, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        write(self, stage, step, kind, values)
        seen.append(kind)
        if seen.count("train") == steps:
            raise Killed

    monkeypatch.setattr(Journal, "write", dying)


def test_killed_at_any_step_and_resumed_equals_undisturbed(settings: dict[str, Any]) -> None:
    whole, home = only_run(settings, "whole")
    run("DynamicPO", "toy", overrides=whole)
    losses, adapter = outcome(next(home.iterdir()))
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


def test_same_seed_twice_is_bitwise_equal_and_another_seed_is_not(settings: dict[str, Any]) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        own, home = only_run({**settings, "seed": seed}, name)
        run("DynamicPO", "toy", overrides=own)
        results.append(outcome(next(home.iterdir())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])
    assert results[0][0] != results[2][0]


def test_sigterm_ends_after_the_step_and_says_how_to_go_on(settings: dict[str, Any]) -> None:
    cut, home = only_run({**settings, "checkpoint_every": 100}, "cut")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from recbole_dynamicpo.cli import run_recbole
        from recbole_dynamicpo.journal import Journal
        write = Journal.write
        def asking(self, stage, step, kind, values):
            write(self, stage, step, kind, values)
            if (stage, step, kind) == ("preference", 2, "train"):
                os.kill(os.getpid(), signal.SIGTERM)
        Journal.write = asking
        sys.exit(run_recbole(sys.argv[1:]))
        """
    )
    flags = [f"--{key}={value}" for key, value in cut.items()]
    done = subprocess.run(
        [sys.executable, "-c", script, "--model=DynamicPO", "--dataset=toy", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM
    (folder,) = home.iterdir()
    assert done.stderr.strip().splitlines()[-1] == (
        f"stopped by SIGTERM after step 2 of stage preference; go on with --resume={folder} "
        "and the same settings"
    )
    run("DynamicPO", "toy", overrides={**cut, "resume": str(folder)})
    whole, other = only_run(settings, "whole")
    run("DynamicPO", "toy", overrides=whole)
    assert outcome(folder)[0] == outcome(next(other.iterdir()))[0]


def test_a_second_process_is_told_who_holds_the_run(settings: dict[str, Any]) -> None:
    own, home = only_run(settings, "own")
    run("SFTRec", "toy", overrides=own)
    (folder,) = home.iterdir()
    with locked(folder, wait=False), pytest.raises(LockedError, match=rf"in use by process {os.getpid()} on"):
        run("SFTRec", "toy", overrides={**own, "resume": str(folder)})
    run("SFTRec", "toy", overrides={**own, "resume": str(folder)})


def test_sigkill_of_a_real_process(settings: dict[str, Any], tmp_path: Path) -> None:
    cut, home = only_run(settings, "cut")
    script = textwrap.dedent(
        """
        import json, os, signal, sys
        from recbole_dynamicpo.journal import Journal
        from recbole_dynamicpo.runner import run
        write = Journal.write
        def dying(self, stage, step, kind, values):
            write(self, stage, step, kind, values)
            if stage == "preference" and step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        Journal.write = dying
        run("DynamicPO", "toy", overrides=json.loads(sys.argv.pop()))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(cut)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL
    (folder,) = home.glob("[!.]*")  # the lock file of a killed process stays, and holds nobody up
    assert not (folder / "preference").exists()
    run("DynamicPO", "toy", overrides={**cut, "resume": str(folder)})
    whole, other = only_run(settings, "whole")
    run("DynamicPO", "toy", overrides=whole)
    assert outcome(folder)[0] == outcome(next(other.iterdir()))[0]


def test_other_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    own, home = only_run(settings, "a")
    run("DynamicPO", "toy", overrides=own)
    (folder,) = home.iterdir()
    with pytest.raises(CheckpointError, match=r"beta: then 1.0, now 2.0"):
        run("DynamicPO", "toy", overrides={**own, "beta": 2.0, "resume": str(folder)})


@pytest.mark.parametrize("file", ["state.json", "optimizer.safetensors", "adapter_model.safetensors"])
def test_a_damaged_checkpoint_is_named(file: str, settings: dict[str, Any]) -> None:
    own, home = only_run(settings, "a")
    run("DynamicPO", "toy", overrides=own)
    (folder,) = home.iterdir()
    damaged = folder / "checkpoint" / file
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(Exception, match=file) as caught:
        run("DynamicPO", "toy", overrides={**own, "resume": str(folder)})
    assert type(caught.value).__module__ == "recbole_dynamicpo.errors"
