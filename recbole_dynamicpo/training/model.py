"""The RecBole models: they wire data, prompts, policy and objective together and hold no maths.

DynamicPO and its plain baselines are one class; properties/model/<Name>.yaml sets them apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from ..data.catalogue import Catalogue
from ..dataset.columns import CANDIDATE_IDS
from ..dataset.dataset import DynamicPODataset
from ..errors import DataError
from ..evaluation.ranks import FITTED_COUNTS, WITHOUT_PRIORS
from ..evaluation.scores import popularity_scores
from ..hub import find_adapter
from ..language_model.adapter_folder import SCALARS_FILE, LoraShape, note_of_base
from ..language_model.backbone import load_backbone
from ..language_model.policy import Policy
from ..likelihoods.catalogue import CatalogueLikelihood
from ..likelihoods.extras import Extras
from ..likelihoods.losses import (
    LaidOut,
    lay_out_pairs,
    lay_out_positives,
    preference_losses,
    scored_pairs,
    sft_losses,
)
from ..likelihoods.vocabulary import VocabularyLikelihood
from ..objectives.boundary import TANH_SCALE
from ..objectives.diagnostics import BETA_BINS, BETA_EDGE, Diagnostics
from ..objectives.strategies import find_objective
from ..scoring.collate import Collator
from ..scoring.prompts import load_templates
from ..scoring.token_budget import TokenBudget
from ..serving.folder import Card
from ..serving.packaging import portable_backbone
from ..settings import Settings, properties_folder
from .answers import Answers
from .evaluating import score_table
from .plan import check_prompts

logger = logging.getLogger(__name__)


class DynamicPO(SequentialRecommender):
    """Language-model recommender aligned with boundary negatives and dual-margin betas.

    Attributes:
        stage: ``sft`` or ``preference``; which loss ``calculate_loss`` returns.
        voice: who answers ``predict``; see ``speaking_as``.
        final_voice: whose the run's model is.
        target_logps: (B,) of the items chosen of the last rows, among all titles, nats; None where the
            likelihood is the vocabulary's.
        diagnostics: of the last preference batch.
        beta_counts: (BETA_BINS,) histogram of that batch's betas over beta0.
        likelihood: what a title's log-probability is.
        objective: of the preference stage.
        extras: makes what it needs beside log-probabilities.
        answers: of evaluation rows in several voices.

    Raises:
        SettingsError, DataError, BackboneError, AdapterError: see the messages.
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config: Config, dataset: DynamicPODataset) -> None:
        super().__init__(config, dataset)
        if not isinstance(dataset, DynamicPODataset):
            raise DataError(
                f"{type(self).__name__}: got {type(dataset).__name__}, wanted the data set that "
                "recbole.data.create_dataset(config) makes for this model"
            )
        self.settings: Settings = dataset.settings
        torch.set_num_threads(self.settings.threads or torch.get_num_threads())
        self.dataset = dataset
        self.popularity = torch.from_numpy(dataset.popularity())
        known = dataset.catalogue
        self.catalogue = Catalogue(known.ids, known.titles, tuple(self.popularity[1:].tolist()))
        self.titles = dataset.titles
        self.policy = self._load_policy()
        limit, name = min((self.settings.max_length, "max_length"), self.policy.backbone.limit)
        if limit < self.settings.max_length:
            logger.warning(
                "max_length: got %d, but %s is %d, which holds", self.settings.max_length, name, limit
            )
        self.collator = Collator(
            self.policy.backbone.tokenizer,
            load_templates(self.settings.prompt, properties_folder() / "prompts"),
            max_length=limit,
            max_history=self.settings.max_history,
            limited_by=name,
        )
        check_prompts(dataset, self.collator)
        self.budget = TokenBudget.of(self.settings, self.policy.device)
        self.likelihood = self._make_likelihood()
        self._load_beside()
        self.objective = find_objective(self.settings.objective, vars(self.settings))
        self.extras = Extras(dataset, self.likelihood, self.objective)
        self.stage = "preference"
        self.voice, self.final_voice = "policy", "policy"
        self.target_logps: Tensor | None = None
        self.answers = Answers(self.likelihood, dataset)
        self.diagnostics: Diagnostics | None = None
        self.beta_counts = torch.zeros(BETA_BINS)

    def _load_policy(self) -> Policy:
        settings = self.settings
        backbone = load_backbone(
            settings.backbone,
            dtype=settings.dtype,
            device=self.device,
            load_in_4bit=settings.load_in_4bit,
            gradient_checkpointing=settings.gradient_checkpointing,
            compiled=settings.compile_layers,
        )
        policy = Policy(backbone, LoraShape.of(settings), settings.seed)
        if settings.sft_adapter:
            folder = find_adapter(settings.sft_adapter)
            policy.load(folder)
            if note := note_of_base(folder, backbone.name):
                logger.warning("sft_adapter: %s", note)
        return policy

    def _make_likelihood(self) -> VocabularyLikelihood | CatalogueLikelihood:
        parts = (self.dataset, self.policy, self.collator, self.budget)
        if self.settings.likelihood == "vocabulary":
            return VocabularyLikelihood(*parts)
        return CatalogueLikelihood(*parts, self.settings)

    def _load_beside(self) -> None:
        """Take over what was trained beside the SFT adapter, where its likelihood had such numbers."""
        path = self.settings.sft_adapter
        if path and self.settings.likelihood == "catalogue" and (find_adapter(path) / SCALARS_FILE).is_file():
            self.policy.load(find_adapter(path))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the batch's mean loss of the present stage, 0-d."""
        return self.row_losses(interaction).mean()

    def row_losses(self, interaction: Interaction) -> Tensor:
        """Return the losses of the present stage: (B,) of rows, or (P,) of all positions of windows.

        Rows carry candidate ids and templates, and for the preference stage the columns to score; windows
        carry negatives then. Unless the objective has no reference, both have its log-probabilities.
        """
        return self.losses_of(self.lay_out(interaction))

    def lay_out(self, interaction: Interaction) -> LaidOut:
        """Return the pass that ``losses_of`` takes; see ``row_losses``. It asks nothing of the device."""
        if self.stage == "sft":
            return lay_out_positives(self.likelihood, interaction, self.POS_ITEM_ID)
        titles, asks = self.dataset.title_numbers, self.objective.needs_reference
        return lay_out_pairs(self.likelihood, interaction, titles, self.extras, asks=asks)

    def losses_of(self, laid_out: LaidOut) -> Tensor:
        """Return the losses of a pass; see ``row_losses``."""
        if self.stage == "sft":
            return sft_losses(self.likelihood, laid_out)
        result = preference_losses(scored_pairs(self.likelihood, laid_out), self.objective, self.settings)
        self.diagnostics = result.diagnostics
        bounds = 1 - TANH_SCALE - BETA_EDGE, 1 + TANH_SCALE + BETA_EDGE  # a beta of 0: no part of the loss
        self.beta_counts = (result.beta.detach().float() / self.settings.beta).histc(BETA_BINS, *bounds)
        return result.loss

    @torch.no_grad()
    def candidate_logps(self, interaction: Interaction) -> Tensor:
        """Return (B, C) log-probabilities of all candidates, -inf where a row has fewer."""
        candidates = interaction[CANDIDATE_IDS].cpu()
        self.target_logps = None
        if self.voice == "popularity":
            return popularity_scores(self.popularity[candidates], candidates > 0)
        scores = self.answers.candidates(interaction, self.voice)
        if self.settings.likelihood == "catalogue":
            places = (candidates == interaction[self.ITEM_ID].cpu()[:, None]).int().argmax(dim=1)
            self.target_logps = scores.gather(1, places[:, None])[:, 0]
        return scores

    def card(self, made_by: dict[str, str]) -> Card:
        """Return the card of a recommender made of this model as it is; ``made_by``: model and stage."""
        backbone, dataset = self.policy.backbone, str(self.dataset.dataset_name)
        return Card(
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
            max_length=self.collator.max_length,
            max_history=self.collator.max_history,
            num_candidates=self.settings.num_candidates,
            tokens_per_batch=self.settings.tokens_per_batch,
            made_by={**made_by, "dataset": dataset},
            popular_candidates=self.settings.popular_candidates,
            likelihood=self.settings.likelihood,
            priors=list(self.settings.catalogue_prior),
            trie_sha256=self.likelihood.digest,
            quantization=backbone.quantization,
            first_stage=self.settings.first_stage,
        )

    def voices(self) -> dict[str, str]:
        """Return who is evaluated (see ``speaking_as``) and under which name, the run's model last."""
        own = {"reference": "after SFT", "policy": f"after {type(self).__name__}"}
        known = {}
        if self.settings.compare_stages:
            shown = portable_backbone(self.settings.backbone)
            known = {"popularity": "popularity", "backbone": f"{shown} zero-shot"}
            if self.settings.catalogue_prior:
                known["policy counts"] = FITTED_COUNTS
                known["policy alone"] = f"{own['policy']}{WITHOUT_PRIORS}"
            others = own if self.policy.has_reference else {"policy": own["policy"]}
            known |= {voice: name for voice, name in others.items() if voice != self.final_voice}
        return {**known, self.final_voice: own[self.final_voice]}

    def judged(self) -> dict[str, str]:
        """Return who is validated and under which name: fitted priors, if any, and the policy."""
        counts = {"policy counts": FITTED_COUNTS} if self.settings.catalogue_prior else {}
        return {**counts, "policy": "policy"}

    @contextmanager
    def speaking_as(self, voice: str) -> Iterator[None]:
        """Answer in ``voice`` inside the block: ``policy``, ``reference``, ``backbone`` or ``popularity``."""
        self.voice = voice
        try:
            yield
        finally:
            self.voice = "policy"

    def title_scores(self, interaction: Interaction) -> Tensor:
        """Return (B, Y) log-probabilities of all distinct titles in the present voice, nats."""
        return self.answers.titles(interaction, self.voice)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return (B, item_num) scores: the candidates' log-probabilities, settled, -inf elsewhere."""
        return score_table(self.dataset, interaction, self.candidate_logps(interaction)).to(self.device)

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Return (rows,) scores of (history, item) pairs; the prompt shows the row's own candidates."""
        items = interaction[self.ITEM_ID].cpu()
        if self.voice == "popularity":
            return self.popularity[items].float().to(self.device)
        found = self.likelihood.in_voices(interaction, items[:, None].numpy(), [self.voice])
        return found[self.voice][:, 0].to(self.device)

    def to(self, *args: Any, **kwargs: Any) -> DynamicPO:
        """Move the model; 4-bit weights stay where they were loaded."""
        return self if self.settings.load_in_4bit else super().to(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Return a stand-in: RecBole copies the model only to count its operations."""
        return OperationCount(self)

    def __str__(self) -> str:
        trainable = sum(p.numel() for p in self.policy.trainable())
        return f"{type(self).__name__}(backbone={self.settings.backbone}, trainable parameters={trainable:,})"


class DMPO(DynamicPO):
    """Plain DMPO: all negatives, one beta."""


class MPPO(DynamicPO):
    """Plain MPPO: all negatives, one beta, no reference."""


class SDPO(DynamicPO):
    """Plain S-DPO: all negatives, one beta."""


class SFTRec(DynamicPO):
    """Supervised fine-tuning only."""


class OperationCount(nn.Module):
    """Reports the operations of scoring one row to RecBole's counter.

    The counter hooks every submodule, which a PEFT model refuses. This module has none: it states
    2 operations per weight and token, the usual estimate of a forward pass.
    """

    total_ops: Tensor  # made by the counter

    def __init__(self, model: DynamicPO) -> None:
        super().__init__()
        self.operations = 2.0 * model.collator.max_length * sum(p.numel() for p in model.policy.parameters())

    def predict(self, interaction: Interaction) -> None:
        """Add one row's operations to the counter."""
        self.total_ops = self.total_ops + self.operations
