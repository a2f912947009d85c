"""An adapter that nothing of ours describes, such as the method's authors publish, made a recommender.

Its folder holds what PEFT saves. It names its backbone, but neither titles nor prompts: titles are those of a
data set, and the rest is said by settings, which are the paper's where a user says nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..dataset.dataset import DynamicPODataset
from ..errors import AdapterError, BackboneError, SettingsError
from ..language_model.adapter_folder import (
    adapter_digest,
    base_of,
    note_of_base,
    read_adapter,
    read_lora_shape,
)
from ..language_model.backbone import Backbone, check_backbone, load_backbone
from ..language_model.policy import Policy
from ..scoring.prompts import load_templates
from ..serving.folder import Card, default_device, is_plain_adapter
from ..serving.mlflow_store import opened_model
from ..serving.recommender import Recommender
from ..settings import Settings, properties_folder
from .rows import read_test_rows


def settings_files(config_files: Sequence[str]) -> list[str]:
    """Return the settings files of a plain adapter: the paper's, and then the user's."""
    return [str(properties_folder() / "paper.yaml"), *config_files]


def rank_plainly(
    source: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> Recommender:
    """Return a plain adapter as a recommender of a data set's titles.

    Args:
        source: its folder, or its id on the hub.
        dataset: name of the data set.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files; ``backbone`` wins over what the adapter names.

    Raises:
        DynamicPOError: it is none, or anything wrong with it, the settings or the data.
    """
    with opened_model(source) as folder:
        if not is_plain_adapter(folder):
            raise SettingsError(
                f"--dataset and settings are for a plain adapter; {source} has titles and settings of its own"
            )
        rows = read_test_rows(dataset, settings_files(config_files), overrides)
        return plain_recommender(folder, source, rows.whole, overrides.get("backbone"))[0]


def plain_recommender(
    folder: Path, source: str, data: DynamicPODataset, backbone: str | None
) -> tuple[Recommender, list[str]]:
    """Return a recommender of a data set's titles that speaks with a plain adapter, and what to say of it.

    Args:
        folder: with the adapter.
        source: what the user calls it.
        data: the built data set, whose settings say how prompts are written.
        backbone: that carries the adapter; None: the one that it names.

    Raises:
        AdapterError: it is damaged, or made for another backbone.
        BackboneError: the backbone is not to be had.
        SettingsError: settings that a plain adapter cannot serve.
    """
    settings = data.settings
    if settings.likelihood != "vocabulary":
        raise SettingsError(
            f"likelihood: got {settings.likelihood}, wanted vocabulary, as {source} has no counts below it"
        )
    shape = read_lora_shape(folder)
    read_adapter(folder)  # so that a damaged one is found before gigabytes are loaded
    carrier = _carrier(folder, source, backbone, settings)
    policy = Policy(carrier, shape, seed=0)
    policy.load(folder)
    known = data.catalogue
    recommender = Recommender(
        policy,
        load_templates(settings.prompt, properties_folder() / "prompts"),
        Catalogue(known.ids, known.titles, tuple(data.popularity()[1:].tolist())),
        Card(
            backbone=carrier.name,
            fingerprint=carrier.fingerprint,
            dtype=str(carrier.dtype).removeprefix("torch."),
            max_length=settings.max_length,
            max_history=settings.max_history,
            num_candidates=settings.num_candidates,
            tokens_per_batch=settings.tokens_per_batch,
            made_by={"model": source},
            popular_candidates=settings.popular_candidates,
            adapter_sha256=adapter_digest(folder),
            quantization=carrier.quantization,
        ),
    )
    weights, digest = carrier.quantization or recommender.card.dtype, recommender.card.adapter_sha256[:12]
    about = [
        f"adapter: {source}, SHA-256 {digest}..., on {carrier.name} ({weights})",
        f"prompt: {settings.prompt}",
    ]
    other = note_of_base(folder, carrier.name)
    return recommender, [*about, *([other] if other else [])]


def _carrier(folder: Path, source: str, backbone: str | None, settings: Settings) -> Backbone:
    """Return the backbone that is to carry an adapter."""
    named = backbone or base_of(folder)
    if named is None:
        raise AdapterError(f"{source}: names no backbone; wanted --backbone, the one it was trained on")
    try:
        check_backbone(named)
    except BackboneError as error:
        if backbone:
            raise
        raise BackboneError(
            f"{error}. {source} names it; --backbone may name its folder or hub id"
        ) from error
    return load_backbone(
        named, dtype=settings.dtype, device=default_device(), load_in_4bit=settings.load_in_4bit
    )
