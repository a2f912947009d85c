"""Layers without an adapter run once for all voices, and every voice still says the same."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.training.answers import Answers

from .test_policy import disturb, make_policy

VOICES = ["backbone", "reference", "policy"]
ROWS = [
    PromptRow(["Heat"], ["Alien", "Babe"], ["Alien", "Babe"]),
    PromptRow(["A", "B"], ["Fargo"], ["Fargo"]),
]


def scorer(layers: int) -> Scorer:
    """Return a scorer whose three voices differ; the adapter sits on the topmost ``layers`` of 3."""
    policy = make_policy(layers=layers)
    disturb(policy, seed=1)
    policy.freeze_reference()
    disturb(policy, seed=2)
    collator = Collator(
        policy.backbone.tokenizer, Templates(["{history:, }|{candidates:, }|"]), max_length=99, max_history=9
    )
    return Scorer(policy, collator, TokenBudget(40))


def count_calls(policy: Policy) -> list[int]:
    """Return the calls of each layer of the decoder, counted from now on."""
    layers = policy.peft.get_base_model().get_decoder().layers
    calls = [0] * len(layers)

    def counting(index: int) -> Any:
        def hook(*args: Any) -> None:
            calls[index] += 1

        return hook

    for index, layer in enumerate(layers):
        layer.mlp.register_forward_hook(counting(index))  # the layer itself is passed by without running
    return calls


@pytest.mark.parametrize(("layers", "expected"), [(1, [2, 2, 6]), (2, [2, 6, 6]), (0, [6, 6, 6])])
def test_each_voice_says_what_it_says_alone(layers: int, expected: list[int]) -> None:
    score = scorer(layers)
    alone = {voice: score(ROWS, voice) for voice in VOICES}
    calls = count_calls(score.policy)
    together = score.in_voices(ROWS, VOICES)
    assert calls == expected  # two batches of one row each
    for voice in VOICES:
        assert torch.equal(together[voice], alone[voice])
    assert not torch.equal(alone["policy"], alone["reference"])
    assert not torch.equal(alone["policy"], alone["backbone"])


def test_the_layers_are_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    score = scorer(1)
    before = score(ROWS, "policy")
    decoder = score.policy.peft.get_base_model().get_decoder()
    layers, logps, calls = decoder.layers, Policy.logps, []

    def failing(self: Policy, batch: Any, *more: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("power")
        return logps(self, batch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "logps", failing)
        with pytest.raises(RuntimeError, match="power"):
            score.in_voices(ROWS, VOICES)
    assert decoder.layers is layers
    assert torch.equal(score(ROWS, "policy"), before)


def test_training_is_not_affected() -> None:
    """A backward pass after a replayed one reaches the adapter as ever."""
    score = scorer(1)
    batch = score.collator(ROWS)
    score.policy.logps(batch).sum().backward()
    expected = [p.grad.clone() for p in score.policy.trainable() if p.grad is not None]
    score.policy.zero_grad()
    score.in_voices(ROWS, VOICES)
    score.policy.logps(batch).sum().backward()
    found = [p.grad for p in score.policy.trainable() if p.grad is not None]
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_run_reports_the_same_with_and_without(
    toy_settings: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**toy_settings, "lora_layers": 1}
    together = run("DynamicPO", "toy", overrides={**own, "checkpoint_dir": str(tmp_path / "a")})
    monkeypatch.setattr(Answers, "together", lambda self, voices, batches, **more: nullcontext())
    apart = run("DynamicPO", "toy", overrides={**own, "checkpoint_dir": str(tmp_path / "b")})
    assert together["test_result"] == apart["test_result"]
    reports = [next((tmp_path / name).iterdir()) / "report.json" for name in "ab"]
    first, second = (json.loads(path.read_text())["contestants"] for path in reports)
    assert first == second
