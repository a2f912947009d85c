"""Scoring all completions in one pass: same values and gradients as one ordinary sequence each.

No log-probability is above 0, and each is near the truth in every dtype, whatever the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_dynamicpo.language_model import logps
from recbole_dynamicpo.language_model.logps import (
    own_token_logps,
    plain_token_logps,
    separate_logps,
    shared_logps,
)
from recbole_dynamicpo.language_model.packed import TokenBatch

from ..conftest import make_model
from ..helpers.architectures import build

Score = Callable[[Any, TokenBatch], Tensor]


def make_gpt2() -> Any:
    """Return a random GPT-2 with 16 positions and a head of its own."""
    return build("gpt2", max_position_embeddings=16, tie_word_embeddings=False, initializer_range=0.2)


def ragged_batch(seed: int = 0) -> TokenBatch:
    """Prompts of 7, 4 and 1 tokens; titles of 1 to 5; the second row has two candidates, the third one."""
    draw = torch.Generator().manual_seed(seed)
    return TokenBatch(
        torch.randint(1, 257, (3, 7), generator=draw),
        torch.tensor([7, 4, 1]),
        torch.randint(1, 257, (3, 4, 5), generator=draw),
        torch.tensor([[5, 3, 1, 4], [2, 5, 0, 0], [4, 0, 0, 0]]),
    )


def one_by_one(model: Any, batch: TokenBatch) -> Tensor:
    """Return (B, C) log-probabilities, each from an unpadded sequence of its own."""
    rows = []
    for row, length in enumerate(batch.prompt_length.tolist()):
        prompt = batch.prompt[row, :length]
        for column, count in enumerate(batch.completion_length[row].tolist()):
            title = batch.completions[row, column, :count]
            ids = torch.cat([prompt, title])[None]
            logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            steps = logits[length - 1 : length - 1 + count].log_softmax(dim=1)
            rows.append(steps.gather(1, title[:, None]).sum())
    return torch.stack(rows).view(batch.completion_length.shape)


def gradients(model: Any, score: Score, batch: TokenBatch) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of scores; the head is frozen, as it is in training."""
    model.requires_grad_(True)
    model.lm_head.requires_grad_(False)
    model.zero_grad()
    values = score(model, batch)
    weights = torch.arange(1, values.numel() + 1, dtype=values.dtype).view(values.shape).sin()
    (values * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("score", [shared_logps, separate_logps])
@torch.no_grad()
def test_values_equal_one_sequence_per_completion(score: Score, seed: int) -> None:
    model, batch = make_model(torch.float64, seed=seed), ragged_batch(seed)
    found = score(model, batch)
    torch.testing.assert_close(found, one_by_one(model, batch), rtol=0, atol=1e-6)
    assert (found[batch.completion_length == 0] == 0).all()


@pytest.mark.parametrize("score", [shared_logps, separate_logps])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_equal_one_sequence_per_completion(kind: str, score: Score) -> None:
    """Of every decoder weight and of the input embeddings.

    Llama normalises in float32 whatever its weights are, which leaves about 1e-7; GPT-2 does not.
    """
    model = make_model(torch.float64) if kind == "llama" else make_gpt2().double()
    tolerance, batch = 1e-6 if kind == "llama" else 1e-12, ragged_batch()
    wanted = gradients(model, one_by_one, batch)
    found = gradients(model, score, batch)
    assert len(wanted) == len(list(model.parameters())) - 1
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * largest, msg=name)


