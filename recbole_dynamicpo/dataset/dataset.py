"""RecBole data set and loader for language-model recommenders.

Adds to RecBole's SequentialDataset what the method needs and RecBole lacks: exact time order,
titles, and per row a fixed candidate list (the positive and distinct negatives that the user has
not interacted with) with a fixed prompt template.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from ..errors import DataError, SettingsError
from ..scoring.batches import PromptRow
from ..settings import read_settings
from .columns import CANDIDATE_IDS, ROW_ID, TEMPLATE
from .data_files import check_splits, data_notes, read_catalogue, require_data
from .hidden_items import hide_items
from .row_order import goes_on, put_in_order, shuffle_rows
from .sampling import (
    TEMPLATE_DRAWS,
    FloatArray,
    IntArray,
    choose_rows,
    draw_candidates,
    popularity_weights,
    row_generator,
)
from .windows import Chains, train_chains

logger = logging.getLogger(__name__)

PHASES = ("train", "valid", "test")

# Scores of one evaluation batch, float32 in a table (rows, items) of which RecBole holds several copies.
_MOST_SCORES = 1 << 24


@contextmanager
def _reading(config: Config) -> Iterator[None]:
    """Turn what RecBole and pandas raise over a data set or its settings into an error that names it."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        said = str(error).partition("\n")[0][:200]
        raise DataError(
            f"data set '{config['dataset']}' in {config['data_path']}: RecBole cannot load it with these "
            f"settings ({type(error).__name__}: {said})"
        ) from error


