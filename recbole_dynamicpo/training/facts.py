"""What decides a run beside its settings: data, templates, backbone and adapter, read before any training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..ingredients import Ingredients, flat_settings
from ..language_model.adapter_folder import adapter_digest
from ..language_model.attention import kernel_name
from ..language_model.backbone import backbone_fingerprint, resolve_backbone, resolve_dtype, tokenizer_digest
from ..scoring.prompts import load_templates
from ..settings import Settings, properties_folder
from ..storage import sha256_json
from .data_files import data_digest


def gather(config: Any, settings: Settings) -> Ingredients:
    """Return the ingredients of a run of one of our models.

    Args:
        config: RecBole's configuration; its data files, backbone and adapters are there.
        settings: of the run, as checked.

    Raises:
        DynamicPOError: something that is named is not there, or damaged.
    """
    place = resolve_backbone(settings.backbone)
    device = torch.device(config["device"])
    dtype = resolve_dtype(settings.dtype, device)
    templates = load_templates(settings.prompt, properties_folder() / "prompts")
    adapter = settings.sft_adapter
    return Ingredients.of(
        params_of(config, settings),
        {
            "data": data_digest(config),
            "backbone": backbone_fingerprint(place, settings.backbone),
            "tokenizer": tokenizer_digest(place),
            "template": sha256_json(templates.texts),
            "adapter": adapter_digest(Path(adapter)) if adapter else None,
            "dtype": str(dtype).removeprefix("torch."),
            "device": device.type,
            "kernel": kernel_name(device, dtype),
        },
    )


def params_of(config: Any, settings: Settings) -> dict[str, Any]:
    """Return every setting of a run, flat: RecBole's final ones, and ours with their defaults."""
    return flat_settings({**config.final_config_dict, **asdict(settings)})
