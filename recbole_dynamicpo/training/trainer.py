"""RecBole trainer of the two stages: sft, then preference.

Differs from RecBole's Trainer where a language model needs it: only the adapter is optimized, checkpoints are
adapter folders and no pickles, each stage has its own best score, a killed run goes on along its trajectory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_local_time

from ..dataset.sampling import row_generator
from ..interrupt import StopRequest, stop_request
from ..names import FROM_POLICY, STAGES
from ..parallel import join
from ..serving.folder import RECOMMENDER_FILE
from ..serving.recommender import save_recommender
from ..steps.ahead import Ahead, Ready
from ..steps.numbers import ReadLater
from ..steps.step import take_step
from ..storage import locked, remove_partial
from ..tracking.live import NoTracking, Tracking
from ..tracking.run_folder import begin_run, write_identity
from .checkpoint import CHECKPOINT, Progress, has_checkpoint, load_checkpoint, resume_run, save_checkpoint
from .choice import choose_final, report, validate
from .contestants import rank_all
from .dense_rows import DenseRows
from .evaluating import RankingTrainer, rows_to_rank
from .model import DynamicPO
from .plan import StagePlan, plan_stages
from .recording import OnProgress, Recorder, gather, going_on
from .reference import reference_logps
from .rows import ListedRows, StageRows

logger = logging.getLogger(__name__)


class DynamicPOTrainer(RankingTrainer):
    """Trains and evaluates the models of this package."""

    progress: Progress
    rows: StageRows

    def __init__(
        self,
        config: Any,
        model: DynamicPO,
        *,
        run_folder: Path | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        """Prepare the folder of the run.

        Args:
            config: RecBole's configuration.
            model: to train.
            run_folder: where everything goes; it is resumed if it holds a checkpoint, and the caller keeps
                others out of it and records the run. None: the folder of setting ``resume``, else a new one
                below ``checkpoint_dir``, locked while training.
            tracking: of the run's folder; None: nothing follows it.
        """
        super().__init__(config, model)
        self.processes = join()
        self.settings = model.settings
        self.plans = plan_stages(self.settings)
        resume, whole = self.settings.resume, run_folder is None
        if run_folder is None:
            new = Path(self.checkpoint_dir), f"{config['model']}-{config['dataset']}-{get_local_time()}"
            run_folder = Path(resume) if resume else self.processes.decide(lambda: begin_run(*new))
        self.run_folder = folder = run_folder
        self.resumes = self.processes.decide(lambda: has_checkpoint(folder) or resume is not None)
        self.adapters = {stage: run_folder / stage for stage in STAGES}
        self.saved_model_file = str(self.adapters[self.final_stage])
        where = (tracking or NoTracking(), self.settings.mlflow_tracking_uri)
        self.recorder = Recorder(run_folder, *where, going_on(config, run_folder) if whole else None)
        self.ingredients = gather(config, self.settings)
        self.stop = StopRequest()
        self.on_progress: OnProgress = lambda stage, done, total: None
        self.progress, self.later = Progress(), ReadLater("", run_folder, lambda step, values: None)
        self.chosen = self.final_stage  # whose adapter is the run's model, once evaluated

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
        held = self.recorder.whole and self.processes.first
        alone = locked(self.run_folder, wait=False) if held else nullcontext()
        # RecBole's SINE module turns anomaly detection on for the whole process when it is imported.
        with alone, stop_request() as self.stop, torch.autograd.set_detect_anomaly(False):
            self._run_stages()
        score = self.progress.best_score
        return (self.best_valid_score if score is None else score), self.progress.best_result

    def _run_stages(self) -> None:
        """Run the stages that are left."""
        first, decided_by, resumed = self.processes.first, self.ingredients.upto("preference"), None
        for name in (CHECKPOINT, *STAGES) if first else ():
            remove_partial(self.run_folder / name)
        if self.resumes:
            resumed = resume_run(self.run_folder, decided_by, self.recorder.journal if first else None)
        trains_sft = bool(self.plans) and self.plans[0].name == "sft"
        if not trains_sft and not (self.adapters["sft"] / RECOMMENDER_FILE).is_file():
            self._save_adapter("sft")
        self.recorder.begin(self.config, self.model, self.ingredients)
        for plan in self.plans:
            if resumed is not None and plan.number < STAGES.index(resumed.stage):
                self.model.policy.load(self.adapters[plan.name])
                continue
            goes_on = resumed is not None and plan.name == resumed.stage
            with self.recorder.stage(plan.name, partial(self._steps_of, plan.name)):
                self._run_stage(plan, resumed if goes_on else None)

    def _steps_of(self, stage: str) -> int:
        return self.progress.step if stage == self.progress.stage else 0

    def _stop_if(self, asked: bool) -> None:
        """End the run, as each process does at the same place, if one of them was asked to."""
        if asked:
            self.stop.received = True
            self.stop.end_run(self.model.stage, self.progress.step, self.recorder.goes_on)

    def _run_stage(self, plan: StagePlan, resumed: Progress | None) -> None:
        """Train one stage from its start, or from a checkpoint, and load its best adapter."""
        model, policy = self.model, self.model.policy
        rows = self.rows = (DenseRows if self.settings.positions == "all" else ListedRows)(model, plan)
        model.stage = plan.name
        if plan.name == "preference":
            policy.freeze_reference()
        self.optimizer = self._build_optimizer(learning_rate=plan.learning_rate)
        self.progress = resumed or Progress(stage=plan.name, seconds=self.progress.seconds)
        if resumed is not None:
            rows.restore(load_checkpoint(self.run_folder / CHECKPOINT, policy, self.optimizer))
            model.budget.lower(resumed.tokens_per_batch)
        else:
            if plan is self.plans[0] and self.processes.first:
                write_identity(self.run_folder, self.ingredients.upto("preference"))
            self._checkpoint()
        self._train(plan)
        if self.progress.best_score is None:
            self._save_adapter(plan.name)
        self.processes.wait()
        policy.load(self.adapters[plan.name])

    def _train(self, plan: StagePlan) -> None:
        """Take the steps that are left of a stage."""
        if self.progress.stopped:
            return
        count, step = self.rows.count, self.progress.step
        per_epoch, shows = plan.steps_per_epoch(count), self.show_progress and self.processes.first
        total = plan.epochs * per_epoch
        shown = self.recorder.steps(plan, count, step, self.on_progress, shows=shows)
        with Ahead(self.model) as self.ahead, shown as say:
            self.later = ReadLater(plan.name, self.run_folder / CHECKPOINT, say)
            for epoch in range(step // per_epoch, plan.epochs):
                done = self.progress.step - epoch * per_epoch
                if plan.name == "preference":
                    self._make_ready(epoch, shows)
                for ready in self.ahead.steps(self.rows.batches(epoch, done)):
                    with self.progress.timed(plan.name):
                        asked = self._step(plan, ready, total)
                    if self._after_step(plan, per_epoch, asked):
                        return

    def _make_ready(self, epoch: int, shows: bool) -> None:
        """Give the rows of an epoch of the preference stage what stays as it is within it."""
        stop = partial(getattr, self.stop, "received")
        if self.settings.negatives in FROM_POLICY:
            with self.progress.timed("negatives"):
                self._stop_if(not self.rows.redraw(epoch, stop))
        if self.model.objective.needs_reference:
            with self.progress.timed("reference"):
                kept = partial(reference_logps, self.model, self.ingredients, shows, stop)
                self._stop_if(not self.rows.add_reference(epoch, kept))

    def _step(self, plan: StagePlan, ready: Ready, total: int) -> bool:
        """Take one optimizer step, read the numbers of the one before, and return whether to end.

        Before an error of a step that was not taken a checkpoint is written.

        Raises:
            NumericsError: loss or gradient of the step before are not finite; no checkpoint holds that step.
        """
        step = self.progress.step
        draw = row_generator(self.settings.seed, 19, plan.number, step)
        self.model.policy.seed_dropout(int(draw.integers(1 << 62)))  # by place, so that resuming replays it
        rate = plan.learning_rate_at(step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        how = (self.clip_grad_norm, self.stop, self._checkpoint)
        taken = take_step(self.model, self.optimizer, ready, *how)
        self.progress.step += 1
        self.later.took(self.progress.step, taken.numbers, {"learning_rate": rate})
        return taken.stop or (self.processes.alone and self.stop.received)

    def _after_step(self, plan: StagePlan, per_epoch: int, asked: bool) -> bool:
        """Validate and write a checkpoint where they are due; return whether to stop early."""
        step, every = self.progress.step, self.settings.validate_every
        epoch, epoch_ends = step // per_epoch, step % per_epoch == 0
        if every:
            due = step % every == 0 or step == plan.epochs * per_epoch
        else:
            due = self.config["eval_step"] > 0 and epoch_ends and epoch % self.config["eval_step"] == 0
        if due or epoch_ends:
            self.later.settle()
            self.ahead.rest()
            self.rows.settle()
        if due and self.valid_data:
            self.progress.stopped = self._validate(plan, epoch)
            asked = self.processes.agree(asked or self.stop.received)
        if due or step % self.settings.checkpoint_every == 0 or epoch_ends or asked:
            self._checkpoint()
        self._stop_if(asked)
        return self.progress.stopped

    def _validate(self, plan: StagePlan, epoch: int) -> bool:
        """Validate, keep the adapter if it is its stage's best, and return whether to stop."""
        return validate(self, plan.name, epoch)

    def _checkpoint(self) -> None:
        self.later.settle()
        if self.processes.first:
            self.progress.tokens_per_batch = self.model.budget.tokens
            kept = (self.optimizer, self.progress, self.rows.drawn())
            save_checkpoint(self.run_folder / CHECKPOINT, self.model.policy, *kept)

    def _save_adapter(self, stage: str) -> None:
        if self.processes.first:
            model = self.model
            card = model.card({"stage": stage, "model": self.config["model"]})
            parts = (model.collator.templates, model.catalogue, card, model.likelihood.priors)
            save_recommender(self.adapters[stage], model.policy, *parts)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Build RecBole's optimizer of setting ``learner`` over the adapter alone."""
        kwargs.setdefault("params", self.model.policy.trainable())
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        return optimizer

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Return RecBole's metrics of the final model, and leave the tables of all.

        Args:
            eval_data: a RecBole evaluation loader.
            load_best_model: load the final adapter, or that in the folder ``model_file``, first.
            show_progress: show RecBole's progress bar.

        Raises:
            AdapterError: the folder to load is not an adapter for this backbone.
        """
        if not eval_data:
            return None
        if load_best_model:
            self.model.policy.load(Path(model_file or self.adapters[self.final_stage]))
        rows, model = rows_to_rank(eval_data, self.settings.seed), self.model
        self.chosen = choose_final(self.adapters, self.final_stage)
        model.final_voice = "reference" if model.policy.has_reference and self.chosen == "sft" else "policy"
        with self.recorder.stage("evaluate", lambda: 0):
            with self.progress.timed("evaluation"):
                found = rank_all(self, rows, show_progress)
            if found:
                report(self, found)
        self.recorder.publish()
        return self.processes.decide(lambda: [*next(iter(found.values())).values()][-1].result)
