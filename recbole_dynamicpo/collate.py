"""Rows of titles -> token ids: one shared prompt per row and its completions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .batches import PromptRow, TokenBatch
from .errors import DataError
from .prompts import Templates

logger = logging.getLogger(__name__)


class Collator:
    """Writes prompts and tokenizes them together with the titles to score.

    A prompt that does not fit loses its oldest history titles first, never a part of a title and
    never a candidate.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        templates: the prompt templates.
        max_length: most tokens of prompt and longest completion together.
        max_history: most history titles in a prompt.
    """

    def __init__(self, tokenizer: Any, templates: Templates, *, max_length: int, max_history: int) -> None:
        self.tokenizer = tokenizer
        self.templates = templates
        self.max_length = max_length
        self.max_history = max_history
        self.truncated_rows = 0  # prompts that lost history, since the start
        self._titles: dict[str, list[int]] = {}

    def __call__(self, rows: Sequence[PromptRow]) -> TokenBatch:
        """Tokenize ``rows``.

        Raises:
            DataError: a row does not fit even without its history.
        """
        completions = [[self.title_ids(title) for title in row.completions] for row in rows]
        histories = [row.history[-self.max_history :] for row in rows]
        texts = [
            self.templates.render(history, row.candidates, row.template)
            for history, row in zip(histories, rows, strict=True)
        ]
        prompts: list[list[int]] = self.tokenizer(texts).input_ids
        for index, row in enumerate(rows):
            room = self.max_length - max(len(ids) for ids in completions[index])
            if len(prompts[index]) > room:
                prompts[index] = self._shorten(row, histories[index], room)
        return TokenBatch(
            *_pad(prompts),
            *_pad_nested(completions),
        )

    def texts(self, row: PromptRow) -> list[str]:
        """Return the prompt of a row, before any truncation, and its completions."""
        history = row.history[-self.max_history :]
        prompt = self.templates.render(history, row.candidates, row.template)
        return [f"{prompt}\n{self.max_length}", *row.completions]

    def title_ids(self, title: str) -> list[int]:
        """Return the completion's tokens: a space, the title, end of sequence."""
        ids = self._titles.get(title)
        if ids is None:
            # A title that spells a special token stays text.
            encoded = self.tokenizer(
                " " + title, add_special_tokens=False, split_special_tokens=True
            ).input_ids
            ids = self._titles[title] = [*encoded, self.tokenizer.eos_token_id]
        return ids

    def _shorten(self, row: PromptRow, history: list[str], room: int) -> list[int]:
        """Return the prompt with as much of the newest history as fits into ``room`` tokens."""
        if not self.truncated_rows:
            logger.warning(
                "a prompt exceeds max_length=%d tokens; the oldest history titles are left out "
                "(said once; the total is in the final report)",
                self.max_length,
            )
        self.truncated_rows += 1
        ids: list[int] = self.tokenizer(
            self.templates.render(history, row.candidates, row.template)
        ).input_ids
        for kept in range(len(history) - 1, -1, -1):
            newest = history[len(history) - kept :]
            text = self.templates.render(newest, row.candidates, row.template)
            ids = self.tokenizer(text).input_ids
            if len(ids) <= room:
                return ids
        raise DataError(
            f"a prompt of {len(row.candidates)} candidates needs {len(ids)} tokens without any history, "
            f"but max_length leaves {room}; raise max_length or lower num_candidates"
        )


def _pad(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return (B, longest) ids padded on the right with 0, and the (B,) lengths."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded, lengths


def _pad_nested(groups: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Return (B, C, longest) ids and (B, C) lengths; rows with fewer completions get empty ones."""
    most = max(len(group) for group in groups)
    flat = [ids for group in groups for ids in group + [[]] * (most - len(group))]
    padded, lengths = _pad(flat)
    return padded.view(len(groups), most, -1), lengths.view(len(groups), most)
