"""Killed and gone on with: a short training of drawn rows, and the default job where RecBole is at hand.

    python benchmarks/gpu_job.py SHAPES DTYPE FOLDER STEPS [DIE_AFTER]

trains so many steps in a process of its own, which kills itself after some of them, if asked to. ``gpu.py``
calls it three times and compares what is left: undisturbed, killed, gone on with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_world import ROOT, World, preference_step  # first: it leaves the package's face out

import torch  # isort: skip

from recbole_dynamicpo.training.checkpoint import (
    CHECKPOINT,
    Progress,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from recbole_dynamicpo.training.checkpoint import load_progress as progress_of

STEPS, DIES_AFTER, EVERY = 6, 5, 2
RATE = 1e-3
FINAL = "adapter_model.safetensors"
Result = dict[str, Any]


@contextmanager
def exact() -> Iterator[None]:
    """Let a GPU compute the same bits each time, as far as torch can."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def train(shapes: str, dtype: str, folder: Path, steps: int, die_after: int | None) -> None:
    """Take steps from where the folder's checkpoint ends, and leave the adapter there.

    Args:
        shapes, dtype: of the model.
        folder: of the run.
        steps: in all.
        die_after: so many the process kills itself, before any checkpoint knows of the last one.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = World(shapes, getattr(torch, dtype), device, quick=shapes == "tiny")
    policy, progress = world.policy, Progress(stage="preference")
    optimizer = torch.optim.AdamW(policy.trainable(), lr=RATE, weight_decay=0.0)
    if has_checkpoint(folder):
        progress = progress_of(folder / CHECKPOINT)
        load_checkpoint(folder / CHECKPOINT, policy, optimizer)
    with exact():
        while progress.step < steps:
            optimizer.zero_grad()
            preference_step(world, world.batch(2, 7, progress.step))
            optimizer.step()
            progress.step += 1
            if progress.step == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if progress.step % EVERY == 0 or progress.step == steps:
                save_checkpoint(folder / CHECKPOINT, policy, optimizer, progress)


def resume(world: World) -> Result:
    """A training that is killed and gone on with, against one that nobody disturbed."""
    from safetensors.torch import load_file

    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

    def run(folder: Path, *more: int) -> int:
        asked = [world.name, world.dtype, str(folder), str(STEPS), *map(str, more)]
        return subprocess.run([sys.executable, __file__, *asked], env=environment, check=False).returncode

    with tempfile.TemporaryDirectory() as home:
        whole, cut = Path(home, "whole"), Path(home, "cut")
        for folder in (whole, cut):
            folder.mkdir()
        ended = [run(whole), run(cut, DIES_AFTER)]
        kept = progress_of(cut / CHECKPOINT).step
        ended.append(run(cut))
        if ended != [0, -signal.SIGKILL, 0]:
            return {"holds": False, "exit_statuses": ended}
        ours, theirs = (load_file(folder / CHECKPOINT / FINAL) for folder in (cut, whole))
        apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        moved = max(float(value.abs().max()) for value in theirs.values())
    return {
        "killed_after": DIES_AFTER, "gone_on_from": kept, "steps": STEPS, "largest_weight": moved,
        "largest_difference": apart, "same_bits": apart == 0.0, "holds": apart <= RATE / 10,
    }  # fmt: skip


def job(arguments: Sequence[str], seconds: float) -> Result:
    """Kill ``run_recbole --model=DynamicPO`` in its first stage, and let it go on.

    Args:
        arguments: settings and data set of the run.
        seconds: that it may take in all.
    """
    lacked = _lacked(arguments)
    if lacked:
        return {"lacked": lacked}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "recbole_dynamicpo.cli", "--model=DynamicPO", *arguments]
        command += [f"--checkpoint_dir={home}/saved", "--show_progress=False"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        run: dict[str, Any] = {"cwd": home, "env": {**os.environ, "PYTHONPATH": paths}, "text": True}
        said = Path(home, "said")
        with said.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, **run) as first:
            while first.poll() is None and len(_train_entries(home)) < 2:
                if time.perf_counter() - started > seconds:
                    first.kill()
                    return {"lacked": f"time: no two steps within {seconds:.0f} s"}
                time.sleep(0.05)
            killed = first.poll() is None
            first.kill()
        if not killed:
            return {"holds": False, "said": said.read_text()[-500:]}
        before = len(_train_entries(home))
        (folder,) = Path(home, "saved").glob("[!.]*")
        left = max(1.0, seconds - (time.perf_counter() - started))
        try:
            again = [*command, f"--resume={folder}"]
            done = subprocess.run(again, capture_output=True, timeout=left, check=False, **run)
        except subprocess.TimeoutExpired:
            return {"lacked": f"time: not done within {seconds:.0f} s"}
        steps = [(entry["stage"], entry["step"]) for entry in _train_entries(home)]
        found: Result = {"killed_after_steps": before, "steps": len(steps), "exit_status": done.returncode}
        whole = len(steps) == len(set(steps)) > before
        return found | {"holds": done.returncode == 0 and whole, "said": done.stderr[-500:]}


def _lacked(arguments: Sequence[str]) -> str:
    """Return what the job would want and there is not."""
    if find_spec("recbole") is None:
        return "RecBole"
    if not any(one.startswith("--backbone=") for one in arguments):
        from recbole_dynamicpo.errors import BackboneError
        from recbole_dynamicpo.language_model.embedded import embedded_folder

        try:
            embedded_folder()
        except (BackboneError, OSError) as error:
            return f"the embedded backbone ({str(error).splitlines()[0]})"
    return ""


def _train_entries(home: str) -> list[dict[str, Any]]:
    """Return the training steps in the journal of the run below a folder."""
    found = [*Path(home, "saved").glob("[!.]*/metrics.jsonl")]
    lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [entry for entry in entries if entry["kind"] == "train"]


if __name__ == "__main__":
    shapes, dtype, folder, steps, *rest = sys.argv[1:]
    train(shapes, dtype, Path(folder), int(steps), int(rest[0]) if rest else None)
