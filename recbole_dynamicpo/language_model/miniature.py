"""A small model of the same structure as another, whose weights let every part of that structure show.

It has the same kinds of layers and the same head, few of them, and weights so strong that a leak from one
completion to the next, a position that is not passed on, or a scaled or soft-capped head is off by whole
nats, whatever the other model's own weights hide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .decoder import decoder_layers

# Tokens of the miniature's vocabulary, of its attention windows, and widths of what only makes it larger.
VOCABULARY, WINDOW, WIDTH, EXPERTS = 256, 4, 64, 4
# Standard deviation of the logits: more than any soft cap in use lets through unchanged.
LOGIT_SCALE = 25.0
# How strong the weights are drawn. Strong ones show what weak ones hide, but attend to one token alone; under
# gentle ones every token tells.
STRENGTHS = (1.0, 0.2)
# Names of a configuration's numbers that limit how far a token sees.
_WINDOWS = re.compile(r"window(_size)?$|^attention_chunk_size$|^local_attention$")
_EXPERTS = re.compile(r"^(moe_)?(num|n)_.*experts$")
_CHOICES = re.compile(r"experts_per_tok|^(moe_)?top_?k|_topk$")
_WIDTHS = re.compile(r"(intermediate|ffn|feedforward).*(size|dim)$|ffn_dim$")

# Parameters that are no factors of a product, but rates of decay and the like.
_DYNAMICS = re.compile(r"A_log|^dt|decay|norm", re.IGNORECASE)


def miniatures(model: Any) -> Iterator[Any]:
    """Yield a small float32 model of the same structure on the CPU, drawn anew in each of ``STRENGTHS``.

    Layers are kept until every kind of them is there.
    """
    config = small_config(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = type(model)._from_config(config, dtype=torch.float32).eval()
    for strength in STRENGTHS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make_visible(small, strength)
        yield small


def small_config(model: Any) -> Any:
    """Return the configuration of the miniature."""
    config = model.config
    values = {
        k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "dtype", "torch_dtype")
    }
    inner = config.get_text_config(decoder=True)
    if inner is not config:
        raise ValueError("a configuration of several parts")
    depth, kept = config.num_hidden_layers, _kinds_of_layers(model)
    for key, value in values.items():
        values[key] = _smaller(key, value, depth, kept)
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = kept
    small = type(config)(**values)
    kernel = config._attn_implementation
    small._attn_implementation = kernel if kernel in ("sdpa", "eager") else "sdpa"
    return small


def _smaller(key: str, value: Any, depth: int, kept: int) -> Any:
    """Return an entry of a configuration for a model of ``kept`` of ``depth`` layers."""
    if isinstance(value, list) and len(value) == depth > 1:
        return value[:kept]
    if re.search(r"_(token_id|token_index)$", key):
        return [0] if isinstance(value, list) else 0 if isinstance(value, int) else value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if key == "vocab_size":
        return min(value, VOCABULARY)
    if _WINDOWS.search(key):
        return min(value, WINDOW)
    if key in ("n_group", "topk_group"):
        return 1
    if _CHOICES.search(key):
        return min(value, 2)
    if _EXPERTS.search(key):
        return min(value, EXPERTS)
    return min(value, WIDTH) if _WIDTHS.search(key) else value


def _kinds_of_layers(model: Any) -> int:
    """Return how many of the lowest layers hold every kind of layer that the model has; at least 2."""
    seen: list[int] = []
    kinds = set()
    for index, layer in enumerate(decoder_layers(model)):
        plain = [
            (name, value)
            for part in layer.modules()
            for name, value in vars(part).items()
            if isinstance(value, str | bool) or value is None
        ]
        kind = (tuple(type(part).__name__ for part in layer.modules()), tuple(map(str, plain)))
        if kind not in kinds:
            kinds.add(kind)
            seen.append(index)
    return max(2, seen[-1] + 1) if seen else 2


@torch.no_grad()
def make_visible(model: Any, strength: float = 1.0) -> None:
    """Draw weights under which the structure shows.

    Args:
        model: to draw them for.
        strength: one of ``STRENGTHS``.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            part.weight.normal_(std=max(strength, 0.5))
        elif isinstance(part, nn.Linear | nn.Conv1d | Conv1D):
            fan_in = part.weight.shape[0] if isinstance(part, Conv1D) else part.weight[0].numel()
            part.weight.normal_(std=1.5 * strength / math.sqrt(fan_in))
            if part.bias is not None:
                part.bias.normal_(std=0.5 * strength)
        else:
            for name, weight in part.named_parameters(recurse=False):
                if weight.dim() > 1 and not _DYNAMICS.search(name):
                    weight.normal_(std=strength / math.sqrt(max(weight.shape)))
    if head is not None:
        head.weight.normal_(std=LOGIT_SCALE * strength / math.sqrt(head.weight.shape[1]))
