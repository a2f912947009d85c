"""A recommender's language model as plain weights, for engines that know no adapters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BackboneError, SettingsError
from ..scoring.collate import Collator
from ..storage import atomic_file, atomic_folder, check_can_be_made, write_json
from .model_card import write_merged_card
from .recommender import Recommender

TITLES_FILE, GRAMMAR_FILE = "catalogue_tokens.json", "catalogue.gbnf"
# What a quoted text of such a grammar cannot hold as it is.
_ESCAPED = {ord("\\"): "\\\\", ord('"'): '\\"', **{code: f"\\x{code:02x}" for code in (*range(32), 127)}}


def export_merged(recommender: Recommender, out: Path) -> None:
    """Write backbone and adapter as one Hugging Face model folder, with what holds decoding to the catalogue.

    ``catalogue_tokens.json`` has ``terminator`` and, for each distinct title, the title, its items, the text
    that the model writes of it behind a prompt, and its tokens, terminator included. ``catalogue.gbnf`` is a
    grammar of these texts, for engines that hold decoding by text; a text may then be written in other tokens
    than its own. ``generation_config.json`` ends decoding at the terminator. The priors below a catalogue
    likelihood stay out: the weights are those of the language model alone. The recommender cannot be used
    afterwards: the adapter becomes part of its weights.

    Args:
        recommender: to be merged.
        out: new folder.

    Raises:
        SettingsError: see ``check_new``.
        BackboneError: the weights were cut to 4 bits, into which an adapter cannot be added exactly.
    """
    check_new(out)
    policy, collator = recommender.scorer.policy, recommender.scorer.collator
    backbone = policy.backbone
    if backbone.quantization:
        raise BackboneError(f"backbone '{backbone.name}': {backbone.quantization} weights cannot be merged")
    bearers: dict[str, list[str]] = {}
    for item, title in zip(recommender.catalogue.ids, recommender.catalogue.titles, strict=True):
        bearers.setdefault(title, []).append(item)
    end = "" if collator.terminator == backbone.tokenizer.eos_token_id else _text(collator)
    titles = [
        {"title": title, "ids": items, "text": f" {title}{end}", "tokens": collator.title_ids(title)}
        for title, items in bearers.items()
    ]
    merged: Any = policy.peft.merge_and_unload(adapter_names=["policy"])
    ends = merged.generation_config
    ends.eos_token_id = sorted({collator.terminator, backbone.tokenizer.eos_token_id})
    ends.max_new_tokens = max(len(line["tokens"]) for line in titles)
    with atomic_folder(out) as folder:
        merged.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):  # which are written for their owner alone
            shutil.copymode(folder / "config.json", weights)
        backbone.tokenizer.save_pretrained(folder)
        write_json(folder / TITLES_FILE, {"terminator": collator.terminator, "titles": titles})
        with atomic_file(folder / GRAMMAR_FILE) as handle:
            handle.write(grammar([str(line["text"]) for line in titles]))
        write_merged_card(folder, recommender.card)


def check_new(out: Path) -> None:
    """See whether a folder can be made for an export.

    Raises:
        SettingsError: there is something, or it cannot be made there.
    """
    if out.exists():
        raise SettingsError(f"{out}: exists; wanted a new folder")
    check_can_be_made(out)


def _text(collator: Collator) -> str:
    """Return what the model writes behind a title."""
    found: str = collator.tokenizer.decode([collator.terminator], clean_up_tokenization_spaces=False)
    return found


def grammar(texts: Sequence[str]) -> str:
    """Return a grammar of exactly these texts, in the GGML BNF that xgrammar and llama.cpp read.

    Args:
        texts: any, at least one.
    """
    return "root ::= " + "\n  | ".join(f'"{text.translate(_ESCAPED)}"' for text in texts) + "\n"