@torch.no_grad()
def test_rows_and_padding_do_not_matter() -> None:
    """A row alone, and with other numbers in the padding, scores the same."""
    model, batch = make_model(torch.float64), ragged_batch()
    whole = shared_logps(model, batch)
    dirty = TokenBatch(batch.prompt.clone(), batch.prompt_length, batch.completions.clone(), batch[3])
    dirty.prompt[torch.arange(7) >= batch.prompt_length[:, None]] = 9
    dirty.completions[torch.arange(5) >= batch.completion_length[:, :, None]] = 9
    torch.testing.assert_close(shared_logps(model, dirty), whole, rtol=0, atol=1e-12)
    for row in range(3):
        alone = TokenBatch(*(tensor[[row]] for tensor in batch))
        torch.testing.assert_close(shared_logps(model, alone), whole[[row]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", [shared_logps, separate_logps])
@torch.no_grad()
def test_a_uniform_model_by_hand(score: Score) -> None:
    """With a head of zeros every token has probability 1/257: a title of n tokens has -n log 257."""
    model, batch = make_model(torch.float64), ragged_batch()
    model.lm_head.weight.zero_()
    wanted = -batch.completion_length.double() * math.log(257)
    torch.testing.assert_close(score(model, batch), wanted, rtol=1e-12, atol=0)


def test_one_pass_over_prompt_and_completions() -> None:
    """A completion's last token is only predicted: 7 + 4 + 2 + 0 + 3 = 16 inputs in row 1, the longest.

    Row 2 has 4 + 1 + 4 = 9 and row 3 has 1 + 3 = 4, so the pass is over 3 x 16 tokens. One sequence
    per candidate would take 12 of 12.
    """
    model, batch = make_model(), ragged_batch()
    calls: list[tuple[int, ...]] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, options: calls.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    shared_logps(model, batch)
    assert calls == [(3, 16)]
    separate_logps(model, batch)
    assert calls == [(3, 16), (7, 12)]


class _VocabularyWatch(TorchDispatchMode):
    """Notes the largest number of rows of any (..., V) tensor that an operation returns."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] >= self.vocabulary:
                self.rows = max(self.rows, tensor.shape[:-1].numel())
        return result


def test_no_tensor_of_tokens_by_vocabulary_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; the transposed head (32, V) is the only thing as wide as the vocabulary."""
    monkeypatch.setattr(logps, "VOCABULARY_SLICE", 50)
    model = make_model()
    model.requires_grad_(True)
    model.lm_head.requires_grad_(False)
    batch = TokenBatch(*(torch.cat([tensor] * 5) for tensor in ragged_batch()))
    with _VocabularyWatch(257) as fast:
        shared_logps(model, batch).sum().backward()
    with _VocabularyWatch(257) as slow:
        separate_logps(model, batch).sum()
    assert fast.rows == 0
    assert slow.rows == 0
    with _VocabularyWatch(257) as own:
        separate_logps(model, batch, plain_head=False).sum()
    assert own.rows == batch.completion_length.sum()  # of predicted tokens alone


@pytest.mark.parametrize("width", [1, 7, 64, 257, 8192])
def test_sliced_logsumexp(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that divide the vocabulary or leave a short last one; states up to +-1000."""
    monkeypatch.setattr(logps, "VOCABULARY_SLICE", width)
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(257, 8, generator=draw, dtype=torch.float64)
    states = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    states *= torch.tensor([1.0, 0.0, 1e-3, 30.0, 1e3, -1e3], dtype=torch.float64)[:, None]
    states.requires_grad_()
    source_of, targets = torch.tensor([0, 1, 2, 3, 3, 4, 5]), torch.tensor([0, 256, 6, 7, 64, 255, 3])
    found = plain_token_logps(states, weight, source_of, targets)
    wanted = (states @ weight.T).log_softmax(dim=1)[source_of, targets]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    factors = torch.arange(1.0, 8.0, dtype=torch.float64)
    (actual,) = torch.autograd.grad((found * factors).sum(), states)
    (expected,) = torch.autograd.grad((wanted * factors).sum(), states)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_sliced_normaliser_is_wide_for_narrow_weights() -> None:
    weight = torch.ones(300, 4, dtype=torch.bfloat16)
    first = torch.zeros(1, dtype=torch.int64)
    found = plain_token_logps(torch.zeros(2, 4, dtype=torch.bfloat16), weight, first, first)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-math.log(300)], rel=1e-6)


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
    for values in (logps.OWN_HEAD_LOGITS, 3 * 257):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logps, "OWN_HEAD_LOGITS", values)
            found = own_token_logps(model, output, states, torch.arange(8), ids[0, 1:])
            (actual,) = torch.autograd.grad(found.sum(), embedded, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not math.isclose(found.sum().item(), plain_sum(model, states, ids), abs_tol=0.05)


def plain_sum(model: object, states: Tensor, ids: Tensor) -> float:
    """Return what a plain head would say."""
    weight = model.get_output_embeddings().weight  # type: ignore[attr-defined]
    return float(plain_token_logps(states.detach(), weight, torch.arange(8), ids[0, 1:]).sum())
