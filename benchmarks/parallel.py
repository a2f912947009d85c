"""One process against several of one run, a thread each: training rows, the reference, ranking of all titles.

    python benchmarks/parallel.py [--json FILE] [--quick] [--rounds 3] [--processes 2]

The processes are started by torchrun, in turns with one process that is started in the same way, and each
does what a run does: the same steps over the same rows, the reference of the second stage, the scores of all
titles for test users. Beside the ratios stands the share of a step that its one exchange takes, waiting
included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import torch
from recbole.config import Config

from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.parallel import Processes, join, leave
from recbole_dynamicpo.steps.ahead import Ready
from recbole_dynamicpo.steps.step import take_step
from recbole_dynamicpo.storage import write_json
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages

# Steps that are taken before any is timed.
WARM_UP = 1


class Clock:
    """Seconds of what processes do together, and of the exchanges in it."""

    def __init__(self, processes: Processes) -> None:
        self.processes, self.exchanged = processes, 0.0
        for name in ("add", "gather"):
            setattr(processes, name, self._timed(getattr(processes, name)))

    def _timed(self, exchange: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(value: Any) -> Any:
            started = time.perf_counter()
            found = exchange(value)
            self.exchanged += time.perf_counter() - started
            return found

        return timed

    def __call__(self, act: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds of ``act`` in all processes, and of its exchanges in this one."""
        self.processes.wait()
        self.exchanged, started = 0.0, time.perf_counter()
        act()
        exchanged = self.exchanged
        self.processes.wait()
        return time.perf_counter() - started, exchanged


def stage(model: DynamicPO, name: str, titles: int, clock: Clock) -> dict[str, float]:
    """Return rows a second of a stage's steps, the exchanges' share of them, and the reference's speed."""
    (plan,) = (plan for plan in plan_stages(model.settings) if plan.name == name)
    model.stage, found = name, {}
    rows = DenseRows(model, dataclasses.replace(plan, rows=titles))
    optimizer = torch.optim.AdamW(model.policy.trainable(), lr=0.0, weight_decay=0.0)
    if name == "preference":
        keys = clock.processes

        def score(wanted: Any) -> torch.Tensor:
            own = keys.deal(wanted.rows["row_tokens"].tolist())
            parts = keys.gather((own, wanted.score(wanted.rows[torch.tensor(own)])))
            table = torch.zeros(len(wanted.keys), parts[0][1].shape[1], dtype=parts[0][1].dtype)
            for places, values in parts:
                table[places] = values
            return table

        seconds, _ = clock(lambda: rows.add_reference(0, score))
        found["reference rows/s"] = rows.count / seconds
    steps = list(rows.batches(0, 0))

    def train() -> None:
        for batches in steps[WARM_UP:]:
            take_step(model, optimizer, Ready(model, batches), None).numbers.read()

    for batches in steps[:WARM_UP]:
        take_step(model, optimizer, Ready(model, batches), None).numbers.read()
    seconds, exchanged = clock(train)
    trained = sum(int((b["window_stop"] - b["window_start"]).sum()) for step in steps[WARM_UP:] for b in step)
    return {**found, f"{name} rows/s": trained / seconds, f"{name} exchange": exchanged / seconds}


def rank(model: DynamicPO, users: int, clock: Clock) -> dict[str, float]:
    """Return users a second whose scores of all titles are found."""
    rows = model.dataset.built["test"].inter_feat[:users]
    batches = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    model.policy.eval()

    def score() -> None:
        with model.answers.together(["policy"], batches):
            if clock.processes.first:
                for batch in batches:
                    model.title_scores(batch)
            else:
                model.answers.help_out(["all"])

    score()
    return {"users/s, all titles": len(rows) / clock(score)[0]}


def work(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Measure in one of the processes; the first one writes what it finds."""
    config: Config = PlainConfig("DynamicPO", options.dataset, [], settings)
    model: DynamicPO = load(config).model
    model.policy.freeze_reference()
    clock = Clock(join())
    found = {
        **stage(model, "sft", options.titles, clock),
        **stage(model, "preference", options.titles, clock),
    }
    found |= rank(model, options.users, clock)
    if clock.processes.first:
        write_json(options.worker, found)
    leave()


def start(world: int, arguments: Sequence[str]) -> dict[str, float]:
    """Return what so many processes find."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={world}", __file__, "--worker", str(out), *arguments]
        variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [sys.executable, *command], env={**os.environ, **variables}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{world} processes failed: {done.stderr[-3000:]}")
        measured: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one and of several processes, taken in turns, and their ratios."""
    turns: dict[int, list[dict[str, float]]] = {1: [], options.processes: []}
    for _ in range(options.rounds):
        for world, found in turns.items():
            found.append(start(world, arguments))
    figures: dict[str, Any] = {"processes": options.processes}
    for name in turns[1][0]:
        one, several = ([found[name] for found in turns[world]] for world in turns)
        figures[name] = {
            "one": common.Spread.of(one)._asdict(),
            "several": common.Spread.of(several)._asdict(),
        }
        if "exchange" not in name:
            figures[name]["ratio"] = common.ratios(several, one)._asdict()
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the table."""
    common.print_machine(figures["machine"])
    lines = []
    for name, found in figures.items():
        if name in ("machine", "processes"):
            continue
        spreads = [common.Spread(**found[key]) if key in found else "" for key in ("one", "several", "ratio")]
        lines.append([name, *spreads])
    head = ["", "one process", f"{figures['processes']} processes", "ratio"]
    common.print_table("rows or users a second; exchange: share of a step", head, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = common.options("one process of a run against several")
    parser.add_argument("--processes", type=int, default=2, help="processes against one (2)")
    parser.add_argument("--titles", type=int, default=384, help="supervised titles of each stage (384)")
    parser.add_argument("--users", type=int, default=32, help="users ranked (32)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options, settings = common.parse(parser, given)
    if options.quick:
        options.titles, options.users = 24, 8
        settings = {"sft_batch_size": 8, "train_batch_size": 8, **settings}
    settings = {"dtype": "float32", "valid_rows": 1, "eval_rows": options.users, **settings}
    if options.worker:
        work(options, settings)
        return 0
    figures = measure(options, given)
    figures["machine"] = common.machine(torch.float32)
    report(figures)
    common.save(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
