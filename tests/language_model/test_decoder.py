"""Layers without an adapter run once for all voices, and every voice still says the same."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.decoder import compile_layers, recompute_layers
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.training.answers import Answers

from .test_policy import disturb, make_policy

# Torch looks at gradients behind a filter of its own, which an error would pass; 3.13.0 is said to be slow.
traces = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore:Guards may run slower:RuntimeWarning"
)
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


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let torch trace what it is to compile, and no more, which takes a minute less.

    Returns:
        the numbers of tokens that traced layers were called with.
    """
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep every line
    compiler = torch.compile

    def traced(forward: Any, **options: Any) -> Any:
        made = compiler(forward, backend="eager", **options)

        def run(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            sizes.append(states.shape[:2].numel())
            return made(states, *args, **kwargs)

        return run

    sizes: list[Any] = []
    monkeypatch.setattr(torch, "compile", traced)
    return sizes


def gradients(score: Scorer, rows: list[PromptRow]) -> list[torch.Tensor]:
    """Return what one pass over the rows teaches."""
    logps = score.policy.logps(score.collator(rows))
    return list(torch.autograd.grad(logps.sum(), score.policy.trainable()))


def check_compiled(layers: int) -> None:
    """See that compiled layers say, teach and replay what plain ones do."""
    plain, score = scorer(layers), scorer(layers)
    model = score.policy.peft.get_base_model()
    compile_layers(model)
    for rows in (ROWS[:1], ROWS, ROWS[1:]):
        for voice in VOICES:
            torch.testing.assert_close(score(rows, voice), plain(rows, voice), rtol=1e-5, atol=1e-5)
        for found, right in zip(gradients(score, rows), gradients(plain, rows), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    together = score.in_voices(ROWS, VOICES)
    assert recompute_layers(model, score.policy.bare_layers)
    for found, right in zip(gradients(score, ROWS), gradients(plain, ROWS), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    for voice in VOICES:
        torch.testing.assert_close(together[voice], plain(ROWS, voice), rtol=1e-5, atol=1e-5)


@traces
@pytest.mark.parametrize("layers", [1, 0])
def test_compiled_layers_say_and_teach_the_same(layers: int, quick_compiler: list[Any]) -> None:
    check_compiled(layers)
    assert quick_compiler


@traces
@pytest.mark.long
@pytest.mark.parametrize("layers", [1, 0])
def test_layers_in_machine_code_say_and_teach_the_same(layers: int) -> None:
    torch._dynamo.reset()
    check_compiled(layers)


@traces
def test_passes_with_kept_keys_are_not_compiled(quick_compiler: list[Any]) -> None:
    policy = scorer(0).policy
    model = policy.peft.get_base_model()
    ids = torch.tensor([[5, 6, 7]])
    wanted = model(input_ids=ids, use_cache=True).logits
    compile_layers(model)
    assert torch.equal(model(input_ids=ids, use_cache=True).logits, wanted)
    assert not quick_compiler
    model(input_ids=ids, use_cache=False)
    assert quick_compiler == [3] * 3


def test_where_nothing_can_be_compiled_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    torch._dynamo.reset()
    compiler = torch.compile

    def lacking(graph: Any, inputs: Any) -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda forward, **more: compiler(forward, backend=lacking, **more))
    model = scorer(0).policy.peft.get_base_model()
    compile_layers(model)
    with pytest.raises(BackboneError, match=r"compile_layers: torch cannot compile here: .*; wanted False"):
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)


@pytest.mark.long
@traces
def test_a_run_with_compiled_layers(
    toy_settings: dict[str, Any], tmp_path: Any, quick_compiler: list[Any]
) -> None:
    own = {**toy_settings, "checkpoint_dir": str(tmp_path)}
    plain = run("DynamicPO", "toy", overrides=own)
    assert not quick_compiler
    compiled = run("DynamicPO", "toy", overrides={**own, "compile_layers": True})
    assert quick_compiler
    assert compiled["test_result"].keys() == plain["test_result"].keys()
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*/report.json")]
    assert len(reports) == 2  # another folder: the setting may round otherwise
