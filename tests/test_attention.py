"""Attention that is widened for its backward pass says what the ordinary one says."""

from __future__ import annotations

import pytest
import torch

from recbole_dynamicpo.attention import NAME, widen_attention, widened_attention
from recbole_dynamicpo.batches import PromptRow
from recbole_dynamicpo.collate import Collator
from recbole_dynamicpo.logps import separate_logps, shared_logps, sharing_works
from recbole_dynamicpo.prompts import Templates

from .conftest import make_model, make_tokenizer

COLLATOR = Collator(
    make_tokenizer(), Templates(["{history:, }|{candidates:, }|"]), max_length=99, max_history=9
)
BATCH = COLLATOR([PromptRow(["Heat"], ["Alien", "Babe"], ["Alien", "Babe"]), PromptRow(["A"], ["B"], ["B"])])


def test_the_same_log_probabilities_in_float32() -> None:
    plain, widened = make_model(), make_model()
    widen_attention(widened)
    assert widened.config._attn_implementation == NAME
    for score in (shared_logps, separate_logps):
        assert torch.equal(score(plain, BATCH), score(widened, BATCH))
    assert sharing_works(widened)


def test_gradients_in_bfloat16_are_nearer_to_those_of_float32() -> None:
    """Both see the same weights, rounded to bfloat16."""
    found = {}
    for name in ("exact", "plain", "widened"):
        model = make_model(torch.bfloat16)
        if name == "exact":
            model = model.float()
        if name == "widened":
            widen_attention(model)
        shared_logps(model, BATCH).sum().backward()
        found[name] = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
    error = {name: (found[name] - found["exact"]).norm() / found["exact"].norm() for name in found}
    assert 0 < error["widened"] < 0.05
    assert error["widened"] < 1.5 * error["plain"]


@pytest.mark.parametrize(("wants_gradient", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_it_is_widened_only_for_a_gradient(
    wants_gradient: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def attention(module: object, query: torch.Tensor, *rest: object, **more: object) -> tuple[object, None]:
        seen.append(query.dtype)
        return query, None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", attention)
    query = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=wants_gradient)
    output, _ = widened_attention(None, query, query, query, None)
    assert seen == [dtype]
    assert output.dtype == torch.bfloat16
