"""Rank titles with a saved adapter; needs neither RecBole nor a data set.

A recommender folder is a PEFT adapter folder with three more files: ``recommender.json`` (backbone,
limits), ``catalogue.json`` (ids, titles, popularity) and ``templates.json`` (prompt templates).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .backbone import load_backbone
from .batches import PromptRow
from .catalogue import Catalogue
from .collate import Collator
from .errors import AdapterError, DataError
from .policy import Policy, read_lora_shape
from .prompts import Templates
from .scorer import Scorer
from .storage import atomic_folder, write_json

if TYPE_CHECKING:
    from .model import DynamicPO

RECOMMENDER_FILE, CATALOGUE_FILE, TEMPLATES_FILE = "recommender.json", "catalogue.json", "templates.json"
# Titles that are ranked where the caller names none.
POPULAR_CANDIDATES = 100


@dataclass(frozen=True)
class Card:
    """What a recommender folder says of itself.

    Attributes:
        backbone: name of the backbone, never a path that only its maker has unless it was given as one.
        fingerprint: SHA-256 of the backbone's weights.
        dtype: of the backbone's weights when it was trained, like ``float32``.
        max_length: most tokens of prompt and longest title together.
        max_history: most history titles in a prompt.
        num_candidates: candidates in a prompt while it was trained.
        tokens_per_batch: padded tokens per forward pass.
        made_by: model and stage.
    """

    backbone: str
    fingerprint: str
    dtype: str
    max_length: int
    max_history: int
    num_candidates: int
    tokens_per_batch: int
    made_by: dict[str, str]


@dataclass(frozen=True)
class Ranked:
    """One ranked title.

    Attributes:
        title: the title.
        ids: the catalogue's items of that title; empty for a title that it does not know.
        score: summed log-probability, nats.
    """

    title: str
    ids: tuple[str, ...]
    score: float


class Recommender:
    """A backbone with an adapter that ranks candidate titles.

    Prompts are those of training. A list of more candidates than in training may use all the
    length that the backbone has, because the limit of training would not hold it.

    Args:
        policy: backbone and adapter.
        templates: prompt templates; the first one is used.
        catalogue: known items.
        card: limits of the prompts.
    """

    def __init__(self, policy: Policy, templates: Templates, catalogue: Catalogue, card: Card) -> None:
        self.catalogue = catalogue
        self.card = card
        tokenizer = policy.backbone.tokenizer
        self.scorer, self.wide_scorer = (
            Scorer(
                policy,
                Collator(tokenizer, templates, max_length=length, max_history=card.max_history),
                card.tokens_per_batch,
            )
            for length in (min(card.max_length, policy.backbone.max_length), policy.backbone.max_length)
        )

    def rank(
        self, history: Sequence[str], candidates: Sequence[str] | None = None, k: int = 10
    ) -> list[Ranked]:
        """Return the ``k`` best candidates, best first.

        Args:
            history: titles that the user took, oldest first; unknown ones are allowed.
            candidates: titles to rank, a repeated one counts once; None takes the
                ``POPULAR_CANDIDATES`` most popular titles that are not in the history.
            k: how many to return.

        Raises:
            DataError: no history, no candidates, an empty title, or k below 1.
        """
        if isinstance(history, str) or not history:
            raise DataError(f"history: got {history!r}, wanted a list of at least one title")
        if k < 1:
            raise DataError(f"k: got {k}, wanted at least 1")
        if candidates is None:
            shown = self.catalogue.popular(POPULAR_CANDIDATES, without=history)
        else:
            shown = list(dict.fromkeys(candidates))
        if isinstance(candidates, str) or not shown:
            raise DataError(f"candidates: got {candidates!r}, wanted a list of at least one title")
        for title in [*history, *shown]:
            if not isinstance(title, str) or not title.strip():
                raise DataError(f"got {title!r} as a title, wanted a non-empty text")
        scorer = self.scorer if len(shown) <= self.card.num_candidates else self.wide_scorer
        scores = scorer([PromptRow(list(history), shown, shown)])[0].tolist()
        order = sorted(range(len(shown)), key=lambda index: (-scores[index], index))[:k]
        return [Ranked(shown[i], self.catalogue.items(shown[i]), scores[i]) for i in order]


def save_recommender(folder: Path, model: DynamicPO, made_by: dict[str, str]) -> None:
    """Write the model's policy as a recommender folder, whole or not at all."""
    backbone = model.policy.backbone
    card = Card(
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        dtype=str(backbone.dtype).removeprefix("torch."),
        max_length=model.collator.max_length,
        max_history=model.collator.max_history,
        num_candidates=model.settings.num_candidates,
        tokens_per_batch=model.settings.tokens_per_batch,
        made_by=made_by,
    )
    with atomic_folder(folder) as work:
        model.policy.save(work)
        model.catalogue.save(work / CATALOGUE_FILE)
        write_json(work / TEMPLATES_FILE, model.collator.templates.texts)
        write_json(work / RECOMMENDER_FILE, asdict(card))


def load_recommender(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: str | None = None
) -> Recommender:
    """Load a recommender folder.

    Args:
        path: the folder, as a run leaves it in ``saved/<run>/preference``.
        device: where to compute.
        dtype: of the backbone's weights; None takes the one it was trained with.

    Raises:
        AdapterError: not such a folder, a damaged one, or the backbone's weights are others than
            those the adapter was trained on.
        BackboneError: the backbone cannot be loaded.
    """
    folder = Path(path)
    card = _read_card(folder)
    shape = read_lora_shape(folder)
    backbone = load_backbone(card.backbone, dtype=dtype or card.dtype, device=device)
    if backbone.fingerprint != card.fingerprint:
        raise AdapterError(
            f"{folder}: made for backbone '{card.backbone}' with SHA-256 {card.fingerprint[:12]}..., "
            f"but the backbone of that name here has {backbone.fingerprint[:12]}..."
        )
    policy = Policy(backbone, shape, seed=0)
    policy.load(folder)
    templates = Templates(_read_json(folder / TEMPLATES_FILE), str(folder / TEMPLATES_FILE))
    return Recommender(policy, templates, Catalogue.load(folder / CATALOGUE_FILE), card)


def _read_card(folder: Path) -> Card:
    try:
        return Card(**_read_json(folder / RECOMMENDER_FILE))
    except TypeError as error:
        raise AdapterError(f"{folder / RECOMMENDER_FILE}: not a recommender card ({error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read ({error.strerror}); wanted a recommender folder"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{path}: damaged JSON ({error})") from error
