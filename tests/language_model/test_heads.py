"""From states to log-probabilities: never above 0, near the truth in every dtype, whatever the head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.language_model import heads
from recbole_dynamicpo.language_model.heads import own_token_logps, plain_token_logps
from recbole_dynamicpo.language_model.logps import separate_logps, shared_logps
from recbole_dynamicpo.language_model.packed import TokenBatch

from ..conftest import make_model
from ..helpers.architectures import build

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def peaked(top: float, dtype: torch.dtype, vocabulary: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, weight and the likeliest token of each state, whose logit is about ``top``."""
    draw = torch.Generator().manual_seed(int(top))
    weight = torch.randn(vocabulary, 64, generator=draw)
    best = torch.randint(0, vocabulary, (200,), generator=draw)
    states = weight[best] * (top / weight[best].square().sum(dim=1, keepdim=True))
    return states.to(dtype), weight.to(dtype), best


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top", [4.0, 16.0, 24.0, 32.0, 100.0])
def test_no_token_is_likelier_than_certain(top: float, dtype: torch.dtype) -> None:
    """In bfloat16 an exact logit above a rounded normaliser gave 28 to 51 % of such tokens more than 1."""
    states, weight, best = peaked(top, dtype)
    found = plain_token_logps(states, weight, torch.arange(len(best)), best)
    assert (found <= 0).all()
    exact = (states.double() @ weight.double().T).log_softmax(dim=1)
    wanted = exact.gather(1, best[:, None]).squeeze(1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)  # the inputs' rounding alone


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("score", [shared_logps, separate_logps])
@pytest.mark.parametrize("plain_head", [True, False])
@torch.no_grad()
def test_no_title_is_likelier_than_certain(dtype: torch.dtype, score: object, plain_head: bool) -> None:
    """The model's own likeliest continuations, with logits of some 30."""
    model = make_model(dtype)
    model.lm_head.weight.mul_(6)
    ids = torch.randint(1, 257, (8, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=2)], dim=1)
    batch = TokenBatch(ids[:, :6], torch.full((8,), 6), ids[:, None, 6:], torch.full((8, 1), 5))
    found = score(model, batch, plain_head=plain_head)  # type: ignore[operator]
    assert (found <= 0).all()
    assert found.max() > -1  # likely indeed


def test_a_certain_token_by_hand() -> None:
    """Logits 88 and 0: the likelier one has -log(1 + e^-88) = -6e-39, which is 0; the other -88."""
    weight = torch.tensor([[88.0], [0.0]], dtype=torch.bfloat16)
    state = torch.ones(1, 1, dtype=torch.bfloat16)
    found = plain_token_logps(state, weight, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert found.tolist() == [0.0, -88.0]


HEADS = [
    ("gemma2", {"final_logit_softcapping": 1.0}),
    ("granite", {"logits_scaling": 8.0}),
    ("cohere", {"logit_scale": 0.0625}),
    ("phi", {}),  # a bias
    ("minicpm3", {}),  # scales the states before its head
    ("gptj", {"rotary_dim": 4}),
]


@pytest.mark.parametrize(("name", "more"), HEADS)
def test_a_head_of_the_models_own(name: str, more: dict[str, float]) -> None:
    """Values and gradients are those of the whole model's logits, in parts of a few rows too."""
    model = build(name, initializer_range=0.2, **more)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    model.requires_grad_(False)
    ids = torch.randint(1, 257, (1, 9), generator=torch.Generator().manual_seed(0))
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    wanted = model(inputs_embeds=embedded, use_cache=False).logits[0, :-1].log_softmax(dim=1)
    wanted = wanted.gather(1, ids[0, 1:, None]).squeeze(1)
    (expected,) = torch.autograd.grad(wanted.sum(), embedded)
    output = model.get_decoder()(inputs_embeds=embedded, use_cache=False)
    states = output.last_hidden_state[0, :-1]
    for values in (heads.OWN_HEAD_LOGITS, 3 * 257):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heads, "OWN_HEAD_LOGITS", values)
            found = own_token_logps(model, output, states, torch.arange(8), ids[0, 1:])
            (actual,) = torch.autograd.grad(found.sum(), embedded, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not math.isclose(found.sum().item(), plain_sum(model, states, ids), abs_tol=0.05)


def plain_sum(model: object, states: Tensor, ids: Tensor) -> float:
    """Return what a plain head would say."""
    weight = model.get_output_embeddings().weight  # type: ignore[attr-defined]
    return float(plain_token_logps(states.detach(), weight, torch.arange(8), ids[0, 1:]).sum())
