"""What a killed training needs to go on as if nothing had happened.

A checkpoint is a folder with the policy adapter, the optimizer's state (safetensors) and the
progress (JSON), replaced as a whole. The random draws need no state: each is seeded by its place. Negatives
that were drawn by the policy's scores as an epoch began are there too, since the policy has moved on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..language_model.adapter_folder import CONFIG_FILE, SCALARS_FILE, WEIGHTS_FILE, write_tensors
from ..language_model.policy import Policy
from ..names import STAGES
from ..storage import (
    atomic_folder,
    is_number,
    load_json,
    restore_swapped,
    sha256_file,
    sha256_files,
    write_json,
)
from ..tracking.journal import Journal
from ..tracking.run_folder import check_identity

logger = logging.getLogger(__name__)

STATE_FILE, OPTIMIZER_FILE, DRAWN_FILE = "state.json", "optimizer.safetensors", "drawn.safetensors"
CHECKPOINT = "checkpoint"  # folder within the folder of a run
# Files whose SHA-256 the state records.
_SUMMED = (WEIGHTS_FILE, CONFIG_FILE, SCALARS_FILE, OPTIMIZER_FILE, DRAWN_FILE)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        stage: the stage that ``step`` counts in.
        step: optimizer steps done in it.
        best_score: best validation score of the stage so far; None before the first validation.
        best_result: RecBole's metrics of that validation.
        worse: validations in a row that were not better.
        stopped: whether the stage ended early.
        seconds: spent so far on each stage's training, on validation and on the reference; resumed parts
            are added up.
        tokens_per_batch: of a forward pass, perhaps fewer than set since memory ran out; 0: as set.
    """

    stage: str = "sft"
    step: int = 0
    best_score: float | None = None
    best_result: dict[str, float] | None = None
    worse: int = 0
    stopped: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    tokens_per_batch: int = 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that the block takes to ``seconds[what]``."""
        started = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started


def save_checkpoint(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    drawn: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Replace the checkpoint in ``folder``; ``drawn``: what ``StageRows.drawn`` returned."""
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }
    with atomic_folder(folder) as work:
        policy.save(work)
        write_tensors(work / OPTIMIZER_FILE, tensors)
        if drawn:
            write_tensors(work / DRAWN_FILE, dict(drawn))
        sums = sha256_files(work, [name for name in _SUMMED if (work / name).is_file()])
        write_json(work / STATE_FILE, {**asdict(progress), "sha256": sums})


def has_checkpoint(folder: Path) -> bool:
    """Say whether the run in ``folder`` left a checkpoint."""
    restore_swapped(folder / CHECKPOINT)
    return (folder / CHECKPOINT / STATE_FILE).is_file()


def load_progress(folder: Path) -> Progress:
    """Return the progress that a checkpoint records.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    restore_swapped(folder)
    return _read_state(folder)[0]


def resume_run(run_folder: Path, decided_by: Mapping[str, Any], journal: Journal | None) -> Progress:
    """Return the progress of an interrupted run, and take back what its journal says beyond it.

    Args:
        run_folder: with a checkpoint.
        decided_by: what decides the training now; it must be what decided it then.
        journal: of the run; None where another process takes it back.

    Raises:
        CheckpointError: no checkpoint, or something differs; names each difference.
    """
    progress = load_progress(run_folder / CHECKPOINT)
    check_identity(run_folder, decided_by)
    if journal is not None:
        before = ("prepare", *STAGES[: STAGES.index(progress.stage)])
        journal.rewind(progress.stage, progress.step, before)
    logger.info("resuming %s at step %d of stage %s", run_folder, progress.step, progress.stage)
    return progress


def _read_state(folder: Path) -> tuple[Progress, dict[str, str]]:
    """Return the progress and the SHA-256 of the other files of a checkpoint."""
    path = folder / STATE_FILE
    try:
        state = {"tokens_per_batch": 0, **load_json(path)}
        sums = dict(state.pop("sha256"))
        wrong = [name for name, valid in _VALID.items() if not valid(state[name])]
        if wrong:
            raise ValueError(f"{wrong[0]} is {state[wrong[0]]!r}")
        return Progress(**state), sums
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: no checkpoint to resume from ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error!r})") from error


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


# What each entry of the state may be.
_VALID: dict[str, Callable[[Any], bool]] = {
    "stage": lambda value: value in STAGES,
    "step": _count,
    "best_score": lambda value: value is None or is_number(value),
    "best_result": lambda value: value is None or _numbers(value),
    "worse": _count,
    "stopped": lambda value: isinstance(value, bool),
    "seconds": _numbers,
    "tokens_per_batch": _count,
}


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Put the saved adapter and optimizer state in place, and return what was drawn by the policy.

    Raises:
        AdapterError, NumericsError: the adapter does not fit.
        CheckpointError: a file is not the one that was written, or the optimizer's state does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name, wanted in _read_state(folder)[1].items():
        if name in _SUMMED and _sum_of(folder / name) != wanted:
            raise CheckpointError(
                f"{folder / name}: damaged checkpoint (its SHA-256 is not that in {STATE_FILE})"
            )
    policy.load(folder)
    path = folder / OPTIMIZER_FILE
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged optimizer state ({error})") from error
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or not value.is_floating_point() or not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} is no finite optimizer state of a numbered parameter")
        state.setdefault(int(index), {})[key] = value
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        if values.keys() != state[min(state)].keys():
            raise CheckpointError(f"{path}: parameter {index} has other optimizer state than the rest")
        saved = [tuple(v.shape) for v in values.values() if v.dim()]
        if index >= len(shapes) or any(shape != shapes[index] for shape in saved):
            raise CheckpointError(f"{path}: optimizer state of parameter {index} does not fit this adapter")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return load_file(folder / DRAWN_FILE) if DRAWN_FILE in _read_state(folder)[1] else {}


def _sum_of(path: Path) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, wanted the file that {STATE_FILE} lists") from error
