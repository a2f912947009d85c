"""A recommender's language model as plain weights, for engines that know no adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BackboneError, SettingsError
from ..storage import atomic_folder, write_json
from .model_card import write_merged_card
from .recommender import Recommender

TITLES_FILE = "catalogue_tokens.json"


def export_merged(recommender: Recommender, out: Path) -> None:
    """Write backbone and adapter as one Hugging Face model folder, with what holds decoding to the catalogue.

    ``catalogue_tokens.json`` has ``terminator`` and, for each distinct title, its text, its items and its
    tokens, that included. The priors below a catalogue likelihood stay out: the weights are those of the
    language model alone. The recommender cannot be used afterwards: the adapter becomes part of its weights.

    Args:
        recommender: to be merged.
        out: new folder.

    Raises:
        SettingsError: there is something at ``out``.
        BackboneError: the weights were cut to 4 bits, into which an adapter cannot be added exactly.
    """
    if out.exists():
        raise SettingsError(f"{out}: exists; wanted a new folder")
    policy, collator = recommender.scorer.policy, recommender.scorer.collator
    backbone = policy.backbone
    if backbone.quantization:
        raise BackboneError(f"backbone '{backbone.name}': {backbone.quantization} weights cannot be merged")
    bearers: dict[str, list[str]] = {}
    for item, title in zip(recommender.catalogue.ids, recommender.catalogue.titles, strict=True):
        bearers.setdefault(title, []).append(item)
    titles = [
        {"title": title, "ids": items, "tokens": collator.title_ids(title)}
        for title, items in bearers.items()
    ]
    merged: Any = policy.peft.merge_and_unload(adapter_names=["policy"])
    with atomic_folder(out) as folder:
        merged.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
        write_json(folder / TITLES_FILE, {"terminator": collator.terminator, "titles": titles})
        write_merged_card(folder, recommender.card)
