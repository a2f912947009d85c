"""Attention by matrix products says what the fused kernel says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recbole_dynamicpo.language_model import attention
from recbole_dynamicpo.language_model.attention import LONGEST, NAME, short_attention, use_short_attention
from recbole_dynamicpo.language_model.logps import separate_logps, shared_logps
from recbole_dynamicpo.language_model.packed import block_mask
from recbole_dynamicpo.language_model.probe import find_abilities
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates

from ..conftest import make_model, make_tokenizer

COLLATOR = Collator(
    make_tokenizer(), Templates(["{history:, }|{candidates:, }|"]), max_length=99, max_history=9
)
BATCH = COLLATOR([PromptRow(["Heat"], ["Alien", "Babe"], ["Alien", "Babe"]), PromptRow(["A"], ["B"], ["B"])])

# Two rows of prompt, completions and padding.
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 2, 2, -1, -1, -1]])


def inputs(dtype: torch.dtype = torch.bfloat16, heads: int = 6, shared: int = 2) -> list[Tensor]:
    """Return query, key and value as a layer makes them: transposed, keys shared by several heads."""
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 8, count, 4, generator=draw).to(dtype).transpose(1, 2).detach().requires_grad_()
        for count in (heads, shared, shared)
    ]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("shared", [6, 2, 1])
def test_values_and_gradients_are_those_of_the_fused_kernel(scaling: float | None, shared: int) -> None:
    mask = block_mask(SEGMENTS)
    narrow = inputs(shared=shared)
    output, _ = short_attention(None, *narrow, mask, scaling=scaling)
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    expected = scaled_dot_product_attention(
        wide[0], *(t.repeat_interleave(6 // shared, dim=1) for t in wide[1:]), attn_mask=mask, scale=scaling
    ).transpose(1, 2)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.03, rtol=0.03)
    for ours, theirs in zip(narrow, wide, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, atol=0.06, rtol=0.03)


def test_a_masked_key_has_no_influence_at_all() -> None:
    query, key, value = (tensor.detach() for tensor in inputs())
    mask = block_mask(SEGMENTS)
    before, _ = short_attention(None, query, key, value, mask)
    key[:, :, 5], value[:, :, 5] = 50.0, -50.0  # the only token of the second completion; padding below
    after, _ = short_attention(None, query, key, value, mask)
    changed = (before != after).any(dim=3).any(dim=2)
    assert changed.nonzero().tolist() == [[0, 5], [1, 5]]


def other_than_short() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return calls that the fused kernel has to answer."""
    mask, narrow = block_mask(SEGMENTS), inputs()
    long = torch.zeros(1, 1, LONGEST + 1, 4, dtype=torch.bfloat16)
    seen = torch.ones(1, 1, LONGEST + 1, LONGEST + 1, dtype=torch.bool)
    return [
        ("float32", (*inputs(torch.float32), mask), {}),
        ("no mask", (*narrow, None), {}),
        ("a mask that is added", (*narrow, torch.zeros(mask.shape, dtype=torch.bfloat16)), {}),
        ("dropout", (*narrow, mask), {"dropout": 0.5}),
        ("long", (long, long, long, seen), {}),
    ]


@pytest.mark.parametrize(("name", "arguments", "more"), other_than_short())
def test_all_else_is_left_to_the_fused_kernel(
    name: str, arguments: tuple[Any, ...], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fused(module: object, *given: Any, **rest: Any) -> tuple[str, None]:
        asked.append((len(given), rest["dropout"]))
        return "fused", None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", fused)
    assert short_attention(None, *arguments, **more) == ("fused", None)
    assert asked == [(4, more.get("dropout", 0.0))]


def test_a_model_in_float32_scores_the_same_bits() -> None:
    plain, ours = make_model(), make_model()
    use_short_attention(ours)
    assert ours.config._attn_implementation == NAME
    for score in (shared_logps, separate_logps):
        assert torch.equal(score(plain, BATCH), score(ours, BATCH))
    assert find_abilities(ours, "tiny").shares_prompt


def test_a_model_in_bfloat16_is_as_near_to_float32_as_with_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All see the same weights, rounded to bfloat16; the kernels alone differ."""
    calls = []
    short = attention.short_attention
    monkeypatch.setattr(attention, "short_attention", lambda *a, **k: calls.append(1) or short(*a, **k))
    values, gradients = {}, {}
    for name in ("exact", "fused", "ours"):
        model = make_model(torch.bfloat16)
        if name == "exact":
            model = model.float()
        if name == "ours":
            use_short_attention(model)
        logps = shared_logps(model, BATCH)
        logps.sum().backward()
        values[name] = logps.detach()
        found = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        gradients[name] = torch.cat(found)
    assert calls
    for measured, bound in ((values, 0.02), (gradients, 0.05)):
        error = {n: (measured[n] - measured["exact"]).norm() / measured["exact"].norm() for n in measured}
        assert 0 < error["ours"] < bound
        assert error["ours"] < 1.5 * error["fused"]
