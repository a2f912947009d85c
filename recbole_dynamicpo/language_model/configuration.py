"""What a model's configuration tells before any weight is loaded."""

from __future__ import annotations

from typing import Any

from ..errors import BackboneError
from .embedded import EMBEDDED

# Inner configurations of a model that is one all the same.
_PARTS_OF_ONE = {"attn_config", "ffn_config"}
# Entries of a configuration that tell how many positions a model knows.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")


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
    """Return how many positions a model knows, by each entry of its configuration that says so."""
    inner = config.get_text_config(decoder=True)
    found = [(getattr(inner, name, None), name) for name in _POSITIONS]
    return [(value, name) for value, name in found if isinstance(value, int)]


def not_loadable(name: str, error: Exception) -> str:
    """Return the message about a backbone that cannot be loaded."""
    reason = str(error).strip().splitlines()
    return (
        f"backbone '{name}' cannot be loaded: {reason[0] if reason else type(error).__name__} "
        f"(wanted '{EMBEDDED}', a local folder with config.json and safetensors, or a hub id; "
        "a hub model needs a network connection the first time)"
    )
