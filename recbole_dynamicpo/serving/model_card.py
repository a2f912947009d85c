"""The card of a recommender folder for people, ``README.md`` as model hubs show it: what it is, how good.

It says nothing that ranking depends on. So it stays out of every digest, and may be written again when an
evaluation has found how well the model ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.catalogue import Catalogue
from ..language_model.adapter_folder import read_lora_shape
from ..language_model.embedded import EMBEDDED
from ..names import LIKELIHOODS
from ..storage import atomic_file
from ..version import __version__
from .folder import BACKBONE_VARIABLE, CATALOGUE_FILE, MODEL_CARD_FILE, Card, read_card
from .packaging import portable_backbone

# What hubs call the backbone that we call by a name of our own.
_HUB_NAMES = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_PRIORS = {
    "popularity": "training interactions of each title",
    "transitions": "which title followed which in training",
    "cooccurrence": "which titles one user took in training",
}


@dataclass(frozen=True)
class Results:
    """What an evaluation found, for a card.

    Attributes:
        lines: tables and what they are of, in Markdown; every figure with its interval and number of rows.
        metrics: names of the figures.
    """

    lines: Sequence[str] = field(default_factory=list)
    metrics: Sequence[str] = field(default_factory=list)


def write_model_card(folder: Path, results: Results | None = None) -> None:
    """Write the model card of a recommender folder, whole or not at all.

    Args:
        folder: with all its other files.
        results: of an evaluation; None before there was one.

    Raises:
        AdapterError: the folder lacks a file.
    """
    card = read_card(folder)
    found = results or Results(["Not evaluated yet."])
    sections = [
        _header(card, found, library="peft"),
        [f"# {_title(card)}", "", *_what_it_is(folder, card)],
        ["## Data", "", *_data(folder, card)],
        ["## Results", "", *found.lines],
        ["## How to load it", "", *_how_to_load(folder)],
        ["## Limits", "", *_limits(card)],
    ]
    write_sections(folder, sections)


def write_merged_card(folder: Path, card: Card) -> None:
    """Write the model card of a folder with the weights of backbone and adapter in one."""
    said = (
        f"The backbone `{portable_backbone(card.backbone)}` with the adapter of {_title(card)} merged into "
        "its weights, for engines that know no adapters. `catalogue_tokens.json` has the tokens of every "
        "title, by which decoding is held to the catalogue, and `catalogue.gbnf` is a grammar of their texts."
    )
    limits = [
        "- Counting models below the scores, where the recommender had any, are not in these weights.",
        "- The merged weights were not evaluated apart from the recommender.",
    ]
    sections = [
        _header(card, Results(), library="transformers"),
        [f"# {_title(card)}, merged", "", said],
        ["## Limits", "", *limits],
    ]
    write_sections(folder, sections)


def write_sections(folder: Path, sections: Sequence[Sequence[str]]) -> None:
    """Write sections with an empty line between them as the folder's model card."""
    with atomic_file(folder / MODEL_CARD_FILE) as handle:
        handle.write("\n\n".join("\n".join(section) for section in sections) + "\n")


def _header(card: Card, results: Results, library: str) -> list[str]:
    """Return the YAML header; JSON is YAML, whatever a name holds."""
    backbone = portable_backbone(card.backbone)
    named: Mapping[str, object] = {
        "base_model": _HUB_NAMES.get(backbone, backbone),
        "library_name": library,
        "tags": ["recommendation", "recbole-dynamicpo", "lora", card.made_by.get("model", "DynamicPO")],
        "datasets": [card.made_by["dataset"]] if "dataset" in card.made_by else [],
        "metrics": list(results.metrics),
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value]
    return ["---", *lines, "---"]


def _title(card: Card) -> str:
    made = card.made_by
    more = [f"stage {made['stage']}"] if "stage" in made else []
    more += [made["dataset"]] if "dataset" in made else []
    return ", ".join([made.get("model", "Recommender"), *more])


def _what_it_is(folder: Path, card: Card) -> list[str]:
    shape = read_lora_shape(folder)
    backbone = portable_backbone(card.backbone)
    lines = [
        f"A LoRA adapter (rank {shape.rank}, alpha {shape.alpha:g}) with which the language model "
        f"`{backbone}` ranks the titles of one catalogue for a history of titles. It was made by "
        f"recbole-dynamicpo {__version__}.",
        "",
        f"- backbone: `{backbone}`, SHA-256 `{card.fingerprint}`, {card.quantization or card.dtype}",
        f"- adapter: SHA-256 `{card.adapter_sha256}`",
        f"- prompts: at most {card.max_history} titles of history and {card.max_length} tokens",
    ]
    if card.likelihood == LIKELIHOODS[0]:
        shown = f"with {card.num_candidates} candidates in a prompt"
        return [*lines, f"- scores: log-probability of a title's tokens, {shown}"]
    lines.append("- scores: log-probability of a title among all of the catalogue")
    said = {name: _PRIORS.get(name, "trained by RecBole on the training rows") for name in card.priors}
    return [*lines, *(f"- below the language model: {name}, {words}" for name, words in said.items())]


def _data(folder: Path, card: Card) -> list[str]:
    catalogue = Catalogue.load(folder / CATALOGUE_FILE)
    name = f"Data set {card.made_by['dataset']}: " if "dataset" in card.made_by else ""
    items = f"{len(catalogue.titles)} items with {len(catalogue.distinct_titles)} distinct titles"
    return [f"{name}{items}, {sum(catalogue.popularity)} interactions in training."]


def _how_to_load(folder: Path) -> list[str]:
    titles = Catalogue.load(folder / CATALOGUE_FILE).popular(2)
    return [
        "```python",
        "from recbole_dynamicpo import load_recommender",
        "",
        'recommender = load_recommender("path/of/this/folder")',
        f"for item in recommender.rank({json.dumps(titles, ensure_ascii=False)}, k=5):",
        "    print(item.title, item.ids, item.score)  # nats",
        "```",
        "",
        "The backbone is not in this folder. Its weights must have the SHA-256 above; the environment "
        f"variable `{BACKBONE_VARIABLE}` names its folder or hub id.",
    ]


def _limits(card: Card) -> list[str]:
    lines = [
        "- It ranks what its catalogue holds. Titles that came later are text to it that nobody took.",
        "- Its figures are of held-out interactions of its data set. What people would do who are shown its "
        "ranking was not measured.",
        "- It learns what was popular, and may show what is popular more often than people would choose it.",
    ]
    if card.priors:
        lines += [
            "- PEFT alone loads the adapter without the counts below it, which are in the files beside it.",
            "- The counts are sums over the users in training, without names or ids; where few took a title, "
            "they may still tell what one of them took.",
        ]
    return lines
