"""Real processes, started by torchrun: any number of them gives one result, and none dies unnoticed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from recbole_dynamicpo.evaluation.report import REPORT_FILE
from recbole_dynamicpo.names import STAGES
from recbole_dynamicpo.storage import load_json
from recbole_dynamicpo.training.checkpoint import CHECKPOINT, has_checkpoint, load_progress

from . import jobs
from .conftest import at_length
from .test_two_processes import until

PATIENCE = 240
LONG = pytest.mark.long
KINDS: dict[str, dict[str, Any]] = {
    # As many evaluation rows as no number of processes below divides, in batches of two.
    "list": {
        "dtype": "float32",
        "lora_dropout": 0.1,
        "eval_rows": 7,
        "eval_batch_size": 2,
        "sft_learning_rate": 0.001,
        "learning_rate": 0.001,
    },
    "dense": {**jobs.DENSE, "dtype": "float64", "eval_rows": 7, "eval_batch_size": 2},
    # Negatives that the policy's scores decide.
    "moving": {**jobs.DENSE, "dtype": "float64", "eval_rows": 7, "negatives": "moving", "hard_pool": 8},
    # A prior that RecBole trains, in float32.
    "retriever": {
        **jobs.DENSE,
        "dtype": "float64",
        "eval_rows": 7,
        "catalogue_prior": "['popularity','recbole:SASRec']",
        "retriever_epochs": 2,
        "retriever_settings": "{'hidden_size': 8, 'inner_size': 8, 'n_layers': 1}",
    },
}


class World:
    """Backbone and data, and the runs that are begun with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, int], Path] = {}
        jobs.make_world(folder)

    def start(self, home: Path, kind: str, world: int, *torchrun: str, **more: Any) -> subprocess.Popen[str]:
        """Begin a run in ``home`` in so many processes."""
        settings = jobs.settings(self.folder, **{**KINDS[kind], "checkpoint_dir": "saved", **more})
        said = [
            "--model=DynamicPO",
            "--dataset=toy",
            *(f"--{key}={value}" for key, value in settings.items()),
        ]
        return begin(home, ["-m", "recbole_dynamicpo.cli", *said], world, *torchrun)

    def run(self, home: Path, kind: str, world: int, *torchrun: str, **more: Any) -> Path:
        """Return the folder of a run that came to its end."""
        finished(self.start(home, kind, world, *torchrun, **more))
        return jobs.run_folder(home)

    def undisturbed(self, kind: str, world: int) -> Path:
        """Return the folder of a run without trouble, made once."""
        if (kind, world) not in self.known:
            self.known[kind, world] = self.run(self.folder / f"{kind}-{world}", kind, world)
        return self.known[kind, world]


def begin(home: Path, module: list[str], world: int, *torchrun: str) -> subprocess.Popen[str]:
    """Begin a module in so many processes, with a cache of its own; 0: without torchrun."""
    home.mkdir(parents=True, exist_ok=True)
    variables = {"RECBOLE_DYNAMICPO_CACHE": str(home / "cache"), "GLOO_SOCKET_IFNAME": "lo"}
    variables |= {"OMP_NUM_THREADS": "1", "RECBOLE_DYNAMICPO_TIMEOUT": "60"}
    place = torchrun if any("rdzv" in one for one in torchrun) else ("--standalone", *torchrun)
    starter = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", "--local-addr=127.0.0.1", *place]
    return subprocess.Popen(
        [sys.executable, *(starter if world else []), *module],
        cwd=home, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], status: int | None = 0) -> str:
    """Return what a process said, which ended with this status in time; None: with any."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    assert status in (None, process.returncode), said[-5000:]
    return said


def workers(process: subprocess.Popen[str], world: int) -> list[psutil.Process]:
    """Return the processes that torchrun started, once all are there."""

    def by_rank() -> dict[int, psutil.Process]:
        """Those that are themselves already: a fork has its parent's environment until its program runs."""
        found = [(child.environ().get("RANK"), child) for child in psutil.Process(process.pid).children()]
        return {int(rank): child for rank, child in found if rank is not None}

    until(lambda: len(by_rank()) >= world, "the processes to start")
    found = by_rank()
    return [found[rank] for rank in sorted(found)]


