"""What a configuration tells of a model before any weight is loaded, and whether the weights fit it."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import BackboneError
from .embedded import EMBEDDED

# Inner configurations of a model that is one all the same.
_PARTS_OF_ONE = {"attn_config", "ffn_config"}
# Entries of a configuration that tell how many positions a model knows.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")
_FIRST_TRAINED = "original_max_position_embeddings"
# Layers that do not look back to the start, and the entry of a configuration that says how far.
_NEAR_SIGHTED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def check_causal(place: str, name: str) -> None:
    """See whether a folder or hub id holds a causal language model of text.

    Raises:
        BackboneError: it does not, or cannot be read.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # what a damaged file raises there is not documented
        raise BackboneError(not_loadable(name, error)) from error
    declared = getattr(config, "architectures", None) or []
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    if not known or (declared and not any("CausalLM" in a or "LMHead" in a or a in names for a in declared)):
        kind = ", ".join(declared) or type(config).__name__
        raise BackboneError(f"backbone '{name}': got {kind}, wanted a causal language model")
    parts = [key for key, part in vars(config).items() if isinstance(part, PreTrainedConfig)]
    if not set(parts) <= _PARTS_OF_ONE:
        raise BackboneError(
            f"backbone '{name}': got {', '.join(declared) or type(config).__name__}, made of several models "
            f"({', '.join(parts)}); wanted a causal language model of text alone"
        )


def position_limits(config: Any) -> list[tuple[int, str]]:
    """Return how many positions a model knows, by each entry of its configuration that says so.

    One with long RoPE turns all rows of a batch by other angles once its longest row has more positions than
    it was first trained with, so that a row's scores would depend on the others: that is its limit here.
    """
    inner = config.get_text_config(decoder=True)
    found = [(getattr(inner, name, None), name) for name in _POSITIONS]
    ropes = getattr(inner, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        if rope.get("rope_type") == "longrope":
            found.append((rope.get(_FIRST_TRAINED), _FIRST_TRAINED))
    return [(value, name) for value, name in found if isinstance(value, int)]


def look_back(config: Any) -> dict[str, tuple[int, str]]:
    """Return by kind of layer how many tokens it looks back, and the entry that says so.

    ``sliding_attention`` sees that many tokens, ``chunked_attention`` those of its own chunk of that size.
    Kinds that see all tokens are left out.
    """
    inner = config.get_text_config(decoder=True)
    found = {kind: (getattr(inner, entry, None), entry) for kind, entry in _NEAR_SIGHTED.items()}
    return {
        kind: (size, entry) for kind, (size, entry) in found.items() if isinstance(size, int) and size > 0
    }


def not_loadable(name: str, error: Exception) -> str:
    """Return the message about a backbone that cannot be loaded."""
    reason = str(error).strip().splitlines()
    return (
        f"backbone '{name}' cannot be loaded: {reason[0] if reason else type(error).__name__} "
        f"(wanted '{EMBEDDED}', a local folder with config.json and safetensors, or a hub id; "
        "a hub model needs a network connection the first time)"
    )


def check_weights(model: Any, info: dict[str, Any], name: str) -> None:
    """See whether the files held every weight of a model, and numbers in it.

    Args:
        model: as loaded.
        info: what transformers says of loading it.
        name: what the user calls it.

    Raises:
        BackboneError: naming the first weight that is wrong.
    """
    wrong = [
        *(f"weight {key} is missing" for key in sorted(info["missing_keys"])),
        *(f"weight {key} is {tuple(got)}, wanted {tuple(wanted)}" for key, got, wanted in
          sorted(info["mismatched_keys"])),
        *(f"weight {key} holds NaN or infinity" for key, value in model.named_parameters()
          if value.is_floating_point() and not torch.isfinite(value).all()),
    ]  # fmt: skip
    if wrong:
        more = f" ({len(wrong)} such weights)" if len(wrong) > 1 else ""
        raise BackboneError(f"backbone '{name}': {wrong[0]}{more}; wanted the weights of its config.json")
