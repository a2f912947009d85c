"""What a killed training needs to go on as if nothing had happened.

A checkpoint is a folder with the policy adapter, the optimizer's state (safetensors) and the
progress (JSON), replaced as a whole. The random draws need no state: each is seeded by its place.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .policy import Policy
from .storage import atomic_folder, restore_swapped, write_json

STATE_FILE, OPTIMIZER_FILE = "state.json", "optimizer.safetensors"


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
        seconds: training time of each stage so far, resumed parts added up.
    """

    stage: str = "sft"
    step: int = 0
    best_score: float | None = None
    best_result: dict[str, float] | None = None
    worse: int = 0
    stopped: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Replace the checkpoint in ``folder``."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }
    with atomic_folder(folder) as work:
        policy.save(work)
        save_file(tensors, work / OPTIMIZER_FILE)
        write_json(work / STATE_FILE, asdict(progress))


def load_progress(folder: Path) -> Progress:
    """Return the progress that a checkpoint records.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    restore_swapped(folder)
    path = folder / STATE_FILE
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path}: no checkpoint to resume from ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error})") from error


def load_checkpoint(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved adapter and optimizer state in place.

    Raises:
        AdapterError, NumericsError: the adapter is damaged or does not fit.
        CheckpointError: the optimizer's state is damaged or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    policy.load(folder)
    path = folder / OPTIMIZER_FILE
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged optimizer state ({error})") from error
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        saved = [tuple(v.shape) for v in values.values() if v.dim()]
        if index >= len(shapes) or any(shape != shapes[index] for shape in saved):
            raise CheckpointError(f"{path}: optimizer state of parameter {index} does not fit this adapter")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
