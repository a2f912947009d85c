"""What carries LoRA: every name counts, and what cannot be adapted is refused by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model.targets import ALL_LINEAR, choose_targets, lowest_layer

from ..helpers.architectures import build
from .test_policy import make_policy


def last_names(chosen: dict[str, Any]) -> set[str]:
    return {name.rpartition(".")[2] for name in chosen}


@pytest.mark.parametrize(
    ("name", "wanted", "missing"),
    [
        ("llama", ("q_proj", "w_proj"), r"w_proj is not there \(did you mean '[a-z]+_proj'\?\)"),
        ("phi3", ("q_proj", "k_proj", "v_proj", "o_proj"), "q_proj is not there.*qkv_proj"),
        ("llama", ("q_proj", "lm_head"), "lm_head is there, but cannot carry LoRA here"),
        ("llama", ("embed_tokens",), "embed_tokens is there, but cannot carry LoRA here"),
        ("gpt2", ("wte",), "wte is there"),
        ("llama", ("input_layernorm",), "input_layernorm is there"),
        ("gpt2", ("q_proj",), "wanted some of c_attn, c_fc, c_proj, or all-linear"),
        ("mamba", ("out_proj",), "out_proj is there, but cannot carry LoRA here"),
        ("mixtral", ("gate",), "gate is there, but cannot carry LoRA here"),
        ("mixtral", ("w1", "q_proj"), "w1 is not there"),
        ("deepseek_v3", ("gate_proj",), "gate_proj is there, but cannot carry LoRA here"),
        ("llama", ("proj",), "proj is not there"),
        ("llama", ("layers.7.self_attn.q_proj",), "layers.7.self_attn.q_proj"),
    ],
)
def test_every_name_must_be_that_of_a_linear_layer(name: str, wanted: tuple[str, ...], missing: str) -> None:
    with pytest.raises(BackboneError, match=rf"lora_targets: backbone 'mine' \(\w+\): .*{missing}"):
        choose_targets(build(name), "mine", wanted, 0)


def test_a_name_that_only_lower_layers_have_is_missing() -> None:
    """The first layer of DeepSeek-V3 is dense, those above have experts."""
    model = build("deepseek_v3", first_k_dense_replace=1)
    with pytest.raises(BackboneError, match="gate_proj is there, but cannot carry LoRA here"):
        choose_targets(model, "mine", ("q_b_proj", "gate_proj"), 2)


@pytest.mark.parametrize(
    ("name", "layers", "wanted", "count"),
    [
        ("gpt2", 2, {"c_attn", "c_proj", "c_fc"}, 8),  # attention's and the feed-forward's c_proj
        ("gpt2", 0, {"c_attn", "c_proj", "c_fc"}, 16),
        ("mamba", 1, {"in_proj", "x_proj"}, 2),  # a kernel reads out_proj past the adapter
        ("mixtral", 2, {"q_proj", "k_proj", "v_proj", "o_proj"}, 8),  # experts are one joint weight
        ("llama4_text", 1, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, 7),
        ("opt", 1, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}, 6),
        ("mpt", 3, {"Wqkv", "out_proj", "up_proj", "down_proj"}, 12),
    ],
)
def test_all_linear_is_all_that_can_be_adapted(name: str, layers: int, wanted: set[str], count: int) -> None:
    model = build(name)
    chosen = choose_targets(model, "mine", ALL_LINEAR, layers)
    assert last_names(chosen) == wanted
    assert len(chosen) == count
    assert lowest_layer(model, chosen) == (4 - layers if layers else 0)


def test_a_full_name_chooses_one_layer_and_the_layers_below_are_bare() -> None:
    policy = make_policy(targets=("layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"))
    assert policy.targets == ["model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
    assert policy.bare_layers == 1
    assert len(policy.trainable()) == 4


def test_what_is_trained_is_said_by_name_and_count(caplog: pytest.LogCaptureFixture) -> None:
    """3 layers of rank 2: q has 32 inputs and outputs, v 32 inputs and 16 outputs: 3 (2 64 + 2 48) = 672."""
    with caplog.at_level(logging.INFO, logger="recbole_dynamicpo"):
        make_policy(targets=("q_proj", "v_proj"))
    assert "LoRA on q_proj (3), v_proj (3): 672 parameters" in caplog.text


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"'mine' \(HrmTextForCausalLM\) has no linear layer"):
        choose_targets(build("hrm_text"), "mine", ALL_LINEAR, 0)
