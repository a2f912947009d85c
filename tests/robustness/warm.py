"""A warm process: it has imported everything and prepared a toy world, and forks a child for each job.

So a job costs a second, and whatever happens to a child happens to nobody else.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from .faults import Faults

# Seconds after which an answer is not expected any more.
PATIENCE = 240.0


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        status: exit status, or minus the number of the signal.
        stderr: what it said, without warnings of libraries.
        points: what each point was that it passed.
    """

    status: int
    stderr: str
    points: list[str]


class Warm:
    """The warm process, seen from a test.

    Args:
        world: an empty folder for what all jobs share.
    """

    def __init__(self, world: Path) -> None:
        self.world = world
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__, str(world)],
            cwd=Path(__file__).parents[2], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._answer()

    def start(self, name: str, home: Path, *, kind: str = "none", at: int = 0, **arguments: Any) -> int:
        """Begin a job in its home folder, which is made, and return its process id."""
        home.mkdir(parents=True, exist_ok=True)
        job = {"name": name, "home": str(home), "kind": kind, "at": at, "arguments": arguments}
        return int(self._ask(job)["pid"])

    def wait(self, pid: int, home: Path) -> Ended:
        """Wait for the end of a job."""
        code = os.waitstatus_to_exitcode(int(self._ask({"wait": pid})["status"]))
        said = (home / f"{pid}.stderr").read_text(encoding="utf-8")
        return Ended(code, said, (home / f"{pid}.points").read_text(encoding="utf-8").splitlines())

    def do(self, name: str, home: Path, **how: Any) -> Ended:
        """Do a job."""
        return self.wait(self.start(name, home, **how), home)

    def prepare(self, name: str) -> None:
        """Let the warm process itself do something that all later jobs need."""
        self._ask({"prepare": name})

    def close(self) -> None:
        """End the process and what is left of its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise AssertionError(f"no answer of the warm process within {PATIENCE:.0f} s")
        return dict(json.loads(line))


def serve(world: Path) -> None:
    """Prepare the world, then fork for every job on standard input."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    from . import jobs

    jobs.make_world(world)
    answers.write(b"{}\n")
    for line in sys.stdin:
        question = json.loads(line)
        if "prepare" in question:
            getattr(jobs, question["prepare"])(world)
            answers.write(b"{}\n")
            continue
        if "wait" in question:
            answers.write(json.dumps({"status": os.waitpid(question["wait"], 0)[1]}).encode() + b"\n")
            continue
        pid = os.fork()
        if not pid:
            _child(world, question)
        answers.write(json.dumps({"pid": pid}).encode() + b"\n")


def _child(world: Path, question: dict[str, Any]) -> None:
    """Do a job and end."""
    status = 70
    try:
        from . import jobs

        home, pid = Path(question["home"]), os.getpid()
        os.chdir(home)
        os.environ["RECBOLE_DYNAMICPO_CACHE"] = str(home / "cache")
        sys.argv = ["test"]
        # A shell lets its background jobs, and so the tests and all that they start, ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor, name in ((0, os.devnull), (1, f"{pid}.stdout"), (2, f"{pid}.stderr")):
            opened = os.open(name, os.O_RDWR | os.O_CREAT)
            os.dup2(opened, descriptor)
            os.close(opened)
        work = Path(question["arguments"].pop("watched", home))
        Faults(work, question["kind"], question["at"], home / f"{pid}.points").install()
        status = int(getattr(jobs, question["name"])(world, home, **question["arguments"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