class DynamicPODataset(SequentialDataset):
    """Sequences with titles, exact order and fixed candidates.

    Rows that carry candidates of their own (setting ``candidate_field``) keep these, in their order;
    every other row gets candidates drawn by the seed.

    Attributes:
        settings: of the run; ``num_candidates`` is what the rows really have.
        catalogue: titles of the items 1 to ``item_num`` - 1.
        notes: what a reader of figures on these data has to know, a sentence each.
        started: time of day when loading began, seconds.
        lists_published: whether rows keep the candidate lists that they carry.
        time_ties: share of a user's neighbours that bear one time; None where there are no times.
        clock: (n,) the times that the time column numbers, seconds; None where it numbers none.

    Raises:
        SettingsError: a setting is wrong (checked before any file is read).
        DataError: no data, no titles, or too few items for the candidates.
    """

    inter_feat: Any  # a DataFrame until build(), then an Interaction

    def __init__(self, config: Config) -> None:
        self.started = time.time()
        self.settings = read_settings(config)
        require_data(config)
        with _reading(config):
            super().__init__(config)
        self.catalogue = read_catalogue(self)
        self.titles = np.array(["", *self.catalogue.titles], dtype=object)
        # (item_num,) one number a distinct title, from 1 on; 0 for no item.
        self.title_numbers = torch.from_numpy(np.unique(self.titles, return_inverse=True)[1].astype(np.int64))
        self.notes = data_notes(config)
        self.time_ties: float | None = None
        self.clock: FloatArray | None = None
        self.lists_published = False
        self.built: dict[str, DynamicPODataset] = {}  # by build(); the splits are shallow copies and share it
        self._used: list[tuple[IntArray, IntArray]] = []
        self._total: dict[str, int] = {}

    def _normalize(self) -> None:
        """Leave numbers as they are: no prompt shows any, and objectives may ask for ratings and times."""

    def _change_feat_format(self) -> None:
        """Put the interactions into the order that settings ask for, before times become float32."""
        if self.benchmark_filename_list is None and self.time_field in self.inter_feat:
            self.notes += put_in_order(self)
        self.notes += hide_items(self)
        super()._change_feat_format()

    def build(self) -> list[DynamicPODataset]:
        """Split as RecBole does; then cut valid and test to size and give them candidates."""
        self._limit_evaluation()
        with _reading(self.config):
            parts: list[DynamicPODataset] = super().build()
        check_splits(self, dict(zip(PHASES, parts, strict=True)))
        start = 0
        for part in parts:
            ids = torch.arange(start, start + len(part.inter_feat))
            part.inter_feat.update(Interaction({ROW_ID: ids}))
            start += len(ids)
        self.built.update(zip(PHASES, parts, strict=True))
        if self.benchmark_filename_list is not None and self.settings.history_order == "shuffled":
            self.notes.append(shuffle_rows(self, self.built))
        self.lists_published = self._candidates_are_published()
        if self.lists_published:
            self._check_fixed_candidates()
        self._used[:] = [self._used_until(phase) for phase in range(len(PHASES))]
        wanted = {"valid": self.settings.valid_rows, "test": self.settings.eval_rows}
        for phase, rows in wanted.items():
            self._keep(self.built[phase], phase, rows)
        return parts

    def _candidates_are_published(self) -> bool:
        """Say whether rows keep candidates that they carry, and note where they do not.

        Raises:
            SettingsError: they are to be kept, but the rows are cut anew.
        """
        settings, field = self.settings, self.settings.candidate_field
        if not any(field in part.inter_feat.interaction for part in self.built.values()):
            return False
        if settings.candidate_source == "published":
            if settings.history_order == "shuffled":
                raise SettingsError(
                    "candidate_source: got published, but with history_order shuffled the targets are not "
                    "those of the published lists; wanted fresh"
                )
            self.notes.append("candidates: as published, which may give targets away (see the audit)")
            return True
        for part in self.built.values():
            part.inter_feat.interaction.pop(field, None)
        self.notes.append(f"candidates: fresh, {settings.candidate_distribution}, not those of the files")
        return False

    def _limit_evaluation(self) -> None:
        """Evaluate fewer rows at once where the scores of all items would take gigabytes."""
        most = max(1, _MOST_SCORES // self.item_num)
        if "full" in str(self.config["eval_args"]["mode"]) and self.config["eval_batch_size"] > most:
            logger.info("eval_batch_size: %d, for there are %d items", most, self.item_num - 1)
            self.config["eval_batch_size"] = most

    def stage_rows(self, rows: int, skip: int = 0) -> Interaction:
        """Return ``rows`` training rows (0: all) with candidates and templates.

        Args:
            rows: how many; drawn by the seed.
            skip: rows of the same draw that another stage took first.
        """
        train = self.built["train"].inter_feat
        chosen = choose_rows(len(train), rows, self.settings.seed, phase=0, skip=skip)
        return self._with_candidates(train[np.sort(chosen)], phase=0)

    def history(self, interaction: Interaction) -> list[IntArray]:
        """Return the history item ids of each row, oldest first."""
        ids = interaction[self.iid_field + self.config["LIST_SUFFIX"]].cpu().numpy()
        lengths = interaction[self.item_list_length_field].cpu().numpy()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def prompt_rows(self, interaction: Interaction, scored: IntArray) -> list[PromptRow]:
        """Return the rows' prompts, with the items ``scored`` (B, any; 0: none) to be scored."""
        candidates = interaction[CANDIDATE_IDS].cpu().numpy()
        templates = interaction[TEMPLATE].tolist()
        named = [[self.titles[ids[ids > 0]].tolist() for ids in rows] for rows in (candidates, scored)]
        return [
            PromptRow(self.titles[history].tolist(), named[0][row], named[1][row], templates[row])
            for row, history in enumerate(self.history(interaction))
        ]

    @cached_property
    def chains(self) -> Chains:
        """Return what users took in training, as sequences."""
        return train_chains(self)

    def taken(self, user: int, phase: int = 0) -> IntArray:
        """Return the items that a user took in training; and in validation, with ``phase`` 1."""
        offsets, items = self._used[phase]
        return items[offsets[user] : offsets[user + 1]]

    def popularity(self) -> IntArray:
        """Return (item_num,) training interactions of each item."""
        return np.bincount(self._used[0][1], minlength=self.item_num).astype(np.int64)

    def subsampled(self) -> dict[str, tuple[int, int]]:
        """Return phase -> (rows used, rows there are) for valid and test."""
        return {phase: (len(self.built[phase].inter_feat), self._total[phase]) for phase in ("valid", "test")}

    def _keep(self, part: DynamicPODataset, phase: str, rows: int) -> None:
        """Cut one evaluation split to ``rows`` rows (0: all) in their old order, with candidates."""
        self._total[phase] = len(part.inter_feat)
        number = PHASES.index(phase)
        chosen = choose_rows(len(part.inter_feat), rows, self.settings.seed, phase=number)
        part.inter_feat = self._with_candidates(part.inter_feat[np.sort(chosen)], phase=number)

    def _with_candidates(self, rows: Interaction, phase: int) -> Interaction:
        """Return ``rows`` with CANDIDATE_IDS and TEMPLATE."""
        count = len(rows[self.iid_field])
        redrawn = self.settings.candidate_seed if phase else None
        seed = self.settings.seed if redrawn is None else redrawn
        draws = [row_generator(seed, phase, int(row)) for row in rows[ROW_ID].tolist()]
        template = torch.tensor([int(draw.integers(TEMPLATE_DRAWS)) for draw in draws], dtype=torch.int64)
        if self.settings.candidate_field in rows.interaction:
            candidates = rows[self.settings.candidate_field]
        else:
            drawn = [self._draw(rows, index, draws[index], phase) for index in range(count)]
            shape = (count, self.settings.num_candidates)
            candidates = torch.from_numpy(np.array(drawn, dtype=np.int64).reshape(shape))
        if phase:  # evaluation writes every prompt with the first template
            template.zero_()
        rows.update(Interaction({CANDIDATE_IDS: candidates, TEMPLATE: template}))
        return rows

    def _check_fixed_candidates(self) -> None:
        """Check the candidates that rows carry, and take their number for ``num_candidates``.

        Raises:
            DataError: naming the first row whose candidates repeat, or lack the item chosen.
            SettingsError: no row has enough candidates for ``num_negatives``.
        """
        field, widest = self.settings.candidate_field, 0
        for phase, part in self.built.items():
            if field not in part.inter_feat.interaction:
                return
            ids, chosen = part.inter_feat[field].numpy(), part.inter_feat[self.iid_field].numpy()
            in_order = np.sort(ids, axis=1)
            repeated = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] > 0)).any(axis=1)
            bad = np.flatnonzero(repeated | ~(ids == chosen[:, None]).any(axis=1))
            if len(bad):
                raise DataError(
                    f"data set '{self.dataset_name}', {phase} row {bad[0] + 1}: {field} must hold distinct "
                    f"items and the item chosen ({len(bad)} such rows)"
                )
            widest = max(widest, int((ids > 0).sum(axis=1).max(initial=0)))
        if widest <= self.settings.num_negatives:
            raise SettingsError(
                f"num_negatives: got {self.settings.num_negatives}, but the rows of data set "
                f"'{self.dataset_name}' carry {widest} candidates; wanted at most {widest - 1}"
            )
        for part in (self, *self.built.values()):
            part.settings = dataclasses.replace(self.settings, num_candidates=widest)

    def _draw(self, rows: Interaction, index: int, draw: np.random.Generator, phase: int) -> IntArray:
        user = int(rows[self.uid_field][index])
        offsets, items = self._used[phase]
        seen = np.concatenate([items[offsets[user] : offsets[user + 1]], *self.history(rows[[index]])])
        label = f"data set '{self.dataset_name}', user {self.id2token(self.uid_field, [user])[0]}"
        positive = int(rows[self.iid_field][index])
        weights = self._weights if self.settings.candidate_distribution == "popularity" else None
        count = self.settings.num_candidates
        titles = self.title_numbers.numpy()
        return draw_candidates(positive, seen, titles, count, draw, label, weights)

    @cached_property
    def _weights(self) -> FloatArray:
        return popularity_weights(self.popularity())

    def _used_until(self, phase: int) -> tuple[IntArray, IntArray]:
        """Return each user's items up to and with ``phase``, as (user_num + 1,) offsets and items.

        Later phases stay out: which items a user takes in the test split must not shape training.
        """
        users, items = [], []
        for name in PHASES[: phase + 1]:
            rows = self.built[name].inter_feat
            user, target = rows[self.uid_field].numpy(), rows[self.iid_field].numpy()
            histories = self.history(rows)
            begins = rows[self.item_list_length_field].numpy() == 1  # RecBole has a row of each later item
            if self.benchmark_filename_list is not None:
                begins = ~goes_on(user, histories, target)
            first = np.flatnonzero(begins)
            users += [user, np.repeat(user[first], [len(histories[row]) for row in first])]
            items += [target, *(histories[row] for row in first)]
        user, item = np.concatenate(users), np.concatenate(items)
        order = user.argsort(kind="stable")
        offsets = np.searchsorted(user[order], np.arange(self.user_num + 1))
        return offsets.astype(np.int64), item[order].astype(np.int64)
