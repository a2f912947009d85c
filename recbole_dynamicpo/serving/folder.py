"""A recommender folder and its card, ``recommender.json``: which backbone it needs and how it prompts."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import AdapterError, BackboneError, short
from ..language_model.adapter_folder import CONFIG_FILE, adapter_digest
from ..language_model.backbone import DTYPES, NF4, Backbone, load_backbone, quantized_fingerprint
from ..names import LIKELIHOODS, RETRIEVER, STAGES, is_prior
from ..retrievers.retriever import file_of
from ..storage import load_json, sha256_file, sha256_json, write_json

# Names the backbone, a folder or a hub id, where that of the card is not to be had under its name.
BACKBONE_VARIABLE = "RECBOLE_DYNAMICPO_BACKBONE"

RECOMMENDER_FILE, CATALOGUE_FILE, TEMPLATES_FILE = "recommender.json", "catalogue.json", "templates.json"
MODEL_CARD_FILE = "README.md"  # for people; no digest holds it
FINAL_FILE = "final.json"  # of a run: which stage's adapter is its result
# Where the packaged recommender lies in a logged model, and what MLflow calls it.
ARTIFACT, ARTIFACT_FOLDER = "recommender", "artifacts/recommender"
_MAY_BE_ZERO = {"first_stage"}
_MAY_BE_EMPTY = {"trie_sha256", "quantization"}


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
        made_by: model, stage and data set.
        popular_candidates: titles that are ranked where the caller names none.
        adapter_sha256: of the adapter's weights file beside the card.
        likelihood: of a title, as setting ``likelihood`` calls it; ``vocabulary`` in cards of 0.1.0.
        priors: below a catalogue likelihood, as setting ``catalogue_prior`` calls them.
        trie_sha256: of the catalogue's title trie, which all scores depend on; empty without one.
        quantization: of the backbone's weights when it was trained: ``nf4``, or empty.
        retrievers: SHA-256 of the file of each prior that is one.
        first_stage: titles that the priors choose of the whole catalogue to be ranked; 0: all.
    """

    backbone: str
    fingerprint: str
    dtype: str
    max_length: int
    max_history: int
    num_candidates: int
    tokens_per_batch: int
    made_by: dict[str, str]
    popular_candidates: int
    adapter_sha256: str = ""
    likelihood: str = "vocabulary"
    priors: list[str] = dataclasses.field(default_factory=list)
    trie_sha256: str = ""
    quantization: str = ""
    retrievers: dict[str, str] = dataclasses.field(default_factory=dict)
    first_stage: int = 0


def write_card(folder: Path, card: Card) -> None:
    """Write the card of the recommender whose adapter and retrievers lie in ``folder``, with their hashes."""
    files = {name: sha256_file(folder / file_of(name)) for name in card.priors if name.startswith(RETRIEVER)}
    whole = replace(card, adapter_sha256=adapter_digest(folder), retrievers=files)
    write_json(folder / RECOMMENDER_FILE, asdict(whole))


def check_retrievers(folder: Path, card: Card) -> None:
    """See that the retrievers that a card names are there, as they were when it was written.

    Raises:
        AdapterError: a file is missing, or another one.
    """
    for name in card.priors:
        if not name.startswith(RETRIEVER):
            continue
        path = folder / file_of(name)
        if not path.is_file():
            raise AdapterError(f"{path}: missing; {RECOMMENDER_FILE} names the prior {name}, which it holds")
        if sha256_file(path) != card.retrievers.get(name):
            raise AdapterError(f"{path}: not the file that {RECOMMENDER_FILE} was written for")


