"""The two training stages as plans: how often, how fast, over which rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..dataset.columns import CANDIDATE_IDS, TEMPLATE
from ..errors import DataError, short
from ..names import STAGES
from ..objectives.strategies import find_objective
from ..scoring.collate import Collator
from ..scoring.prompt_lengths import too_long
from ..settings import Settings


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: ``sft`` or ``preference``.
        epochs: passes over the rows.
        learning_rate: the highest one.
        batch_size: rows per forward pass.
        accumulation: forward passes per optimizer step.
        rows: training rows, as asked for; 0 means all.
        skip: rows of the same draw that an earlier stage takes.
        warmup_ratio: share of the steps with rising learning rate.
    """

    name: str
    epochs: int
    learning_rate: float
    batch_size: int
    accumulation: int
    rows: int
    skip: int
    warmup_ratio: float

    @property
    def number(self) -> int:
        """Position in the order of the stages."""
        return STAGES.index(self.name)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_size * self.accumulation

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimizer steps of an epoch over ``rows`` rows."""
        return math.ceil(rows / self.rows_per_step)

    def rows_after(self, step: int, rows: int) -> int:
        """Return how many rows ``step`` steps take, with ``rows`` in an epoch."""
        epochs, rest = divmod(step, self.steps_per_epoch(rows))
        return epochs * rows + min(rest * self.rows_per_step, rows)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the rate of 0-based ``step`` of ``total``: linear warm-up, then a cosine to zero."""
        warmup = round(self.warmup_ratio * total)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def plan_stages(settings: Settings) -> list[StagePlan]:
    """Return the stages that the settings ask for, in order.

    Raises:
        SettingsError: the objective is a class that cannot be had.
    """
    find_objective(settings.objective, vars(settings))
    plans = [
        StagePlan(
            "sft",
            0 if settings.sft_adapter else settings.sft_epochs,
            settings.sft_learning_rate,
            settings.sft_batch_size,
            settings.sft_accumulation_steps,
            settings.sft_rows,
            0,
            settings.warmup_ratio,
        ),
        StagePlan(
            "preference",
            settings.epochs,
            settings.learning_rate,
            settings.train_batch_size,
            settings.accumulation_steps,
            settings.preference_rows,
            settings.sft_rows,
            settings.warmup_ratio,
        ),
    ]
    return [plan for plan in plans if plan.epochs > 0]


def check_prompts(dataset: Any, collator: Collator) -> None:
    """See before training that the prompt of every row of a run fits.

    Rows of RecBole's sampled evaluation are not known yet, and checked with their own candidates; once
    they are, see ``check_rows``.

    Args:
        dataset: a built ``DynamicPODataset``.
        collator: that writes its prompts.

    Raises:
        DataError: naming the row, and the item with its longest title.
    """
    parts = {phase: dataset.built[phase].inter_feat for phase in ("valid", "test")}
    for plan in plan_stages(dataset.settings):
        parts[plan.name] = dataset.stage_rows(plan.rows, plan.skip)
    for name, rows in parts.items():
        check_rows(dataset, collator, name, rows)


def check_rows(dataset: Any, collator: Collator, name: str, rows: Any) -> None:
    """See that the prompts of some rows fit.

    Args:
        dataset: a built ``DynamicPODataset``.
        collator: that writes its prompts.
        name: of the split or stage, for the message.
        rows: an Interaction with candidates and templates.

    Raises:
        DataError: naming the row, and the item with its longest title.
    """
    if not len(rows):
        return
    candidates = rows[CANDIDATE_IDS].numpy()
    found = too_long(collator, dataset.titles.tolist(), candidates, rows[TEMPLATE].numpy())
    if found is not None:
        row, reason = found
        longest = max(candidates[row].tolist(), key=lambda item: len(dataset.titles[item]))
        item, title = dataset.field2id_token[dataset.iid_field][longest], dataset.titles[longest]
        user = dataset.id2token(dataset.uid_field, [int(rows[dataset.uid_field][row])])[0]
        raise DataError(
            f"data set '{dataset.dataset_name}', a {name} row of user '{user}': {reason}; its longest "
            f"title, of item '{item}', has {len(title)} letters: {short(title)}"
        )
