"""Attention through our masks by torch's FlexAttention, against the kernel that is handed the mask.

Both masks of the package are one: a token sees what is at or above it in a tree, whose places are in
preorder. So a mask is the place behind each token's descendants. FlexAttention computes no gradient on a CPU,
so the package does not use it: this says on a GPU whether it should.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gpu_world import SHAPES, World, clock  # first: it leaves the package's face out

import torch  # isort: skip
from torch import Tensor  # isort: skip
from torch.nn.functional import scaled_dot_product_attention  # isort: skip

from recbole_dynamicpo.language_model.packed import pack
from recbole_dynamicpo.language_model.tree import tree_mask
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trunk import pack_whole

BUCKET = 128  # lengths are padded to multiples of this, for each of which a kernel is compiled once
Result = dict[str, Any]
Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ends(segment: Tensor) -> Tensor:
    """Return (B, T) places behind each token's descendants, of rows packed as prompt and titles.

    Args:
        segment: (B, T) of a ``PackedBatch``: 0 prompt, 1 + c completion c, -1 padding.
    """
    rows, width = segment.shape
    place = torch.arange(width).expand(rows, -1)
    found = place + 1
    total = (segment >= 0).sum(dim=1, keepdim=True)
    found = torch.where(segment == 0, total, found)
    for number in range(1, int(segment.max()) + 1):
        own = segment == number
        last = torch.where(own, place + 1, 0).amax(dim=1, keepdim=True)
        found = torch.where(own, last, found)
    return found


def padded(end: Tensor) -> Tensor:
    """Return (B, T') ends up to the next bucket; padding sees itself alone."""
    rows, width = end.shape
    longer = -(-width // BUCKET) * BUCKET
    return torch.cat([end, torch.arange(width + 1, longer + 1).expand(rows, -1)], dim=1)


def visible(end: Tensor) -> Visible:
    """Return who sees whom, as FlexAttention asks it."""

    def asked(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[row, key])

    return asked


def attention(world: World) -> Result:
    """Both kernels on the packed rows of a step and on a whole catalogue: seconds, how far they differ."""
    trie = world.trie()
    layout = lay_out(trie, np.arange(trie.num_titles)[None])
    rows = 2 if world.quick else 8
    packed = {
        "rows, K = 15": ends(pack(world.batch(rows, 15)).segment),
        "a whole catalogue": pack_whole(world.prompts(rows), layout).end,
    }
    found: Result = {name: _compared(world, padded(end)) for name, end in packed.items()}
    if world.device == "cpu":
        found["lacked"] = "a GPU: no kernel is compiled here, and there is no gradient"
    return found


def _compared(world: World, end: Tensor) -> Result:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    hidden, _, _, heads, shared, _ = SHAPES[world.name]
    rows, width = end.shape
    draw = torch.Generator().manual_seed(0)
    kind = {"device": world.device, "dtype": getattr(torch, world.dtype)}
    made = [
        torch.randn(rows, n, width, hidden // heads, generator=draw).to(**kind)
        for n in (heads, shared, shared)
    ]
    there = end.to(world.device)
    place = torch.arange(width, device=world.device)
    mask = tree_mask(place, place, there)[:, None]
    on_gpu = world.device != "cpu"
    blocks = partial(create_block_mask, visible(there), rows, None, width, width, device=world.device)
    kernel: Any = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    ways = {
        "masked": lambda *given: scaled_dot_product_attention(*given, attn_mask=mask, enable_gqa=True),
        "flex": partial(kernel, block_mask=blocks(), enable_gqa=True),
    }
    line: Result = {"tokens": width, "rows": rows, "blocks_s": clock(world, blocks)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        outputs = {name: way(*made) for name, way in ways.items()}
        line |= {f"{name}_s": clock(world, partial(way, *made)) for name, way in ways.items()}
    line["difference"] = (outputs["masked"] - outputs["flex"]).abs().max().item()
    if on_gpu:
        for part in made:
            part.requires_grad_()

        def both(way: Callable[..., Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(way(*made).float().square().sum(), made)

        gradients = [both(way) for way in ways.values()]
        pairs = zip(*gradients, strict=True)
        line["gradient_difference"] = max((one - other).abs().max().item() for one, other in pairs)
        line |= {f"{name}_both_s": clock(world, partial(both, way)) for name, way in ways.items()}
    return line
