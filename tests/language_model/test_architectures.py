"""Every causal language model of the installed transformers works, or is refused before training.

A handful of families by default; ``ROBUSTNESS_ARCHITECTURES=all`` (or names, separated by commas) takes the
others, at some 10 seconds each.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone, check_backbone, load_backbone
from recbole_dynamicpo.language_model.miniature import make_visible
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.language_model.probe import find_abilities
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.serving.recommender import load_recommender

from ..conftest import make_tokenizer
from ..helpers.architectures import COMPOSITE, LAYERS, REFUSED, SHARED, TABLE, VARIANTS, build

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
VOICES = ("backbone", "reference", "policy")
ROWS = [
    PromptRow(["Heat"], ["Alien", "Babe", "Up"], ["Alien", "Babe", "Up"]),
    PromptRow(["A", "B"], ["Fargo"], ["Fargo"]),
]
_ASKED = os.environ.get("ROBUSTNESS_ARCHITECTURES", "")
_FEW = ("gemma2", "gemma3_text", "gpt2", "lfm2", "mixtral", "bloom")
_WORKING = [name for name, way in TABLE.items() if way != REFUSED]
CHOSEN = _WORKING if _ASKED == "all" else _ASKED.split(",") if _ASKED else list(_FEW)


def test_the_table_knows_every_architecture() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    assert sorted(set(KNOWN) - set(TABLE)) == [], "new in transformers: say in the table what becomes of them"


def backbone_of(model: Any) -> Backbone:
    return Backbone(model, make_tokenizer(), "tiny", "0" * 64, **find_abilities(model, "tiny")._asdict())


def scorer(model_type: str, targets: tuple[str, ...], layers: int, **more: Any) -> Scorer:
    """Return a scorer whose three voices differ, on weights that hide nothing."""
    model = build(model_type, **more)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        make_visible(model)
    model.requires_grad_(False)
    policy = Policy(backbone_of(model), LoraShape(2, 8.0, 0.0, targets, layers), seed=1)
    draw = torch.Generator().manual_seed(0)
    for freeze in (True, False):
        with torch.no_grad():
            for parameter in policy.trainable():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        if freeze:
            policy.freeze_reference()
    templates = Templates(["{history:, }|{candidates:, }|"])
    collator = Collator(policy.backbone.tokenizer, templates, max_length=60, max_history=9)
    return Scorer(policy, collator, TokenBudget(4096))


@torch.no_grad()
def one_by_one(score: Scorer, voice: str) -> Tensor:
    """Return (B, C) log-probabilities by the whole model, each title in a sequence of its own."""
    found = torch.full((len(ROWS), 3), -torch.inf, dtype=torch.float64)
    prompts, titles = score.collator.token_ids(ROWS)
    score.policy.eval()
    with score.policy.speaking_as(voice):
        for row, prompt in enumerate(prompts):
            for column, title in enumerate(titles[row]):
                ids = torch.tensor([prompt + title])
                model = score.policy.peft.get_base_model()
                logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].double()
                steps = logits[len(prompt) - 1 : -1].log_softmax(dim=1)
                found[row, column] = steps.gather(1, ids[0, len(prompt) :, None]).sum()
    return found


@pytest.mark.parametrize("targets", [DEFAULT_TARGETS, ("all-linear",)], ids=["default", "all-linear"])
@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in CHOSEN), *VARIANTS])
def test_three_voices_together_are_each_one_sequence_a_title(
    name: str, more: dict[str, Any], targets: tuple[str, ...]
) -> None:
    problem = ""
    try:
        score = scorer(name, targets, LAYERS // 2, **more)
    except BackboneError as error:
        problem = str(error)
    if problem:
        assert targets == DEFAULT_TARGETS, problem
        assert re.search("lora_targets: .* wanted some of .*all-linear", problem)
        return
    if not more:
        assert score.policy.backbone.shares_prompt == (TABLE[name] == SHARED)
    together = score.in_voices(ROWS, VOICES)
    for voice in VOICES:
        wanted = one_by_one(score, voice)
        torch.testing.assert_close(together[voice].double(), wanted, rtol=1e-3, atol=5e-3, msg=voice)
        assert (together[voice] <= 0).all()
    present = torch.isfinite(together["policy"])
    assert (together["policy"] - together["reference"])[present].abs().max() > 0.01
    assert (together["backbone"] - together["reference"])[present].abs().max() > 0.01


@pytest.mark.parametrize("name", CHOSEN)
def test_every_adapted_layer_learns_and_only_they(name: str) -> None:
    score = scorer(name, ("all-linear",), LAYERS // 2)
    score.policy.train()
    score.policy.logps(score.collator(ROWS)).sum().backward()
    silent = [n for n, p in score.policy.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    assert {n for n, p in score.policy.named_parameters() if p.grad is not None} == {
        n for n, p in score.policy.named_parameters() if ".policy." in n
    }


# Peft knows old names of layers of these, and would translate those of an adapter.
RENAMED = () if _ASKED else ("laguna", "qwen3_moe", "deepseek_v3")


@pytest.mark.parametrize("name", [*CHOSEN, *RENAMED])
def test_the_whole_adapter_is_frozen_saved_and_loaded(name: str, tmp_path: Path) -> None:
    score = scorer(name, ("all-linear",), LAYERS // 2)
    with score.policy.same_batch():
        trained = score(ROWS, "policy")
    score.policy.freeze_reference()
    assert torch.equal(score(ROWS, "reference"), score(ROWS, "policy"))
    score.policy.save(tmp_path)
    fresh = scorer(name, ("all-linear",), LAYERS // 2)
    with torch.no_grad():
        for parameter in fresh.policy.trainable():
            parameter.zero_()
    fresh.policy.load(tmp_path)
    assert fresh.policy.digest() == score.policy.digest()
    torch.testing.assert_close(fresh(ROWS, "policy"), trained)


@pytest.mark.parametrize("targets", [list(DEFAULT_TARGETS), ["all-linear"]], ids=["default", "all-linear"])
@pytest.mark.parametrize("name", CHOSEN)
def test_both_stages_run_and_what_is_saved_ranks_alike(
    name: str, targets: list[str], toy_settings: dict[str, Any], tmp_path: Path
) -> None:
    build(name).save_pretrained(tmp_path / "backbone")
    make_tokenizer().save_pretrained(tmp_path / "backbone")
    own = {**toy_settings, "backbone": str(tmp_path / "backbone"), "lora_targets": targets, "lora_layers": 2}
    own |= {"sft_rows": 4, "preference_rows": 4, "eval_rows": 3, "num_candidates": 4, "num_negatives": 3}
    problem = ""
    try:
        run("DynamicPO", "toy", overrides=own)
    except BackboneError as error:
        problem = str(error)
    if problem:
        assert targets != ["all-linear"], problem
        assert "lora_targets" in problem
        assert not list(Path(own["checkpoint_dir"]).rglob("adapter_model.safetensors"))  # before training
        return
    folder = next(Path(own["checkpoint_dir"]).iterdir()) / "preference"
    entries = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    first = next(e for e in entries if (e["stage"], e["kind"]) == ("preference", "train"))
    assert first["loss"] == pytest.approx(0.6931, abs=2e-3)  # policy = reference: log 2
    ranked = load_recommender(folder).rank(["amber bear"], ["iron kite", "lemon glass", "ocean pearl"])
    assert ranked == load_recommender(folder).rank(
        ["amber bear"], ["iron kite", "lemon glass", "ocean pearl"]
    )
    assert len(ranked) == 3


@pytest.mark.parametrize("name", [name for name, way in TABLE.items() if way == REFUSED])
def test_what_cannot_be_scored_is_refused_at_load(name: str, tmp_path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name in COMPOSITE:
        config = {"architectures": [KNOWN[name]], "model_type": name}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BackboneError, match="wanted"):
            check_backbone(str(tmp_path))
        return
    build(name).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"wanted|cannot be scored|cannot be loaded"):
        Policy(load_backbone(str(tmp_path)), LoraShape(2, 8.0, 0.0, ("all-linear",), 0), seed=0)
