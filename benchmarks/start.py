"""From the command to the first training step, with a warm cache.

    python benchmarks/start.py [--json FILE] [--quick] [--rounds 3]

Each measurement is a process of its own: importing the package; importing all that a run needs;
the start of a console script;
``run_recbole --model=DynamicPO`` with its default settings until its first training step is on disk, when it
is stopped. The backbone must be in the cache and is put there first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import common

from recbole_dynamicpo.language_model.backbone import resolve_backbone
from recbole_dynamicpo.language_model.embedded import EMBEDDED

IMPORTS = {
    "python": "pass",
    "import recbole_dynamicpo": "import recbole_dynamicpo",
    "import of all that a run needs": (
        "import recbole_dynamicpo.training.trainer, recbole_dynamicpo.host.run, peft, transformers"
    ),
    "recbole-dynamicpo --help": "from recbole_dynamicpo.cli import main; main(['--help'])",
}
COMMAND = "import sys; from recbole_dynamicpo.cli import run_recbole; sys.exit(run_recbole())"
# Seconds until a run without a first step counts as failed, and between two looks for it.
LIMIT, PAUSE = 300.0, 0.02


def run_code(code: str) -> Callable[[], None]:
    """Return what runs ``code`` in a new process."""

    def run() -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{code!r} failed: {done.stderr[-2000:]}")

    return run


def first_step(arguments: Sequence[str]) -> float:
    """Return the seconds from the command to its first step on disk, and stop it.

    Raises:
        RuntimeError: it ended, or took too long, without a step.
    """
    command = [sys.executable, "-c", COMMAND, *arguments]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=home, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not _has_step(Path(home)):
                spent = time.perf_counter() - start
                if process.poll() is not None or spent > LIMIT:
                    output.seek(0)
                    tail = output.read().decode(errors="replace")[-2000:]
                    raise RuntimeError(f"no training step after {spent:.0f} s: {tail}")
                time.sleep(PAUSE)
            return time.perf_counter() - start
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _has_step(home: Path) -> bool:
    return any(path.stat().st_size for path in home.glob("saved/*/metrics.jsonl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = common.options("imports, start-up, and the time to the first training step")
    options, settings = common.parse(parser, arguments)
    resolve_backbone(str(settings.get("backbone", EMBEDDED)))
    given = ["--model=DynamicPO", f"--dataset={options.dataset}", "--show_progress=False"]
    given += [f"--{key}={value}" for key, value in settings.items()]
    ways: dict[str, Callable[[], object]] = {name: run_code(code) for name, code in IMPORTS.items()}
    ways["command to first training step"] = lambda: first_step(given)
    times = common.interleave(ways, options.rounds)
    figures: dict[str, Any] = {name: common.Spread.of(values)._asdict() for name, values in times.items()}
    known = common.machine(str(settings.get("dtype", "auto")))
    common.print_machine(known)
    common.print_table(
        "Seconds of a new process; median (least..greatest)",
        ["what", "s"],
        [[name, common.Spread(**found)] for name, found in figures.items()],
    )
    common.save(options.json, {"machine": known, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
