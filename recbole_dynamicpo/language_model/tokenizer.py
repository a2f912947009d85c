"""A backbone's tokenizer, for who needs no weights."""

from __future__ import annotations

from typing import Any

from ..errors import BackboneError


def load_tokenizer(place: str, name: str) -> Any:
    """Return the tokenizer at ``place``, a folder or a hub id.

    Args:
        place: what ``resolve_backbone`` made of the name.
        name: of the backbone, for the error.

    Raises:
        BackboneError: there is no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackboneError(f"backbone '{name}': its tokenizer cannot be loaded ({reason})") from error