def read_card(folder: Path) -> Card:
    """Return the card of a recommender folder.

    Raises:
        AdapterError: it is missing or damaged.
    """
    path = folder / RECOMMENDER_FILE
    try:
        card = Card(**read_json(path))
    except TypeError as error:
        raise AdapterError(f"{path}: not a recommender card ({error})") from error
    for field in fields(Card):
        value = getattr(card, field.name)
        valid = {
            "str": isinstance(value, str) and (bool(value) or field.name in _MAY_BE_EMPTY),
            "int": type(value) is int and value >= (field.name not in _MAY_BE_ZERO),
            "dict[str, str]": isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
            "list[str]": isinstance(value, list)
            and all(isinstance(name, str) and value.count(name) == 1 and is_prior(name) for name in value),
        }[str(field.type)]
        if not valid:
            raise AdapterError(f"{path}: {field.name} is {short(value)}, wanted {field.type}")
    if card.likelihood not in LIKELIHOODS:
        raise AdapterError(
            f"{path}: likelihood is {short(card.likelihood)}, wanted one of {', '.join(LIKELIHOODS)}"
        )
    if card.quantization not in ("", NF4):
        raise AdapterError(f"{path}: quantization is {short(card.quantization)}, wanted {NF4} or nothing")
    if card.dtype not in DTYPES:
        raise AdapterError(f"{path}: dtype is {short(card.dtype)}, wanted one of {', '.join(DTYPES)}")
    return card


def content_digest(folder: Path) -> str:
    """Return the SHA-256 of all that ranking with a recommender folder depends on."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != MODEL_CARD_FILE]
    return sha256_json({path.name: sha256_file(path) for path in files})


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a recommender folder.

    Raises:
        AdapterError: it is missing or damaged.
    """
    try:
        return load_json(path)
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read ({error.strerror}); wanted a recommender folder"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{path}: damaged JSON ({error})") from error


def recommender_folder(path: Path) -> Path:
    """Return the recommender folder that ``path`` is, or the last one of the run or logged model that it is.

    Raises:
        AdapterError: it is none of them.
    """
    stages = sorted(STAGES, key=lambda stage: (stage == final_stage(path), STAGES.index(stage)), reverse=True)
    for folder in (path, path / ARTIFACT_FOLDER, *(path / stage for stage in stages)):
        if (folder / RECOMMENDER_FILE).is_file():
            return folder
    more = ""
    if is_plain_adapter(path):
        more = (
            "; this is a plain adapter, which knows no titles and no prompts: evaluate and rank take it with "
            "--dataset, and training as sft_adapter"
        )
    raise AdapterError(
        f"{path}: wanted the folder of a run, or a recommender folder with {RECOMMENDER_FILE} in it{more}"
    )


def is_plain_adapter(path: Path) -> bool:
    """Say whether a folder is an adapter that is no recommender."""
    return (path / CONFIG_FILE).is_file() and not (path / RECOMMENDER_FILE).is_file()


def final_stage(folder: Path) -> str | None:
    """Return the stage whose adapter is the result of a run, as its evaluation found; None before that.

    Raises:
        AdapterError: the file that says so is damaged.
    """
    path = folder / FINAL_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    stage = content.get("stage") if isinstance(content, dict) else None
    if stage not in STAGES:
        raise AdapterError(f"{path}: stage is {short(stage)}, wanted one of {', '.join(STAGES)}")
    return str(stage)


def default_device() -> str:
    """Return where a command computes that is not told: on a GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_card_backbone(
    card: Card, source: str, dtype: str, device: torch.device | str, load_in_4bit: bool | None = None
) -> Backbone:
    """Return the backbone of a card, or the one that the environment names, if it has the same weights.

    Args:
        card: of the recommender.
        source: of the card, for messages.
        dtype: of the weights.
        device: where they go.
        load_in_4bit: whether to cut them to 4 bits; None: as in training.
    """
    cut = card.quantization == NF4 if load_in_4bit is None else load_in_4bit
    given = os.environ.get(BACKBONE_VARIABLE)
    try:
        backbone = load_backbone(given or card.backbone, dtype=dtype, device=device, load_in_4bit=cut)
    except BackboneError as error:
        way = "names it" if given else "may name its folder or hub id"
        raise BackboneError(
            f"{error}. Wanted for {source}: backbone '{card.backbone}' with SHA-256 "
            f"{card.fingerprint[:12]}...; the environment variable {BACKBONE_VARIABLE} {way}"
        ) from error
    found = backbone.fingerprint
    if load_in_4bit is False:  # asked for by name: other weights than those that were trained
        found = quantized_fingerprint(found, card.quantization)
    if found != card.fingerprint:
        here = f"that of {BACKBONE_VARIABLE}, '{given}'," if given else "the backbone of that name here"
        raise AdapterError(
            f"{source}: made for backbone '{card.backbone}' with SHA-256 {card.fingerprint[:12]}..., "
            f"but {here} has {found[:12]}..."
        )
    return backbone