def steps(home: Path) -> list[dict[str, Any]]:
    """Return the training steps that a run's journal has."""
    found = [path / "metrics.jsonl" for path in (home / "saved").glob("[!.]*")]
    lines = found[0].read_text(encoding="utf-8").splitlines() if found and found[0].is_file() else []
    entries = []
    for line in lines:
        if line.startswith("{") and line.endswith("}"):  # the last one may be half there
            entries.append(json.loads(line))
    return [entry for entry in entries if entry["kind"] == "train"]


def check_equal(found: Path, wanted: Path, *, exact: bool) -> None:
    """Check that two runs came to one result; ``exact``: in float64."""
    for stage in STAGES:
        ours, theirs = (load_file(run / stage / "adapter_model.safetensors") for run in (found, wanted))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # In float32 Adam turns gradients that are next to nothing into steps of the learning rate.
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9 if exact else 1e-3)
    ours, theirs = (steps(run.parent.parent) for run in (found, wanted))
    assert len(ours) == len(theirs) == jobs.STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine["stage"], mine["step"], mine["rows"]) == (other["stage"], other["step"], other["rows"])
        # In float32 it is a difference of log-probabilities of some 20 nats.
        assert mine["loss"] == pytest.approx(other["loss"], rel=0, abs=1e-6 if exact else 5e-6)
        assert mine.get("beta_counts") == other.get("beta_counts")
        for name in ("beta_mean", "beta_min", "beta_max", "boundary_size", "violation_rate"):
            assert (name in mine) == (mine["stage"] == "preference")
            assert mine.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-5)
    tables = sorted(path.name for path in wanted.glob("*.parquet"))
    assert tables == sorted(path.name for path in found.glob("*.parquet"))
    assert all(pq.read_table(found / name).equals(pq.read_table(wanted / name)) for name in tables)
    reports = [load_json(run / REPORT_FILE) for run in (found, wanted)]
    assert rounded(reports[0]["contestants"]) == rounded(reports[1]["contestants"])
    for part in ("all", "beyond"):
        assert rounded(reports[0].get(part)) == rounded(reports[1].get(part))


