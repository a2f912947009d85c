"""The training rows of a stage and the batches that each of its optimizer steps takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction

from ..dataset.columns import CANDIDATE_IDS, REFERENCE_LOGPS, ROW_ID, SCORED, TOKENS
from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import IntArray, draw_scored, epoch_order
from ..errors import DataError, SettingsError
from .plan import StagePlan
from .reference import Rows

if TYPE_CHECKING:
    from .model import DynamicPO


logger = logging.getLogger(__name__)

Kept = Callable[[Rows], torch.Tensor | None]  # of ``reference_logps``


def stage_rows(dataset: DynamicPODataset, plan: StagePlan) -> Interaction:
    """Return the rows of a stage, drawn by the seed.

    Raises:
        SettingsError: there are none.
    """
    rows = dataset.stage_rows(plan.rows, plan.skip)
    count = len(rows[ROW_ID])
    if not count:
        raise SettingsError(f"stage {plan.name}: the data set has no training rows")
    logger.info(
        "stage %s: %d of %d training rows, %d epochs, %d rows a step", plan.name, count,
        len(dataset.built["train"].inter_feat), plan.epochs, plan.rows_per_step,
    )  # fmt: skip
    return rows


def scored_columns(
    rows: Interaction, item_field: str, titles: IntArray, negatives: int, seed: int, epoch: int
) -> torch.Tensor:
    """Return (n, 1 + K) columns of the candidates: the positive, then this epoch's negatives.

    Args:
        rows: (n) with their candidates.
        item_field: name of the column of the item chosen.
        titles: (items,) a number of each item's title; another item of the positive's title is no negative.
        negatives: K.
        seed, epoch: decide the draw.

    Raises:
        DataError: a row's positive is not among its candidates.
    """
    candidates, chosen = rows[CANDIDATE_IDS].numpy(), rows[item_field].numpy()[:, None]
    hit = candidates == chosen
    if not hit.any(axis=1).all():
        row = int(rows[ROW_ID][int((~hit.any(axis=1)).argmax())])
        raise DataError(f"row {row}: the item chosen is not among the row's candidates")
    present = (candidates > 0) & (hit | (titles[candidates] != titles[chosen]))
    return torch.from_numpy(draw_scored(hit, present, negatives, seed, epoch))


def row_tokens(model: DynamicPO, rows: Interaction, scored: IntArray) -> IntArray:
    """Return (n,) about how many tokens each row packs into: those of its titles, without the template's.

    Args:
        model: gives titles and tokenizer.
        rows: (n) with their candidates.
        scored: (n, any) items to score; 0 where there is none.
    """
    candidates = rows[CANDIDATE_IDS].numpy()
    histories = [items[-model.settings.max_history :] for items in model.dataset.history(rows)]
    known = np.unique(np.concatenate([candidates.ravel(), scored.ravel(), *histories]))
    lengths = np.zeros(known[-1] + 1, dtype=np.int64)
    lengths[known[known > 0]] = [len(model.collator.title_ids(model.titles[i])) for i in known[known > 0]]
    counts: IntArray = lengths[candidates].sum(axis=1) + lengths[scored].sum(axis=1)
    counts += np.array([lengths[items].sum() for items in histories])
    return counts


class StageDataLoader(TrainDataLoader):
    """RecBole's training loader over the rows of one epoch, in the order in which they lie.

    Args:
        dataset: the built training data set.
        rows: what ``DynamicPODataset.stage_rows`` returned.
        order: (n,) the epoch's order.
        batch_size: rows per batch.
    """

    def __init__(
        self, config: Config, dataset: DynamicPODataset, rows: Interaction, order: IntArray, batch_size: int
    ) -> None:
        self.rows_per_batch = batch_size
        super().__init__(config, dataset.copy(rows[order]), None, shuffle=False)

    def _init_batch_size_and_step(self) -> None:
        self.step = self.rows_per_batch
        self.set_batch_size(self.rows_per_batch)


def step_batches(
    model: DynamicPO, plan: StagePlan, rows: Interaction, epoch: int, done: int
) -> Iterator[list[Interaction]]:
    """Yield the batches of each optimizer step of an epoch, after the ``done`` steps that were taken.

    Args:
        model: gives data set and settings.
        plan: of the stage.
        rows: (n) of the stage; the epoch's negatives and the rows' sizes are added to them.
        epoch: counted from 0.
        done: steps of this epoch.
    """
    settings, dataset = model.settings, model.dataset
    if plan.name == "preference":
        titles = dataset.title_numbers.numpy()
        columns = scored_columns(rows, model.ITEM_ID, titles, settings.num_negatives, settings.seed, epoch)
        rows.update(Interaction({SCORED: columns}))
        scored = rows[CANDIDATE_IDS].gather(1, columns).numpy()
    else:
        scored = rows[model.ITEM_ID].numpy()[:, None]
    tokens = row_tokens(model, rows, scored)
    rows.update(Interaction({TOKENS: torch.from_numpy(tokens)}))
    order = epoch_order(tokens, plan.batch_size, settings.seed, plan.number, epoch)
    left = order[done * plan.rows_per_step :]
    loader = StageDataLoader(dataset.config, dataset, rows, left, plan.batch_size)
    batches: list[Interaction] = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == plan.accumulation:
            yield batches
            batches = []
    if batches:
        yield batches


class StageRows(Protocol):
    """What a stage trains on.

    Attributes:
        count: supervised rows of an epoch.
    """

    count: int

    def redraw(self, epoch: int, stop: Callable[[], bool]) -> bool:
        """Draw what depends on the policy as it is when an epoch begins.

        False if a process was to ``stop``.
        """

    def drawn(self) -> dict[str, torch.Tensor]:
        """Return what ``redraw`` drew, which a checkpoint keeps, as the policy moves on within an epoch."""

    def restore(self, drawn: dict[str, torch.Tensor]) -> None:
        """Take what a checkpoint kept, so that ``redraw`` finds it for an epoch that had begun."""

    def add_reference(self, epoch: int, kept: Kept) -> bool:
        """Add the reference's log-probabilities of an epoch's rows; ``kept`` knows or computes them.

        False if a process was to stop.
        """

    def batches(self, epoch: int, done: int) -> Iterator[list[Interaction]]:
        """Yield the batches of each optimizer step of an epoch, after the ``done`` steps that were taken."""

    def settle(self) -> None:
        """Fit, before the model is validated, what is not left to the steps."""


class ListedRows:
    """Rows of their own, each with its candidates; the same ones every epoch."""

    def __init__(self, model: DynamicPO, plan: StagePlan) -> None:
        self.model, self.plan = model, plan
        self.rows = stage_rows(model.dataset, plan)
        self.count = len(self.rows[ROW_ID])

    def redraw(self, epoch: int, stop: Callable[[], bool]) -> bool:
        """See ``StageRows``; nothing does."""
        return True

    def drawn(self) -> dict[str, torch.Tensor]:
        """See ``StageRows``."""
        return {}

    def restore(self, drawn: dict[str, torch.Tensor]) -> None:
        """See ``StageRows``."""

    def add_reference(self, epoch: int, kept: Kept) -> bool:
        """See ``StageRows``; those of all candidates, once for all epochs."""
        if REFERENCE_LOGPS in self.rows.interaction:
            return True
        keys = self.model.likelihood.keys(self.rows, self.rows[CANDIDATE_IDS].numpy())

        def score(rows: Interaction) -> torch.Tensor:
            with self.model.speaking_as("reference"):
                return self.model.candidate_logps(rows)

        found = kept(Rows(self.rows, keys, score))
        if found is not None:
            self.rows.update(Interaction({REFERENCE_LOGPS: found}))
        return found is not None

    def batches(self, epoch: int, done: int) -> Iterator[list[Interaction]]:
        """See ``StageRows``."""
        return step_batches(self.model, self.plan, self.rows, epoch, done)

    def settle(self) -> None:
        """See ``StageRows``; nothing is."""
