"""RecBole's own models on torch 2.6 and later: let a run load the checkpoint that it wrote itself.

RecBole saves a pickle and loads the best one for the test. Since torch 2.6 that load refuses anything but
plain tensors, and no list of safe classes helps, because RecBole's pickle protocol is refused as well. A file
that this very process wrote and nobody changed since is safe to unpickle; every other file keeps torch's
default. This module imports nothing of RecBole or torch: it is handed the module to patch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

# Absolute path -> what the file looked like right after this process had written it.
_written: dict[str, tuple[int, int, int, int]] = {}


def load_own_checkpoints(module: ModuleType) -> None:
    """Patch ``Trainer`` of the module ``recbole.trainer.trainer``; may be called any number of times."""
    trainer: Any = module.Trainer
    if getattr(trainer.evaluate, "loads_own_checkpoints", False):
        return
    trainer._save_checkpoint = _remembering(trainer._save_checkpoint)
    trainer.evaluate = _loading(trainer.evaluate, module.torch)


def _remembering(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def save_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.get("saved_model_file", self.saved_model_file))
        save(self, epoch, verbose, **kwargs)
        if path.is_file():  # only the first process of several writes
            with path.open("rb") as handle:
                _written[os.path.abspath(path)] = _look(handle)

    return save_checkpoint


def _loading(evaluate: Callable[..., Any], torch: Any) -> Callable[..., Any]:
    @functools.wraps(evaluate)
    def load_and_evaluate(
        self: Any,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        path = str(model_file or self.saved_model_file)
        if eval_data and load_best_model and os.path.abspath(path) in _written:
            with open(path, "rb") as handle:
                if _look(handle) == _written[os.path.abspath(path)]:
                    checkpoint = torch.load(handle, map_location=self.device, weights_only=False)
                    self.model.load_state_dict(checkpoint["state_dict"])
                    self.model.load_other_parameter(checkpoint.get("other_parameter"))
                    self.logger.info(f"Loading model structure and parameters from {path}")
                    load_best_model = False
        return evaluate(self, eval_data, load_best_model, model_file, show_progress)

    load_and_evaluate.loads_own_checkpoints = True  # type: ignore[attr-defined]
    return load_and_evaluate


def _look(handle: IO[bytes]) -> tuple[int, int, int, int]:
    """Return what changes when somebody writes or replaces an open file."""
    state = os.fstat(handle.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