def rounded(value: Any) -> Any:
    """Return a JSON value with its numbers cut to what rounding in float32 leaves alone."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("list", 2), ("list", 4), ("dense", 4), ("retriever", 2)),
        *(pytest.param(*case, marks=LONG) for case in (("dense", 2), ("moving", 2), ("moving", 4))),
    ],
)
def test_any_number_of_processes_gives_one_result(world: World, kind: str, number: int) -> None:
    check_equal(
        world.undisturbed(kind, number), world.undisturbed(kind, 0), exact=kind not in ("list", "retriever")
    )


def test_one_process_trains_the_retrievers_of_all(world: World) -> None:
    """Two folds and all users, to the last bit those of a process that is alone."""
    found = []
    for number in (0, 2):
        cache = world.undisturbed("retriever", number).parent.parent / "cache" / "retrievers"
        found.append({path.name: path.read_bytes() for path in cache.iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_what_is_left_is_the_first_ones(world: World) -> None:
    alone, several = world.undisturbed("list", 0), world.undisturbed("list", 4)
    names = [sorted(path.name for path in run.iterdir()) for run in (alone, several)]
    assert names[0] == names[1]
    assert [path.name for path in several.parent.iterdir()] == [several.name]
    for folder in ("log/DynamicPO", "log_tensorboard"):
        assert len(list((several.parent.parent / folder).iterdir())) == 1


@LONG
def test_two_machines_train_one_run(world: World, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=one")
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        home.mkdir()
    (tmp_path / "saved").mkdir()  # what is written lies where both can read it; their caches do not
    for home in homes:
        (home / "saved").symlink_to(tmp_path / "saved")
    machines = [world.start(home, "list", 1, *meet) for home in homes]
    for machine in machines:
        finished(machine)
    check_equal(jobs.run_folder(tmp_path), world.undisturbed("list", 2), exact=False)
    shards = [list((home / "cache" / "reference").rglob("*.json")) for home in homes]
    assert all(shards)


@pytest.mark.parametrize("then", [0, pytest.param(3, marks=LONG)])
def test_a_run_goes_on_with_another_number_of_processes(world: World, tmp_path: Path, then: int) -> None:
    process = world.start(tmp_path, "dense", 2)
    until(lambda: len(steps(tmp_path)) >= 3, "some steps")
    workers(process, 2)[1].send_signal(signal.SIGTERM)  # one of them, and both end at the same step
    said = finished(process, status=1)  # torchrun's own
    assert said.count("stopped by SIGTERM after step") == 1
    folder = jobs.run_folder(tmp_path)
    done = steps(tmp_path)[-1]
    progress = load_progress(folder / CHECKPOINT)
    assert (progress.stage, progress.step) == (done["stage"], done["step"])
    world.run(tmp_path, "dense", then, resume=f"saved/{folder.name}")
    check_equal(folder, world.undisturbed("dense", 0), exact=True)


def test_killed_processes_are_missed_and_begun_again(
    world: World, tmp_path: Path, pytestconfig: pytest.Config, tally: dict[str, Counter[str]]
) -> None:
    draw = random.Random(0)
    count = 20 if at_length(pytestconfig) else 2
    started = time.monotonic()
    world.run(tmp_path / "timed", "dense", 2)
    whole = time.monotonic() - started
    for number in range(count):
        home, again = tmp_path / str(number), number % 2 == 0
        restarts = ["--max-restarts=2", "--monitor-interval=0.1"] if again else []
        process = world.start(home, "dense", 2, *restarts)
        victim, moment = draw.choice(workers(process, 2)), draw.uniform(0.2, 1.0) * whole
        time.sleep(moment)
        alive = victim.is_running()
        if alive:
            victim.kill()
        said = finished(process, status=0 if again else None)
        if process.returncode:  # whoever was left has ended, and said why; others go on
            assert alive
            assert said.count("error: ") <= 1
            left = [path for path in (home / "saved").glob("[!.]*") if has_checkpoint(path)]
            world.run(home, "dense", 0, **({"resume": f"saved/{left[0].name}"} if left else {}))
        check_equal(jobs.run_folder(home), world.undisturbed("dense", 0), exact=True)
        assert len([path for path in (home / "saved").iterdir() if path.is_dir()]) <= 2
        tally.setdefault("processes", Counter())["killed, ended equal" if alive else "too late"] += 1


def test_an_error_is_shown_once(world: World, tmp_path: Path) -> None:
    said = finished(world.start(tmp_path, "list", 2, learning_rte=1), status=1)
    assert said.count("learning_rte: unknown setting") == 1
    assert not (tmp_path / "saved").exists()


def test_a_loss_that_is_not_finite_ends_all_at_once(world: World, tmp_path: Path) -> None:
    said = finished(world.start(tmp_path, "list", 2, sft_learning_rate=1e30, clip_grad_norm="None"), status=1)
    assert said.count("gradient norm") == 1
    assert "the last good checkpoint is in" in said
    assert load_progress(jobs.run_folder(tmp_path) / CHECKPOINT).stage == "sft"


def test_a_stock_model_is_refused(world: World, tmp_path: Path) -> None:
    columns = "{'inter': ['user_id', 'item_id', 'timestamp']}"
    module = ["-m", "recbole_dynamicpo.cli", "--model=SASRec", "--dataset=toy", f"--load_col={columns}"]
    module += ["--train_neg_sample_args=None", f"--data_path={world.folder / 'dataset'}"]
    said = finished(begin(tmp_path, module, 2), status=1)
    assert said.count("model: got SASRec in processes of torchrun") == 1


@pytest.mark.parametrize("protocol", ["likelihood", pytest.param("generate", marks=LONG)])
def test_a_saved_model_is_evaluated_by_all(world: World, tmp_path: Path, protocol: str) -> None:
    run = world.undisturbed("dense" if protocol == "likelihood" else "list", 0)
    told = {}
    for number in (0, 3):
        out = tmp_path / str(number)
        module = ["-m", "recbole_dynamicpo.cli", "evaluate", f"--model={run}", "--dataset=toy"]
        module += [f"--protocol={protocol}", "--out=out", "--batch-size=2"]
        module += [
            f"--data-path={world.folder / 'dataset'}",
            "--load_col={'inter':['user_id','item_id','timestamp']}",
        ]
        said = finished(begin(out, module, number))
        told[number] = [
            load_json(out / "out" / REPORT_FILE),
            *(pq.read_table(path) for path in sorted((out / "out").glob("*.parquet"))),
            *(path.read_text() for path in sorted((out / "out").glob("*.jsonl"))),
        ]
        assert said.count("likelihood") >= 1 or protocol == "likelihood"
    assert told[0] == told[3]


def test_users_are_ranked_by_all(world: World, tmp_path: Path) -> None:
    run = world.undisturbed("dense", 0)
    titles = [
        line.split("\t")[1] for line in (world.folder / "dataset/toy/toy.item").read_text().splitlines()[1:]
    ]
    users = [{"user": str(number), "history": titles[number % 5 : number % 5 + 3]} for number in range(2101)]
    users[7]["history"] = [12345678]  # an item that is none
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    for number in (0, 2):
        module = ["-m", "recbole_dynamicpo.cli", "rank", f"--model={run}", "-k", "3"]
        module += ["--input", str(tmp_path / "users.jsonl"), "--out", "ranked"]
        said = finished(begin(tmp_path / str(number), module, number))
        assert said.count("2100 users ranked in 3 parts, 1 rows set aside") == 1
    alone, several = (tmp_path / name / "ranked" for name in "02")
    for path in sorted(alone.iterdir()):
        assert (several / path.name).read_bytes() == path.read_bytes()


def test_run_recbole_starts_them_itself(world: World, tmp_path: Path) -> None:
    settings = jobs.settings(world.folder, **KINDS["list"], checkpoint_dir="saved")
    said = ["--model=DynamicPO", "--dataset=toy", *(f"--{key}={value}" for key, value in settings.items())]
    module = ["-m", "recbole_dynamicpo.cli", *said, "--nproc", "2"]
    finished(begin(tmp_path, module, 0))
    check_equal(jobs.run_folder(tmp_path), world.undisturbed("list", 2), exact=False)


def test_the_stages_of_a_job_are_run_by_all(world: World, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from recbole_dynamicpo.job import Job
from recbole_dynamicpo.pipeline import begin, evaluate, prepare, train
from tests.robustness.jobs import settings
job = Job("DynamicPO", "toy", (), settings(Path({str(world.folder)!r}), **{KINDS["list"]!r}), "saved", 2)
prepared = prepare(job)
begin(job, prepared)
told = []
for stage in ("sft", "preference"):
    train(job, stage, prepared, progress=lambda *news: told.append(news))
result = evaluate(job, prepared)
assert [news[:2] for news in told] == [(s, n) for s in ("sft", "preference") for n in range(1, 7)], told
assert result.cached
print(result.folder)
"""
    shutil.copytree(Path(__file__).parents[1], tmp_path / "tests")  # its helpers, from wherever this runs
    said = finished(begin(tmp_path, ["-W", "ignore", "-c", script], 0))
    folder = Path(tmp_path, said.strip().splitlines()[-1])
    wanted = world.undisturbed("list", 0)
    reports = [load_json(run / REPORT_FILE)["contestants"] for run in (folder, wanted)]
    assert rounded(reports[0]) == rounded(reports[1])
