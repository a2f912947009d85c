"""Attention for bfloat16 backbones on a CPU, where plain matrix products beat torch's fused kernel on
short sequences.

The fused kernel saves memory by working on small tiles, which on a CPU costs more than the scores of a
few hundred tokens are worth. Measured in benchmarks/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_or_products"

# Tokens up to which the products are faster; the memory of the scores grows with the square.
LONGEST = 384


def short_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return (B, T, heads, D) what transformers' sdpa attention does, by products where these are faster.

    Args:
        module: the attention layer.
        query: (B, heads, T, D).
        key, value: (B, shared heads, S, D); each is used by heads / shared heads queries.
        attention_mask: (B, 1, T, S) bool, true where a query sees a key, at least one in each row; or None.
        scaling: of the scores; None: one over the root of D.
        dropout: of the attention weights.
        kwargs: passed on.
    """
    narrow = query.dtype == torch.bfloat16 and key.shape[2] <= LONGEST
    if not narrow or attention_mask is None or attention_mask.dtype != torch.bool or dropout:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    batch, heads, length, width = query.shape
    shared, keys = key.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    # All queries that share keys are the rows of one product, so no key is repeated.
    rows = (query * scale).reshape(batch * shared, -1, width)
    scores = torch.bmm(rows, key.reshape(batch * shared, keys, width).transpose(1, 2))
    hidden = query.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, -torch.inf)
    visible = scores.view(batch, shared, -1, length, keys) + hidden[:, :, None]
    weights = visible.softmax(dim=-1).view(batch * shared, -1, keys)
    output = torch.bmm(weights, value.reshape(batch * shared, keys, width))
    return output.view(batch, heads, length, width).transpose(1, 2), None


def kernel_name(device: torch.device, dtype: torch.dtype) -> str:
    """Return which attention a backbone runs on, for who keeps results apart that rounding could part."""
    return NAME if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def use_short_attention(model: Any) -> None:
    """Let a loaded Hugging Face model with sdpa attention use ``short_attention``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, short_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
