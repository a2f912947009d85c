"""A row before tokenization, as every part of the way from rows to scores takes it."""

from __future__ import annotations

from typing import NamedTuple


class PromptRow(NamedTuple):
    """One row before tokenization: what the prompt shows and which titles are scored."""

    history: list[str]  # titles, oldest first
    candidates: list[str]  # titles in prompt order
    completions: list[str]  # the titles to score
    template: int = 0  # which template to write the prompt with
    user: int = -1  # whose own share is taken out of counts, in training; -1: nobody's
