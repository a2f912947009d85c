"""The RecBole models: they wire data, prompts, policy and objective together and hold no maths.

DynamicPO and its plain baselines are one class; properties/model/<Name>.yaml sets them apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from ..data.catalogue import Catalogue
from ..errors import DataError
from ..evaluation.scores import popularity_scores
from ..language_model.adapter_folder import LoraShape
from ..language_model.backbone import load_backbone
from ..language_model.packed import TokenBatch
from ..language_model.policy import Policy
from ..objectives.boundary import TANH_SCALE
from ..objectives.diagnostics import BETA_BINS, BETA_EDGE, Diagnostics
from ..objectives.losses import sft_loss
from ..objectives.preference import preference_loss
from ..scoring.collate import Collator
from ..scoring.prompts import load_templates
from ..scoring.scorer import Scorer
from ..scoring.token_budget import TokenBudget
from ..serving.folder import Card
from ..serving.packaging import portable_backbone
from ..settings import Settings, properties_folder
from .columns import CANDIDATE_IDS, REFERENCE_LOGPS, ROW_ID, SCORED
from .dataset import DynamicPODataset
from .evaluating import score_table
from .plan import check_prompts

logger = logging.getLogger(__name__)


class DynamicPO(SequentialRecommender):
    """Language-model recommender aligned with boundary negatives and dual-margin betas.

    Attributes:
        stage: ``sft`` or ``preference``; which loss ``calculate_loss`` returns.
        voice: who answers ``predict``; see ``speaking_as``.
        diagnostics: of the last preference batch.
        beta_counts: (BETA_BINS,) histogram of that batch's betas over beta0.
        tokens: of the last training batch, padding left out.
        pass_size: into how many parts it could have been split, and its padded tokens.

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
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
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
        self.budget = TokenBudget(self.settings.tokens_per_batch, self.settings.max_memory)
        self.scorer = Scorer(self.policy, self.collator, self.budget)
        self.stage = "preference"
        self.voice = "policy"
        self._voices: tuple[str, ...] = ()
        self._answers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.diagnostics: Diagnostics | None = None
        self.beta_counts = torch.zeros(BETA_BINS)
        self.tokens = 0
        self.pass_size = (1, 0)

    def _load_policy(self) -> Policy:
        settings = self.settings
        backbone = load_backbone(
            settings.backbone,
            dtype=settings.dtype,
            device=self.device,
            load_in_4bit=settings.load_in_4bit,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        shape = LoraShape.of(settings)
        policy = Policy(backbone, shape, settings.seed)
        if settings.sft_adapter:
            policy.load(Path(settings.sft_adapter))
        return policy

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Return the batch's mean loss of the present stage, 0-d."""
        return self.row_losses(interaction).mean()

    def row_losses(self, interaction: Interaction) -> Tensor:
        """Return (B,) losses of the present stage.

        ``interaction`` carries candidate ids and templates; the preference stage also needs the
        columns to score and, unless the objective has no reference, the reference's
        log-probabilities of all candidates.
        """
        if self.stage == "sft":
            target = interaction[self.POS_ITEM_ID].cpu().numpy()[:, None]
            batch, logps = self._logps(interaction, target)
            return sft_loss(logps[:, 0], batch.completion_length[:, 0].to(logps.device))
        columns = interaction[SCORED].cpu()
        ids = interaction[CANDIDATE_IDS].cpu().gather(1, columns)
        titles = self.dataset.title_numbers[ids]
        ids[:, 1:][titles[:, 1:] == titles[:, :1]] = 0  # another item of the positive's title is no negative
        present = ids > 0
        found = self._logps(interaction, ids.numpy())[1]
        # The scores of a row lie at its beginning, as many as it has; perhaps no row has all.
        place = (present.cumsum(dim=1) - 1).clamp(0, found.shape[1] - 1)
        logps = found.gather(1, place.to(found.device)).masked_fill(~present.to(found.device), 0.0)
        reference = None
        if self.settings.objective != "mppo":
            reference = interaction[REFERENCE_LOGPS].to(logps).gather(1, columns.to(logps.device))
        result = preference_loss(
            logps,
            reference,
            objective=self.settings.objective,
            dynamic=self.settings.dynamic,
            beta=self.settings.beta,
            margin=self.settings.margin,
            clusters=self.settings.num_clusters,
            mask=present[:, 1:].to(logps.device),
        )
        self.diagnostics = result.diagnostics
        relative = result.beta.detach().float() / self.settings.beta
        reach = TANH_SCALE + BETA_EDGE
        self.beta_counts = relative.histc(BETA_BINS, 1 - reach, 1 + reach)  # 0: no part of the loss
        return result.loss

    def _logps(self, interaction: Interaction, scored: Any) -> tuple[TokenBatch, Tensor]:
        """Return the batch of a training pass and its (B, most) log-probabilities.

        Args:
            interaction: B rows.
            scored: (B, any) items to score; 0 where there is none.
        """
        batch = self.collator(self.dataset.prompt_rows(interaction, scored))
        self.tokens, self.pass_size = batch.tokens(), self.policy.pass_size(batch)
        return batch, self.policy.logps(batch, self.budget.tokens)

    @torch.no_grad()
    def candidate_logps(self, interaction: Interaction) -> Tensor:
        """Return (B, C) log-probabilities of all candidates, -inf where a row has fewer."""
        candidates = interaction[CANDIDATE_IDS].cpu()
        if self.voice == "popularity":
            return popularity_scores(self.popularity[candidates], candidates > 0)
        present = candidates > 0
        found = self._scores(interaction, candidates)
        scores = torch.full(candidates.shape, -torch.inf, dtype=found.dtype)
        scores[present] = found[torch.isfinite(found)]
        return scores

    def card(self, made_by: dict[str, str]) -> Card:
        """Return the card of a recommender made of this model as it is; ``made_by``: model and stage."""
        backbone = self.policy.backbone
        return Card(
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
            max_length=self.collator.max_length,
            max_history=self.collator.max_history,
            num_candidates=self.settings.num_candidates,
            tokens_per_batch=self.settings.tokens_per_batch,
            made_by=made_by,
            popular_candidates=self.settings.popular_candidates,
        )

    def voices(self) -> dict[str, str]:
        """Return who is evaluated (see ``speaking_as``) and under which name, the final model last."""
        known = {}
        if self.settings.compare_stages:
            shown = portable_backbone(self.settings.backbone)
            known = {"popularity": "popularity", "backbone": f"{shown} zero-shot"}
            if self.policy.has_reference:
                known["reference"] = "after SFT"
        return {**known, "policy": f"after {type(self).__name__}"}

    @contextmanager
    def speaking_as(self, voice: str) -> Iterator[None]:
        """Answer in ``voice`` inside the block: ``policy``, ``reference``, ``backbone`` or ``popularity``."""
        self.voice = voice
        try:
            yield
        finally:
            self.voice = "policy"

    @contextmanager
    def scoring_together(self, voices: Sequence[str]) -> Iterator[None]:
        """Score for all ``voices`` at once inside the block, where each will be asked for the same rows.

        The answers to the first voice's question are kept until the others are asked.
        """
        self._voices = tuple(voices)
        try:
            yield
        finally:
            self._voices, self._answers = (), {}

    def _scores(self, interaction: Interaction, candidates: Tensor) -> Tensor:
        """Return (B, C) scores in the present voice, perhaps known since another voice was asked."""
        rows = tuple(interaction[ROW_ID].tolist())
        if (self.voice, rows) not in self._answers:
            voices = self._voices if self.voice in self._voices else (self.voice,)
            prompts = self.dataset.prompt_rows(interaction, candidates.numpy())
            found = self.scorer.in_voices(prompts, voices)
            self._answers.update({(voice, rows): scores for voice, scores in found.items()})
        return self._answers.pop((self.voice, rows))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return (B, item_num) scores: the candidates' log-probabilities, settled, -inf elsewhere."""
        return score_table(self.dataset, interaction, self.candidate_logps(interaction)).to(self.device)

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Return (rows,) scores of (history, item) pairs; the prompt shows the row's own candidates."""
        items = interaction[self.ITEM_ID].cpu()
        if self.voice == "popularity":
            return self.popularity[items].float().to(self.device)
        prompts = self.dataset.prompt_rows(interaction, items[:, None].numpy())
        return self.scorer(prompts, self.voice)[:, 0].to(self.device)

    def to(self, *args: Any, **kwargs: Any) -> DynamicPO:
        """Move the model; 4-bit weights stay where they were loaded."""
        return self if self.settings.load_in_4bit else super().to(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Return a stand-in: RecBole copies the model only to count its operations."""
        return _OperationCount(self)

    def __str__(self) -> str:
        trainable = sum(p.numel() for p in self.policy.trainable())
        return f"{type(self).__name__}(backbone={self.settings.backbone}, trainable parameters={trainable:,})"


class _OperationCount(nn.Module):
    """Reports the operations of scoring one row to RecBole's counter.

    The counter hooks every submodule, which a PEFT model refuses. This module has none: it states
    2 operations per weight and token, the usual estimate of a forward pass.
    """

    total_ops: Tensor  # made by the counter

    def __init__(self, model: DynamicPO) -> None:
        super().__init__()
        weights = sum(p.numel() for p in model.policy.parameters())
        self.operations = 2.0 * weights * model.collator.max_length

    def predict(self, interaction: Interaction) -> None:
        """Add one row's operations to the counter."""
        self.total_ops = self.total_ops + self.operations


class DMPO(DynamicPO):
    """Plain DMPO: all negatives, one beta."""


class MPPO(DynamicPO):
    """Plain MPPO: all negatives, one beta, no reference."""


class SDPO(DynamicPO):
    """Plain S-DPO: all negatives, one beta."""


class SFTRec(DynamicPO):
    """Supervised fine-tuning only."""
