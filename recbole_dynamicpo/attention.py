"""Attention for bfloat16 backbones on a CPU, whose own backward pass is the slower one.

Measured in benchmarks/README.md: forward and backward of one layer, 8 rows of 165 tokens, take about 40 ms
in bfloat16 and 27 ms when queries, keys and values are widened first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_widened"


def widened_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return what transformers' sdpa attention does, computed in float32 where a gradient is wanted.

    Args:
        module: the attention layer.
        query, key, value: (B, heads, T, D).
        attention_mask: (B, 1, T, T) or None.
        kwargs: passed on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dtype = query.dtype
    if dtype == torch.bfloat16 and query.requires_grad:
        query, key, value = query.float(), key.float(), value.float()
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.to(dtype), weights


def widen_attention(model: Any) -> None:
    """Let a loaded Hugging Face model with sdpa attention use ``widened_attention``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, widened_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
