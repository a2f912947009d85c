"""What is measured on: a backbone with an adapter that has learned something, and real prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import DTYPES, Backbone, load_backbone, resolve_backbone
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import POLICY, Policy
from recbole_dynamicpo.language_model.probe import find_abilities
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import load_templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.settings import Settings, properties_folder
from recbole_dynamicpo.training.rows import scored_columns

# Standard deviation of the adapters' B matrices: enough to move a title by about a nat, so that the
# policy differs from the reference and a wrong log-ratio shows in the loss.
ADAPTER_SCALE = 0.01

# Architecture of the backbones that exist for their shapes alone; the weights are random.
SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
}


# Rows with listed candidates under the vocabulary likelihood; the default job has others.
LISTED = {
    "likelihood": "vocabulary", "catalogue_prior": None, "centre": False, "positions": "last",
    "negatives": "uniform", "prompt": "neutral", "rank_among": ["candidates"], "max_history": 6,
    "sft_batch_size": 8, "train_batch_size": 8,
}  # fmt: skip


def read_dataset(name: str, settings: Mapping[str, Any]) -> DynamicPODataset:
    """Return a built data set, read as a run with listed candidates reads it."""
    dataset = DynamicPODataset(PlainConfig("DynamicPO", name, [], {**LISTED, **settings}))
    dataset.build()
    return dataset


@dataclass(frozen=True)
class Rows:
    """Training rows with all of their candidates.

    Attributes:
        dataset: that they come from.
        interaction: the rows as the trainer has them.
    """

    dataset: DynamicPODataset
    interaction: Interaction

    @classmethod
    def take(cls, dataset: DynamicPODataset, count: int) -> Rows:
        """Return ``count`` rows of the preference stage."""
        return cls(dataset, dataset.stage_rows(count, skip=dataset.settings.sft_rows))

    def columns(self, negatives: int) -> torch.Tensor:
        """Return (n, 1 + K) columns of the candidates, the positive first, as in the first epoch."""
        return scored_columns(
            self.interaction, self.dataset.iid_field, self.dataset.title_numbers.numpy(), negatives,
            self.dataset.settings.seed, epoch=0,
        )  # fmt: skip

    def scored(self, negatives: int) -> list[PromptRow]:
        """Return the rows with the positive and K negatives as completions."""
        ids = self.interaction[CANDIDATE_IDS].gather(1, self.columns(negatives))
        return self.dataset.prompt_rows(self.interaction, ids.numpy())

    def candidates(self) -> list[PromptRow]:
        """Return the rows with all candidates as completions."""
        return self.dataset.prompt_rows(self.interaction, self.interaction[CANDIDATE_IDS].numpy())


@dataclass(frozen=True)
class Bench:
    """What speaks and how it reads.

    Attributes:
        settings: of the package.
        policy: with the adapters ``policy`` and ``reference``, which differ.
        collator: writes the prompts.
        device: where the weights are.
    """

    settings: Settings
    policy: Policy
    collator: Collator
    device: str

    @property
    def scorer(self) -> Scorer:
        """Scores without gradient, as the reference pass and the evaluation do."""
        return Scorer(self.policy, self.collator, TokenBudget(self.settings.tokens_per_batch))


def build(settings: Settings, shapes: str | None = None) -> Bench:
    """Load the backbone and give it two adapters that have moved away from zero.

    Args:
        settings: of the package; ``dtype`` and those of backbone, adapter and prompt are read.
        shapes: one of ``SHAPES`` for random weights instead of the backbone.
    """
    # RecBole's SINE module turns anomaly detection on for the whole process when it is imported; the
    # trainer turns it off too.
    torch.autograd.set_detect_anomaly(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if shapes is None:
        backbone = load_backbone(settings.backbone, dtype=settings.dtype, device=device)
    else:
        backbone = _random_backbone(shapes, settings, device)
    shape = LoraShape.of(settings)
    policy = Policy(backbone, shape, settings.seed)
    move_adapter(policy, seed=1)
    policy.freeze_reference()
    move_adapter(policy, seed=2)
    templates = load_templates(settings.prompt, properties_folder() / "prompts")
    length = min(settings.max_length, backbone.max_length)
    collator = _Folded if shapes else Collator
    made = collator(backbone.tokenizer, templates, max_length=length, max_history=settings.max_history)
    return Bench(settings, policy, made, device)


@torch.no_grad()
def move_adapter(policy: Policy, seed: int) -> None:
    """Add noise to the B matrices of the policy's adapter, which start at zero."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in policy.peft.named_parameters():
        if f"lora_B.{POLICY}." in name:
            noise = torch.randn(parameter.shape, generator=draw) * ADAPTER_SCALE
            parameter.add_(noise.to(parameter))


def _random_backbone(shapes: str, settings: Settings, device: str) -> Backbone:
    """Return a Llama of known shapes with random weights and the tokenizer of the backbone."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(settings.backbone))
    config = LlamaConfig(**{**SHAPES[shapes], "attn_implementation": "sdpa"})
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[settings.dtype])
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False).eval()
    return Backbone(model, tokenizer, shapes, "random", **find_abilities(model, shapes)._asdict())


class _Folded(Collator):
    """Folds token ids into a smaller vocabulary than the tokenizer's; the number of tokens stays."""

    def __call__(self, rows: Sequence[PromptRow]) -> TokenBatch:
        batch = super().__call__(rows)
        size = min(shape["vocab_size"] for shape in SHAPES.values())
        return batch._replace(prompt=batch.prompt % size, completions=batch.completions % size)
