"""Dense rows: windows of training sequences, each title of which is a supervised position."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from ..dataset.columns import NEGATIVES, REFERENCE_LOGPS, START, STOP, TOKENS
from ..dataset.sampling import IntArray, row_generator
from ..dataset.windows import add_negatives, as_interaction, choose_windows, cut_windows, steps_of
from ..errors import SettingsError
from ..likelihoods.catalogue import FITTED_ROWS, CatalogueLikelihood
from .plan import StagePlan
from .reference import Rows

if TYPE_CHECKING:
    from .model import DynamicPO

logger = logging.getLogger(__name__)


class DenseRows:
    """A stage whose rows are the positions of windows; every epoch cuts and draws anew.

    Attributes:
        count: positions of an epoch.

    Args:
        model: gives data set, settings and likelihood.
        plan: of the stage.

    Raises:
        SettingsError: there are no training titles.
    """

    def __init__(self, model: DynamicPO, plan: StagePlan) -> None:
        self.model, self.plan = model, plan
        self.chains = model.dataset.chains
        assert isinstance(model.likelihood, CatalogueLikelihood)
        self.likelihood = model.likelihood
        there = self.chains.positions
        self.count = min(plan.rows, there) if plan.rows else there
        self.window = min(model.settings.window, plan.rows_per_step)  # no step is without one
        if not there:
            raise SettingsError(f"stage {plan.name}: the data set has no training rows")
        titles = ["", *model.dataset.catalogue.titles]
        collator = model.collator
        self.tokens = np.array([0, *(len(collator.title_ids(title)) for title in titles[1:])])
        self.room = self.likelihood.scorer.room - len(self.likelihood.windows.head)
        self._epoch: tuple[int, Interaction, IntArray] | None = None
        logger.info(
            "stage %s: %d of %d training titles, windows of %d, %d epochs, %d titles a step",
            plan.name, self.count, there, self.window, plan.epochs, plan.rows_per_step,
        )  # fmt: skip

    def add_reference(self, epoch: int, kept: Callable[[Rows], torch.Tensor]) -> None:
        """Add the reference's log-probabilities of an epoch's rows; ``kept`` knows or computes them."""
        rows, settings = self._rows(epoch)[0], self.model.settings
        known, count = Interaction(dict(rows.interaction)), settings.num_negatives
        if settings.reference_negatives > count:
            count = settings.reference_negatives
            self._add_negatives(known, epoch, count)
        found = kept(Rows(known, self.likelihood.windows.keys(known), self._score))
        found = found.view(len(found), -1, 1 + count)[:, :, : 1 + settings.num_negatives].flatten(1)
        rows.update(Interaction({REFERENCE_LOGPS: found}))

    def _score(self, rows: Interaction) -> torch.Tensor:
        return self.likelihood.windows.reference_logps(rows, self.window)

    def batches(self, epoch: int, done: int) -> Iterator[list[Interaction]]:
        """Yield the batches of each optimizer step of an epoch, after the ``done`` steps that were taken."""
        rows, steps = self._rows(epoch)
        for step in range(done, self.plan.steps_per_epoch(self.count)):
            chosen = np.flatnonzero(steps == step)
            sizes = rows[TOKENS].numpy()[chosen]
            yield [rows[torch.from_numpy(chosen[np.argsort(sizes, kind="stable")])]]

    def settle(self) -> None:
        """See ``StageRows``; after SFT the weights of language model and priors are fitted."""
        if self.plan.name != "sft":
            return
        _, rows = self._cut(FITTED_ROWS, row_generator(self.model.settings.seed, 43))
        self.likelihood.fit_mixture(rows)

    def _cut(self, count: int, draw: np.random.Generator) -> tuple[IntArray, Interaction]:
        """Return (n, 3) windows that hold so many positions, and them as rows."""
        windows = cut_windows(self.chains, self.tokens, self.window, self.room, draw)
        windows = choose_windows(windows, count, draw)
        return windows, as_interaction(windows, self.chains, self.tokens, self.model.dataset.uid_field)

    def _rows(self, epoch: int) -> tuple[Interaction, IntArray]:
        """Return the windows of an epoch, and which step takes each."""
        if self._epoch is not None and self._epoch[0] == epoch:
            return self._epoch[1:]
        settings = self.model.settings
        draw = row_generator(settings.seed, 29, self.plan.number, epoch)
        windows, rows = self._cut(self.count, draw)
        if self.plan.name == "preference":
            self._add_negatives(rows, epoch, settings.num_negatives)
        self._epoch = epoch, rows, steps_of(windows, self.plan.steps_per_epoch(self.count))
        return self._epoch[1:]

    def _add_negatives(self, rows: Interaction, epoch: int, count: int) -> None:
        """Add the column of so many negatives, in place of what is there; fewer are the first of more."""
        dataset, settings = self.model.dataset, self.model.settings
        there = rows[NEGATIVES].shape[2] if NEGATIVES in rows.interaction else 0
        again = epoch if settings.redraw == "epoch" else 0
        pool = None if settings.negatives == "uniform" else self.likelihood.windows.hard_pool
        add_negatives(
            rows, self.chains, dataset.title_numbers.numpy(), dataset.taken, count,
            (settings.seed, 31, again), pool,
        )  # fmt: skip
        held = (rows[STOP] - rows[START]) * (count - there)
        rows.update(Interaction({TOKENS: rows[TOKENS] + held}))  # a negative costs about one token
