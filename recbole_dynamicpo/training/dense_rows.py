"""Dense rows: windows of training sequences, each title of which is a supervised position."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from ..dataset.columns import NEGATIVES, REFERENCE_LOGPS, START, STOP, TOKENS
from ..dataset.sampling import IntArray, row_generator
from ..dataset.windows import add_negatives, as_interaction, choose_windows, cut_windows, steps_of
from ..errors import SettingsError
from ..likelihoods.catalogue import FITTED_ROWS, CatalogueLikelihood
from ..likelihoods.likely import LikelyTitles
from ..names import FROM_POLICY
from .plan import StagePlan
from .reference import Rows
from .rows import Kept

if TYPE_CHECKING:
    from .model import DynamicPO

logger = logging.getLogger(__name__)

Pool = Callable[[int, IntArray], IntArray]  # of ``add_negatives``
EPOCH = "epoch"  # that drawn negatives are of


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
        self._drawn: dict[str, torch.Tensor] = {}
        logger.info(
            "stage %s: %d of %d training titles, windows of %d, %d epochs, %d titles a step",
            plan.name, self.count, there, self.window, plan.epochs, plan.rows_per_step,
        )  # fmt: skip

    def redraw(self, epoch: int, stop: Callable[[], bool]) -> bool:
        """See ``StageRows``: draw negatives by the policy's scores, where settings want that.

        Those of setting ``redraw: never`` are drawn by the reference, which is the policy as the stage began.
        """
        settings, model = self.model.settings, self.model
        if settings.negatives not in FROM_POLICY:
            return True
        windows, rows = self._windows(epoch)
        if not self._drawn or int(self._drawn[EPOCH]) != epoch:
            own = settings.negatives == "own"
            places = np.array([(chain, at) for chain, a, b in windows.tolist() for at in range(a, b)])
            count = settings.num_negatives if own else settings.hard_pool
            voice = "policy" if settings.redraw == "epoch" else "reference"
            found = LikelyTitles(model.dataset, self.likelihood).top(places, count, voice, stop)
            if found is None:
                return False
            line = {(chain, at): number for number, (chain, at) in enumerate(places.tolist())}
            pool = partial(_lines_of, found, line)
            self._draw(rows, epoch, settings.num_negatives, pool, own)
            self._drawn = {EPOCH: torch.tensor(epoch), NEGATIVES: rows[NEGATIVES]}
        rows.update(Interaction({NEGATIVES: self._drawn[NEGATIVES]}))
        self._begin(epoch, windows, rows)
        return True

    def drawn(self) -> dict[str, torch.Tensor]:
        """See ``StageRows``."""
        return self._drawn

    def restore(self, drawn: dict[str, torch.Tensor]) -> None:
        """See ``StageRows``."""
        self._drawn = drawn

    def add_reference(self, epoch: int, kept: Kept) -> bool:
        """See ``StageRows``; perhaps those of more negatives, of which these are the first."""
        rows, settings = self._rows(epoch)[0], self.model.settings
        known, count = Interaction(dict(rows.interaction)), settings.num_negatives
        if settings.reference_negatives > count and settings.negatives not in FROM_POLICY:
            more, count = settings.reference_negatives - count, settings.reference_negatives
            self._draw(known, epoch, count, self._pool())
            held = (known[STOP] - known[START]) * more
            known.update(Interaction({TOKENS: known[TOKENS] + held}))
        found = kept(Rows(known, self.likelihood.windows.keys(known), self._score))
        if found is None:
            return False
        found = found.view(len(found), -1, 1 + count)[:, :, : 1 + settings.num_negatives].flatten(1)
        rows.update(Interaction({REFERENCE_LOGPS: found}))
        return True

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
        if self._epoch is None or self._epoch[0] != epoch:
            windows, rows = self._windows(epoch)
            if self.plan.name == "preference":
                self._draw(rows, epoch, self.model.settings.num_negatives, self._pool())
            self._begin(epoch, windows, rows)
        assert self._epoch is not None
        return self._epoch[1:]

    def _windows(self, epoch: int) -> tuple[IntArray, Interaction]:
        """Return (n, 3) windows of an epoch, and them as rows."""
        return self._cut(self.count, row_generator(self.model.settings.seed, 29, self.plan.number, epoch))

    def _pool(self) -> Pool | None:
        """Return what is drawn from, where no policy is asked."""
        uniform = self.model.settings.negatives == "uniform"
        return None if uniform else self.likelihood.windows.hard_pool

    def _draw(
        self, rows: Interaction, epoch: int, count: int, pool: Pool | None, in_order: bool = False
    ) -> None:
        """Give each position of windows so many negatives, from a pool if there is one."""
        model, settings = self.model, self.model.settings
        again = epoch if settings.redraw == "epoch" else 0
        add_negatives(
            rows, self.chains, model.dataset.title_numbers.numpy(), model.dataset.taken,
            count, (settings.seed, 31, again), pool, in_order=in_order,
        )  # fmt: skip

    def _begin(self, epoch: int, windows: IntArray, rows: Interaction) -> None:
        """Let an epoch have these windows."""
        if NEGATIVES in rows.interaction:
            held = (rows[STOP] - rows[START]) * self.model.settings.num_negatives
            rows.update(Interaction({TOKENS: rows[TOKENS] + held}))  # a negative costs about one token
        self._epoch = epoch, rows, steps_of(windows, self.plan.steps_per_epoch(self.count))


def _lines_of(found: IntArray, line: Mapping[tuple[int, int], int], chain: int, at: IntArray) -> IntArray:
    """Return the lines of a chain's positions among those of all."""
    return found[[line[chain, one] for one in at.tolist()]]
