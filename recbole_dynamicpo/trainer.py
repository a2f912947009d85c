"""RecBole trainer of the two stages: sft, then preference.

Differs from RecBole's Trainer where a language model needs it: only the adapter is optimized, with
accumulation, warm-up and a cosine; checkpoints are adapter folders, not pickles; each stage has its
own best score; a killed run goes on from its last checkpoint along the same trajectory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, dict2str, early_stopping, get_local_time
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .batches import Diagnostics
from .checkpoint import Progress, load_checkpoint, load_progress, save_checkpoint
from .dataset import CANDIDATE_IDS, ROW_ID, SCORED, StageDataLoader, scored_columns
from .embedded import cache_folder
from .errors import NumericsError, SettingsError
from .evaluation import RankingCollector, RankingMixin
from .journal import Journal
from .model import REFERENCE_LOGPS, DynamicPO
from .objectives import merge_diagnostics
from .recommender import save_recommender
from .reference import ReferenceCache, row_key
from .run_folder import check_identity, identity, new_run_folder, write_identity
from .sampling import epoch_order, row_generator
from .stages import STAGES, StagePlan, plan_stages
from .storage import sha256_json

logger = logging.getLogger(__name__)


class DynamicPOTrainer(RankingMixin, Trainer):
    """Trains and evaluates the models of this package."""

    def __init__(self, config: Any, model: DynamicPO) -> None:
        super().__init__(config, model)
        self.settings = model.settings
        self.eval_collector = RankingCollector(config)
        self.plans = plan_stages(self.settings)
        name = f"{config['model']}-{config['dataset']}-{get_local_time()}"
        resume = self.settings.resume
        self.run_folder = Path(resume) if resume else new_run_folder(Path(self.checkpoint_dir), name)
        self.saved_model_file = str(self.run_folder / self.final_stage)
        self.journal = Journal(self.run_folder / "metrics.jsonl")
        self.progress = Progress()
        self.seconds: dict[str, float] = {}

    @property
    def final_stage(self) -> str:
        """Name of the stage whose adapter is the result."""
        return self.plans[-1].name if self.plans else "sft"

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, Any]:
        """Run the stages and leave the best adapter of the last one in the model.

        Returns:
            The best validation score and RecBole's metrics of the last stage.
        """
        self.eval_collector.data_collect(train_data)
        self.valid_data, self.show_progress = valid_data, show_progress
        self.callback, self.dataset = callback_fn, train_data._dataset
        resumed = self._resume() if self.settings.resume else None
        if not self.plans or self.plans[0].name == "preference":
            self._save_adapter("sft")
        for plan in self.plans:
            if resumed is not None and plan.number < STAGES.index(resumed.stage):
                self.model.policy.load(self.run_folder / plan.name)
                continue
            at = resumed if resumed is not None and plan.name == resumed.stage else None
            # RecBole's SINE module turns anomaly detection on for the whole process when it is imported.
            with torch.autograd.set_detect_anomaly(False):
                self._run_stage(plan, at)
        score = self.progress.best_score
        return (self.best_valid_score if score is None else score), self.progress.best_result

    def _identity(self) -> dict[str, Any]:
        """Return what decides the trajectory of the run."""
        backbone = self.model.policy.backbone
        targets = self.dataset.built["train"].inter_feat[self.model.ITEM_ID]
        return identity(
            self.settings,
            model=self.config["model"],
            dataset=self.config["dataset"],
            data=sha256_json(targets.tolist()),
            dtype=str(backbone.dtype),
            backbone=backbone.fingerprint,
            learner=self.learner,
            clip_grad_norm=self.clip_grad_norm,
            valid_metric=self.valid_metric,
        )

    def _resume(self) -> Progress:
        """Check that the run folder belongs to these settings and return its progress.

        Raises:
            CheckpointError: no checkpoint, or settings or data differ; names each difference.
        """
        progress = load_progress(self.run_folder / "checkpoint")
        check_identity(self.run_folder, self._identity())
        self.journal.rewind(progress.stage, progress.step, STAGES[: STAGES.index(progress.stage)])
        logger.info("resuming %s at step %d of stage %s", self.run_folder, progress.step, progress.stage)
        return progress

    def _run_stage(self, plan: StagePlan, resumed: Progress | None) -> None:
        """Train one stage from its start, or from a checkpoint, and load its best adapter."""
        rows = self._stage_rows(plan)
        policy = self.model.policy
        self.model.stage = plan.name
        if plan.name == "preference":
            policy.freeze_reference()
        if plan.name == "preference" and self.settings.objective != "mppo":
            rows.update(Interaction({REFERENCE_LOGPS: self._reference_logps(rows)}))
        self.optimizer = self._build_optimizer(learning_rate=plan.learning_rate)
        self.progress = resumed or Progress(stage=plan.name, seconds=self.progress.seconds)
        self.seconds = self.progress.seconds
        if resumed is not None:
            load_checkpoint(self.run_folder / "checkpoint", policy, self.optimizer)
        else:
            if plan is self.plans[0]:
                write_identity(self.run_folder, self._identity())
            self._checkpoint()
        self._train(plan, rows)
        if self.progress.best_score is None:
            self._save_adapter(plan.name)
        policy.load(self.run_folder / plan.name)

    def _train(self, plan: StagePlan, rows: Interaction) -> None:
        """Take the steps that are left of a stage."""
        if self.progress.stopped:
            return
        per_epoch = plan.steps_per_epoch(len(rows[ROW_ID]))
        total = plan.epochs * per_epoch
        lengths = self._text_lengths(rows)
        bar = tqdm(
            total=total, initial=self.progress.step, desc=plan.name, disable=not self.show_progress,
            dynamic_ncols=True, unit="step",
        )  # fmt: skip
        with bar:
            for epoch in range(self.progress.step // per_epoch, plan.epochs):
                for batches in self._steps(plan, rows, lengths, epoch):
                    started = time.perf_counter()
                    values = self._step(plan, batches, total)
                    spent = self.seconds.get(plan.name, 0.0) + time.perf_counter() - started
                    self.seconds[plan.name] = spent
                    self.progress.step += 1
                    self.journal.write(plan.name, self.progress.step, "train", values)
                    bar.update()
                    bar.set_postfix_str(_summary(values))
                    if self._after_step(plan, per_epoch):
                        return

    def _steps(
        self, plan: StagePlan, rows: Interaction, lengths: np.ndarray[Any, Any], epoch: int
    ) -> Iterator[list[Interaction]]:
        """Yield the batches of each optimizer step of an epoch that is not yet done."""
        done = self.progress.step - epoch * plan.steps_per_epoch(len(lengths))
        order = epoch_order(lengths, plan.batch_size, self.settings.seed, plan.number, epoch)
        if plan.name == "preference":
            columns = scored_columns(
                rows, self.model.ITEM_ID, self.settings.num_negatives, self.settings.seed, epoch
            )
            rows.update(Interaction({SCORED: columns}))
        left = order[done * plan.rows_per_step :]
        loader = StageDataLoader(self.config, self.dataset, rows, left, plan.batch_size)
        batches: list[Interaction] = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == plan.accumulation:
                yield batches
                batches = []
        if batches:
            yield batches

    def _step(self, plan: StagePlan, batches: list[Interaction], total: int) -> dict[str, float]:
        """Take one optimizer step and return its numbers, read from the device once.

        Raises:
            NumericsError: the loss or the gradient is not finite; the weights stay as they were.
        """
        self.model.train()
        step = self.progress.step
        draw = row_generator(self.settings.seed, 19, plan.number, step)
        torch.manual_seed(int(draw.integers(1 << 62)))  # dropout; drawn by place, so resuming replays it
        rate = plan.learning_rate_at(step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        count = sum(len(batch) for batch in batches)
        losses, diagnostics = [], []
        for batch in batches:
            loss = self.model.row_losses(batch).sum() / count
            loss.backward()
            losses.append(loss.detach())
            if plan.name == "preference":
                diagnostics.append(self.model.diagnostics)
        limit = self.clip_grad_norm or {"max_norm": float("inf")}
        norm = clip_grad_norm_(self.model.policy.trainable(), **limit)
        merged = merge_diagnostics(diagnostics, [len(batch) for batch in batches]) if diagnostics else ()
        loss_value, norm_value, *rest = torch.stack([torch.stack(losses).sum(), norm, *merged]).tolist()
        if not np.isfinite([loss_value, norm_value]).all():
            rows = sorted(int(row) for batch in batches for row in batch[ROW_ID])
            raise NumericsError(
                f"stage {plan.name}, step {step + 1}: loss {loss_value}, gradient norm {norm_value} in rows "
                f"{rows}; stopped, the last good checkpoint is in {self.run_folder / 'checkpoint'}"
            )
        self.optimizer.step()
        values = {"loss": loss_value, "grad_norm": norm_value, "learning_rate": rate, "rows": count}
        return {**values, **dict(zip(Diagnostics._fields, rest, strict=False))}

    def _after_step(self, plan: StagePlan, per_epoch: int) -> bool:
        """Validate and write a checkpoint where they are due; return whether to stop early."""
        step, every = self.progress.step, self.settings.validate_every
        epoch_ends = step % per_epoch == 0
        epoch = step // per_epoch
        if every:
            due = step % every == 0 or step == plan.epochs * per_epoch
        else:
            due = self.config["eval_step"] > 0 and epoch_ends and epoch % self.config["eval_step"] == 0
        if due and self.valid_data:
            self.progress.stopped = self._validate(plan, epoch)
        if due or step % self.settings.checkpoint_every == 0 or epoch_ends:
            self._checkpoint()
        return self.progress.stopped

    def _validate(self, plan: StagePlan, epoch: int) -> bool:
        """Validate, keep the adapter if it is the best of its stage, and return whether to stop."""
        started = time.perf_counter()
        with self.validating():
            found = self.evaluate(self.valid_data, load_best_model=False, show_progress=False)
        result = {name: float(value) for name, value in found.items()}  # some are numpy numbers
        score = float(calculate_valid_score(result, self.valid_metric))
        best = self.progress.best_score
        worst = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_score, self.progress.worse, stop, better = early_stopping(
            score, worst if best is None else best, self.progress.worse,
            max_step=self.settings.stopping_step, bigger=self.valid_metric_bigger,
        )  # fmt: skip
        if better:
            self.progress.best_score, self.progress.best_result = score, result
            self._save_adapter(plan.name)
        self.journal.write(plan.name, self.progress.step, "valid", result)
        self.seconds["validation"] = self.seconds.get("validation", 0.0) + time.perf_counter() - started
        logger.info("%s step %d: valid %s", plan.name, self.progress.step, dict2str(result))
        if self.callback:
            self.callback(epoch, score)
        return bool(stop)

    def _checkpoint(self) -> None:
        save_checkpoint(self.run_folder / "checkpoint", self.model.policy, self.optimizer, self.progress)

    def _save_adapter(self, stage: str) -> None:
        """Write the policy as a folder that ``load_recommender`` understands."""
        save_recommender(self.run_folder / stage, self.model, {"stage": stage, "model": self.config["model"]})

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Build RecBole's optimizer of setting ``learner`` over the adapter alone."""
        kwargs.setdefault("params", self.model.policy.trainable())
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        return optimizer

    def _stage_rows(self, plan: StagePlan) -> Interaction:
        rows = self.dataset.stage_rows(plan.rows, plan.skip)
        count = len(rows[ROW_ID])
        if not count:
            raise SettingsError(f"stage {plan.name}: the data set has no training rows")
        logger.info(
            "stage %s: %d of %d training rows, %d epochs, %d rows a step", plan.name, count,
            len(self.dataset.built["train"].inter_feat), plan.epochs, plan.rows_per_step,
        )  # fmt: skip
        return rows

    def _text_lengths(self, rows: Interaction) -> np.ndarray[Any, Any]:
        """Return (n,) characters of the titles in each row's prompt."""
        characters = np.array([len(title) for title in self.model.titles])
        shown = characters[rows[CANDIDATE_IDS].numpy()].sum(axis=1)
        most = self.settings.max_history
        shown += np.array([characters[items[-most:]].sum() for items in self.dataset.history(rows)])
        return np.asarray(shown)

    def _reference_logps(self, rows: Interaction) -> torch.Tensor:
        """Return (n, C) reference log-probabilities of all candidates, from the cache where known."""
        model, policy = self.model, self.model.policy
        key = sha256_json([
            policy.backbone.fingerprint, policy.digest(), str(policy.backbone.dtype),
            policy.backbone.shares_prompt, self.settings.load_in_4bit,
        ])  # fmt: skip
        cache = ReferenceCache(cache_folder() / "reference" / key[:24])
        prompts = self.dataset.prompt_rows(rows, rows[CANDIDATE_IDS].numpy())
        keys = [row_key(model.collator.texts(row)) for row in prompts]
        started = time.perf_counter()

        def score(indices: list[int]) -> torch.Tensor:
            model.voice = "reference"
            try:
                logps: torch.Tensor = model.candidate_logps(rows[indices])
            finally:
                model.voice = "policy"
            return logps

        with tqdm(total=len(keys), desc="reference", disable=not self.show_progress, unit="row") as bar:
            table, computed = cache.complete(keys, score, bar.update)
        self.seconds["reference"] = time.perf_counter() - started
        logger.info("reference: %d rows computed, %d from %s", computed, len(keys) - computed, cache.folder)
        return table


def _summary(values: dict[str, float]) -> str:
    """Return what the progress bar shows."""
    text = f"loss {values['loss']:.3f}"
    if "violation_rate" in values:
        text += f", violations {values['violation_rate']:.2f}, wins {values['reward_win_rate']:.2f}"
    return text
