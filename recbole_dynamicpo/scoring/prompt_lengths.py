"""How many tokens the prompts of a data set need for a backbone; only its tokenizer is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..ingredients import default_settings
from ..language_model.backbone import resolve_backbone
from ..language_model.embedded import EMBEDDED, embedded_in_cache
from ..language_model.tokenizer import load_tokenizer
from ..names import MODEL_NAMES
from ..settings import properties_folder
from .batches import PromptRow
from .collate import Collator
from .prompts import load_templates

_MARGIN = 1.5  # on a sum of the tokens of parts, which may be more or fewer together


@dataclass(frozen=True)
class PromptLengths:
    """How long prompts are as a collator writes them; the audit of a data set asks for such an object.

    Attributes:
        described: what a reader has to know of it: the backbone, the template, the limits.
        collator: with the tokenizer and the templates.
    """

    described: dict[str, str | int]
    collator: Collator

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its longest candidate together."""
        return self.collator.max_length

    def measure(self, prompts: list[tuple[list[str], list[str]]]) -> list[int]:
        """Return the tokens of each prompt and its longest candidate, before any truncation.

        Args:
            prompts: history titles, oldest first, and candidate titles of each.
        """
        collator = self.collator
        rows = [PromptRow(history, candidates, []) for history, candidates in prompts]
        tokens = collator.prompt_ids(rows, [1 << 62] * len(rows))
        longest = [max(len(collator.title_ids(title)) for title in candidates) for _, candidates in prompts]
        return [len(ids) + more for ids, more in zip(tokens, longest, strict=True)]


def too_long(
    collator: Collator, titles: Sequence[str], candidates: NDArray[np.int64], templates: NDArray[np.int64]
) -> tuple[int, str] | None:
    """Return the first row whose prompt does not fit even without its history, and why; None if all do.

    Only rows that come near the limit by the tokens of their titles are written out.

    Args:
        collator: with the limit.
        titles: (N,) of the items, by number.
        candidates: (n, C) numbers of each row's candidates, 0 where there are fewer.
        templates: (n,) the rows' templates.
    """
    written = collator.tokenizer([f" {title}" for title in titles]).input_ids
    sizes = np.array([len(ids) + 1 for ids in written]) * (np.arange(len(titles)) > 0)
    bare = collator.templates.render([], [""] * candidates.shape[1])
    shown = sizes[candidates]
    needed = len(collator.tokenizer(bare).input_ids) + shown.sum(axis=1) + shown.max(axis=1, initial=0)
    for row in np.flatnonzero(needed * _MARGIN > collator.max_length):
        named = [titles[item] for item in candidates[row] if item]
        try:
            collator([PromptRow([], named, named, int(templates[row]))])
        except DataError as error:
            return int(row), str(error)
    return None


def load_prompt_check(dataset: str, backbone: str | None = None, max_length: int = 0) -> PromptLengths | None:
    """Return the check of a data set's prompts as a run with default settings would write them.

    Args:
        dataset: its name, which decides the template.
        backbone: name of a backbone. None takes the embedded one, but only where it lies in the cache
            already: nothing is downloaded for this alone.
        max_length: most tokens of prompt and longest title; 0 takes the default setting.

    Returns:
        The check, or None where no backbone is named and the embedded one is not in the cache.

    Raises:
        BackboneError: the named backbone has no usable tokenizer.
    """
    place = resolve_backbone(backbone) if backbone else embedded_in_cache()
    if place is None:
        return None
    name = backbone or EMBEDDED
    settings = default_settings(MODEL_NAMES[0], dataset)
    limit = max_length or settings.max_length
    collator = Collator(
        load_tokenizer(str(place), name),
        load_templates(settings.prompt, properties_folder() / "prompts"),
        max_length=limit,
        max_history=settings.max_history,
    )
    described: dict[str, str | int] = {
        "backbone": name,
        "template": settings.prompt,
        "max_history": settings.max_history,
        "max_length": limit,
    }
    return PromptLengths(described, collator)
