"""Rows of titles -> token ids: one shared prompt per row and its completions."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..language_model.packed import TokenBatch
from ..language_model.tokenizer import text_tokens, title_tokens, warn_of_titles
from .batches import PromptRow
from .prompts import Templates

logger = logging.getLogger(__name__)

# Titles whose tokens are kept, and the most characters of such a title: 20 MB at most, whatever is asked of a
# server.
TITLES_KEPT, LONGEST_KEPT = 20_000, 200


class Collator:
    """Writes prompts and tokenizes them together with the titles to score.

    A prompt that does not fit loses its oldest history titles first, never a part of a title and
    never a candidate. Where a template ends with the history (``Templates.sequence``), a prompt is its
    head and then each title as it is scored: with a space before it and the terminator behind it.

    Attributes:
        terminator: the token behind every title: that of a sequence's separator, where it is one token, else
            the end of sequence.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        templates: the prompt templates.
        max_length: most tokens of prompt and longest title together.
        max_history: most history titles in a prompt.
        limited_by: what sets ``max_length``, for messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Templates,
        *,
        max_length: int,
        max_history: int,
        limited_by: str = "max_length",
    ) -> None:
        self.tokenizer = tokenizer
        self.templates = templates
        self.max_length = max_length
        self.max_history = max_history
        self.limited_by = limited_by
        self.truncated_rows = 0  # prompts that lost history, since the start
        self.terminator: int = tokenizer.eos_token_id
        self._heads: dict[int, list[int]] = {}  # of the templates that are sequences
        for number in range(len(templates)):
            if (sequence := templates.sequence(number)) is not None:
                head, separator = sequence
                self._heads[number] = tokenizer(head).input_ids
                tokens = text_tokens(tokenizer, separator)
                self.terminator = tokens[0] if len(tokens) == 1 else tokenizer.eos_token_id
        self._kept = lru_cache(TITLES_KEPT)(self._encode)
        special = "|".join(map(re.escape, getattr(tokenizer, "all_special_tokens", ())))
        self._special = re.compile(special) if special else None

    def __call__(self, rows: Sequence[PromptRow]) -> TokenBatch:
        """Tokenize ``rows``.

        Raises:
            DataError: a row does not fit even without its history.
        """
        prompts, completions = self.token_ids(rows)
        return TokenBatch(*_pad(prompts), *_pad_nested(completions))

    def token_ids(self, rows: Sequence[PromptRow]) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Return the tokens of each row's prompt and of each of its completions.

        Raises:
            DataError: a row does not fit even without its history.
        """
        completions = [[self.title_ids(title) for title in row.completions] for row in rows]
        # Whatever is scored of a row, its prompt is the same: any title shown could be.
        longest = [
            max(len(self.title_ids(title)) for title in [*row.candidates, *row.completions]) for row in rows
        ]
        return self.prompt_ids(rows, [self.max_length - tokens for tokens in longest]), completions

    def prompt_ids(self, rows: Sequence[PromptRow], rooms: Sequence[int]) -> list[list[int]]:
        """Return the tokens of each row's prompt.

        Args:
            rows: histories and candidates.
            rooms: most tokens of each prompt.

        Raises:
            DataError: a row does not fit even without its history.
        """
        histories = [row.history[-self.max_history :] for row in rows]
        written = [index for index, row in enumerate(rows) if self.head(row.template) is None]
        texts = [
            self.templates.render(histories[index], rows[index].candidates, rows[index].template)
            for index in written
        ]
        tokens = iter(self.tokenizer(texts).input_ids if texts else ())
        prompts: list[list[int]] = []
        for row, history, room in zip(rows, histories, rooms, strict=True):
            plain = next(tokens) if self.head(row.template) is None else None
            ids = self._write(row, history) if plain is None or self._spells_special(row) else plain
            prompts.append(ids if len(ids) <= room else self._shorten(row, history, room))
        return prompts

    def head(self, template: int) -> list[int] | None:
        """Return the tokens before the history, where a template ends with it; else None."""
        return self._heads.get(template % len(self.templates))

    def _write(self, row: PromptRow, history: list[str]) -> list[int]:
        """Return the tokens of a prompt; a title that spells a special token stays text.

        The special tokens of a template count, except in a row with such a title.
        """
        if (head := self.head(row.template)) is not None:
            return [*head, *(token for title in history for token in self.title_ids(title))]
        text = self.templates.render(history, row.candidates, row.template)
        as_text = {"split_special_tokens": True} if self._spells_special(row) else {}
        ids: list[int] = self.tokenizer(text, **as_text).input_ids
        return ids

    def title_tokens(self, row: PromptRow) -> int:
        """Return about how many tokens the row packs into: those of its titles, without the template's."""
        shown = [*row.history[-self.max_history :], *row.candidates, *row.completions]
        return sum(len(self.title_ids(title)) for title in shown)

    def title_ids(self, title: str) -> list[int]:
        """Return the completion's tokens: a space, the title, the terminator."""
        encode = self._kept if len(title) <= LONGEST_KEPT else self._encode
        return [*encode(title), self.terminator]

    def catalogue_tokens(self, titles: Sequence[str]) -> list[list[int]]:
        """Return the tokens of a catalogue's titles, without the terminator.

        From here on titles end with what none of them holds: the separator, or else the end of sequence.
        """
        tokens = [self.title_ids(title)[:-1] for title in titles]
        warn_of_titles(self.tokenizer, titles, tokens)
        if any(self.terminator in title for title in tokens):
            self.terminator = self.tokenizer.eos_token_id
        return tokens

    def _encode(self, title: str) -> array[int]:
        return array("i", title_tokens(self.tokenizer, title))

    def _spells_special(self, row: PromptRow) -> bool:
        """Say whether a title of the row spells a special token."""
        return self._special is not None and any(map(self._special.search, [*row.history, *row.candidates]))

    def _way_out(self) -> str:
        raised = "raise max_length or " if self.limited_by == "max_length" else ""
        return f"{raised}lower num_candidates{'' if raised else ' or take another backbone'}"

    def _shorten(self, row: PromptRow, history: list[str], room: int) -> list[int]:
        """Return the prompt with as much of the newest history as fits into ``room`` tokens."""
        if not self.truncated_rows:
            logger.warning(
                "a prompt exceeds %s=%d tokens; the oldest history titles are left out "
                "(said once; the total is in the final report)",
                self.limited_by,
                self.max_length,
            )
        self.truncated_rows += 1
        ids = self._write(row, history)
        for kept in range(len(history) - 1, -1, -1):
            ids = self._write(row, history[len(history) - kept :])
            if len(ids) <= room:
                return ids
        raise DataError(
            f"a prompt of {len(row.candidates)} candidates needs {len(ids)} tokens without any history, "
            f"but {self.limited_by}={self.max_length} leaves {room}; {self._way_out()}"
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
