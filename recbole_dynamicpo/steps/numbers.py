"""The numbers that a step says of itself: sent by the device, read by the host one step later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.interaction import Interaction
from torch import Tensor

from ..dataset.columns import ROW_ID, losses_of
from ..errors import NumericsError
from ..language_model.packed import Moment, Sent
from ..objectives.diagnostics import BETA_BINS, Diagnostics

LOW, HIGH = Diagnostics._fields.index("beta_min"), Diagnostics._fields.index("beta_max")


class Numbers:
    """What a step says of itself.

    Args:
        found: (n,) on the device: gradient norm, loss, and for the preference stage means, the histogram of
            betas and the extremes of each process.
        begun: when the device came to the step.
        tokens: that it passed, padding left out.
        batches: its rows.
    """

    def __init__(self, found: Tensor, begun: Moment, tokens: int, batches: Sequence[Interaction]) -> None:
        self._begun, self._done = begun, Moment(found.device)
        self._sent = Sent(found)
        self.tokens, self.batches = tokens, batches

    def read(self) -> dict[str, Any]:
        """Return them by name; waits for the device.

        Raises:
            NumericsError: the loss or the gradient was not finite, so that the weights are spoilt.
        """
        size, loss, *rest = self._sent.read().tolist()
        if not np.isfinite([loss, size]).all():
            rows = sorted(int(row) for batch in self.batches for row in batch[ROW_ID])
            raise NumericsError(f"loss {loss}, gradient norm {size} in rows {rows}")
        values: dict[str, Any] = {"loss": loss, "grad_norm": size, "rows": sum(map(losses_of, self.batches))}
        values["tokens_per_second"] = self.tokens / self._done.seconds_since(self._begun)
        return values | (_diagnostics(rest) if rest else {})


def _diagnostics(numbers: Sequence[float]) -> dict[str, Any]:
    """Return the diagnostics of a step from what follows the loss."""
    width = len(Diagnostics._fields)
    values: dict[str, Any] = dict(zip(Diagnostics._fields, numbers, strict=False))
    extremes = numbers[width + BETA_BINS :]
    values |= {"beta_min": min(extremes[::2]), "beta_max": max(extremes[1::2])}
    values["beta_mean"] /= values["boundary_size"]
    values["beta_counts"] = [int(count) for count in numbers[width : width + BETA_BINS]]
    return values


def summary(values: Mapping[str, Any]) -> str:
    """Return what a progress bar shows of the numbers of a step."""
    text = f"loss {values['loss']:.3f}"
    if "violation_rate" in values:
        text += f", violations {values['violation_rate']:.2f}, wins {values['reward_win_rate']:.2f}"
    return text


class ReadLater:
    """Reads each step's numbers when the next step is on its way, or when somebody has to know them.

    Args:
        stage: whose steps they are.
        checkpoint: the folder that holds what was good last.
        say: told the step, counted from 1, and its numbers.
    """

    def __init__(self, stage: str, checkpoint: Path, say: Callable[[int, dict[str, Any]], object]) -> None:
        self._stage, self._checkpoint, self._say = stage, checkpoint, say
        self._left: tuple[int, Numbers, dict[str, Any]] | None = None

    def took(self, step: int, numbers: Numbers, beside: Mapping[str, Any]) -> None:
        """Take in a step, and read the one before it.

        Args:
            step: that was taken, counted from 1.
            numbers: of it.
            beside: what else is said of it.
        """
        before, self._left = self._left, (step, numbers, dict(beside))
        self._read(before)

    def settle(self) -> None:
        """Read what is left, so that nothing is unknown of the weights as they are.

        Raises:
            NumericsError: naming the step, which was not finite.
        """
        before, self._left = self._left, None
        self._read(before)

    def _read(self, left: tuple[int, Numbers, dict[str, Any]] | None) -> None:
        if left is None:
            return
        step, numbers, beside = left
        try:
            values = numbers.read()
        except NumericsError as error:
            self._left = None  # of weights that are spoilt
            where = f"stopped, the last good checkpoint is in {self._checkpoint}"
            raise NumericsError(f"stage {self._stage}, step {step}: {error}; {where}") from error
        self._say(step, values | beside)
