"""Processes in one process: how rows are dealt, what a process that is alone does, what torchrun is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo import parallel
from recbole_dynamicpo.commands import run
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host import defaults
from recbole_dynamicpo.parallel import Processes, deal, environment_of, here, join, may_show, torchrun


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_every_row_is_dealt_once(sizes: list[int], world: int) -> None:
    shares = deal(sizes, world)
    assert len(shares) == world
    assert sorted(row for share in shares for row in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[row] for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)  # the last one came where least was


def test_rows_are_dealt_by_hand() -> None:
    assert deal([5, 1, 4, 3, 2], 2) == [[0, 1, 4], [2, 3]]  # 5 | 4, 3 | 2, 1
    assert deal([1, 1], 3) == [[0], [1], []]


def test_one_process_is_alone() -> None:
    processes, values = here(), torch.tensor([1.0, 2.0])
    assert (processes.rank, processes.world, processes.first, processes.alone) == (0, 1, True, True)
    processes.add(values)
    assert values.tolist() == [1.0, 2.0]
    assert processes.gather("x") == ["x"]
    assert processes.decide(lambda: 3) == 3
    assert processes.agree(True)
    assert not processes.agree(False)
    assert processes.deal([7, 8, 9]) == [0, 1, 2]
    processes.wait()
    assert may_show()


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "MASTER_ADDR": "x"}, {"WORLD_SIZE": "4"}])
def test_nobody_is_joined_without_torchrun(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert join() is here()
    assert type(here()) is Processes


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan", "inf"])
def test_a_wrong_time_limit_is_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(parallel.TIMEOUT_VARIABLE, given)
    with pytest.raises(SettingsError, match=f"RECBOLE_DYNAMICPO_TIMEOUT: got '{given}'"):
        join()


def test_what_torchrun_is_told() -> None:
    command = torchrun(["--model=SDPO"], 3)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nproc-per-node=3", "--standalone", "--local-addr=127.0.0.1"} <= set(command)
    assert command[-3:] == ["-m", "recbole_dynamicpo.cli", "--model=SDPO"]
    command = torchrun([], 2, machines=4, machine=1, address="first", port="29500")
    assert {"--nnodes=4", "--node-rank=1", "--master-addr=first", "--master-port=29500"} <= set(command)
    assert "--standalone" not in command


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 16)
    assert environment_of(4)["OMP_NUM_THREADS"] == "4"
    assert environment_of(32)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert environment_of(4)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("before", [None, "2,3"])
def test_what_is_started_sees_the_devices_that_we_began_with(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole's configuration leaves one of them in the environment of the process that reads settings."""
    monkeypatch.setattr(parallel, "_visible", before)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert environment_of(2).get("CUDA_VISIBLE_DEVICES") == before


def test_turns_and_what_is_found_in_them() -> None:
    second = Processes()
    second.rank, second.world = 1, 3
    assert [number for number in range(8) if second.has_turn(number)] == [1, 4, 7]
    assert here().has_turn(5)
    assert here().merge({1: "a"}) == {1: "a"}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--nproc=2"], ["--nproc-per-node=2", "--standalone"]),
        (["--nproc", "2", "--world_size=2"], ["--nproc-per-node=2", "--standalone"]),
        (
            ["--nproc=2", "--world_size=6", "--group_offset=4", "--ip=10.0.0.1", "--port=5000"],
            ["--nnodes=3", "--node-rank=2", "--master-addr=10.0.0.1", "--master-port=5000"],
        ),
    ],
)
def test_recboles_flags_become_torchruns(
    arguments: list[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        started.append(command)
        raise SystemExit

    monkeypatch.setattr(run.os, "execve", execve)
    with pytest.raises(SystemExit):
        run.run(["--model=DynamicPO", "--dataset=toy", "--quiet", "--seed=3", *arguments])
    (command,) = started
    assert set(wanted) <= set(command)
    said = command[command.index("recbole_dynamicpo.cli") + 1 :]
    assert said == ["--model=DynamicPO", "--dataset=toy", "--config_files=", "--quiet", "--seed=3"]


@pytest.mark.parametrize(
    "arguments",
    [["--nproc=2", "--world_size=3"], ["--nproc=2", "--group_offset=1"]],
)
def test_machines_of_different_sizes_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SettingsError, match="wanted multiples of nproc"):
        run.run(["--model=DynamicPO", *arguments])


@pytest.mark.parametrize("given", ["0", "-1"])
def test_no_process_is_none(given: str) -> None:
    with pytest.raises(SettingsError, match=f"nproc: got {given}, wanted a whole number of at least 1"):
        run.run(["--model=DynamicPO", f"--nproc={given}"])


def test_wrong_settings_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.os, "execve", lambda *given: pytest.fail("it was started"))
    with pytest.raises(SettingsError, match="betaa: unknown setting"):
        run.run(["--model=DynamicPO", "--nproc=2", "--betaa=3"])


class _Config:
    def __init__(self, **given: Any) -> None:
        self.external_config_dict, self.internal_config_dict = given, {"use_gpu": True, "gpu_id": "0"}


@pytest.mark.parametrize(
    ("given", "several", "visible", "wanted"),
    [
        ({}, True, None, "0,1,2,3"),  # all, where RecBole would put each process on the first
        ({}, True, "5,6", "5,6"),
        ({}, False, None, None),  # RecBole's own default
        ({"gpu_id": "2,3"}, True, None, "2,3"),
        ({"gpu_id": (1, 2)}, True, None, "1,2"),
        ({"use_gpu": False}, True, None, ""),
    ],
)
def test_an_unset_gpu_id_is_all_devices(
    given: dict[str, Any], several: bool, visible: str | None, wanted: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(defaults, "is_one_of_several", lambda: several)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = _Config(**given)
    defaults._choose_devices(config)
    assert defaults.os.environ.get("CUDA_VISIBLE_DEVICES") == wanted
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_process_that_is_ended_before_it_met_the_others_says_so() -> None:
    """Whatever it is at: what it imports may swallow every exception."""
    code = (
        "import os, signal, sys\n"
        "from recbole_dynamicpo import cli\n"
        "def command(arguments):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException:\n"
        "        pass\n"
        "sys.exit(cli._guarded(command, []))\n"
    )
    several = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **several}, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == (
        "process 1: stopped by SIGTERM (as torchrun does to all where one process dies), before anything was "
        "begun\n"
    )
