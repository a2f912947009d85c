"""A stage of a job in several processes of this machine: asked for, watched, and what becomes of it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .errors import PeerError
from .job import Job
from .parallel import environment_of, torchrun
from .stage_results import StageResult
from .storage import load_json, write_json
from .tracking.live import NullTracker, Tracker

# How a line of the first process begins that tells how far it is.
MARK = "progress "
# Lines of the processes' last words in a message.
LAST = 5


def in_processes(
    job: Job,
    stage: str,
    prepared: StageResult,
    tracker: Tracker | None,
    progress: Callable[[str, int, int], object] | None,
) -> None:
    """Run a stage in ``job.nproc`` processes, which leave its result in its folder.

    Args:
        job: of the stage.
        stage: ``sft``, ``preference`` or ``evaluate``.
        prepared: result of the stage prepare.
        tracker: told when there may be news.
        progress: told stage, steps done, steps in all.

    Raises:
        PeerError: they ended without a result; has their last words.
    """
    tracker = tracker or NullTracker()
    last: list[str] = []
    with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        question = Path(work) / "question.json"
        write_json(question, {"job": asdict(job), "stage": stage, "prepared": asdict(prepared)})
        command = torchrun(["stage", "--question", str(question)], job.nproc)
        with subprocess.Popen(
            command,
            env=environment_of(job.nproc),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running:
            assert running.stdout is not None
            try:
                for line in running.stdout:
                    tracker.changed()
                    if not line.startswith(MARK):
                        last = [*last, line.rstrip()][-LAST:]
                    elif progress is not None:
                        progress(*json.loads(line.removeprefix(MARK)))
            except BaseException:
                running.terminate()  # torchrun asks the processes to end, and waits for them
                raise
    if running.returncode:
        status, words = running.returncode, " | ".join(last)
        raise PeerError(f"stage {stage} in {job.nproc} processes ended with status {status}: {words}")


def read_question(path: Path) -> tuple[Job, str, StageResult]:
    """Return job, stage and prepared result that ``in_processes`` asks for in a file."""
    asked = load_json(path)
    job = {**asked["job"], "config_files": tuple(asked["job"]["config_files"])}
    return Job(**job), asked["stage"], StageResult(**asked["prepared"])


def tell(stage: str, done: int, total: int) -> None:
    """Tell whoever started the processes how far a stage is."""
    print(f"{MARK}{json.dumps([stage, done, total])}", flush=True)
