"""Stages, validation, faults in training, and RecBole's evaluation modes, on the toy data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dynamicpo.errors import AdapterError, NumericsError, SettingsError
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.host.config import plain_config
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.training.evaluating import Ranked
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.trainer import DynamicPOTrainer

from ..helpers.broken_losses import break_losses


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {**toy_settings, "compare_stages": False}


def folder_of(settings: dict[str, Any]) -> Path:
    (folder,) = Path(settings["checkpoint_dir"]).iterdir()
    return folder


def entries(settings: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [e for e in Journal(folder_of(settings) / "metrics.jsonl").entries() if e["kind"] == kind]


def test_policy_equals_reference_at_the_first_preference_step(settings: dict[str, Any]) -> None:
    """Then every log-ratio is 0: plain DMPO's loss is log 2, plain S-DPO's log(1 + K)."""
    run("DMPO", "toy", overrides=settings)
    first = next(e for e in entries(settings, "train") if e["stage"] == "preference")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    other = {**settings, "checkpoint_dir": settings["checkpoint_dir"] + "2"}
    run("SDPO", "toy", overrides=other)
    first = next(e for e in entries(other, "train") if e["stage"] == "preference")
    assert first["loss"] == pytest.approx(np.log(1 + settings["num_negatives"]), abs=1e-5)


def test_training_lowers_the_loss(settings: dict[str, Any]) -> None:
    run("DMPO", "toy", overrides={**settings, "sft_epochs": 4, "epochs": 4})
    for stage in ("sft", "preference"):
        losses = [e["loss"] for e in entries(settings, "train") if e["stage"] == stage]
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_accumulation_takes_the_same_step_as_one_large_batch(settings: dict[str, Any]) -> None:
    whole = {**settings, "sft_batch_size": 4, "sft_accumulation_steps": 1, "epochs": 0, "sft_rows": 4}
    parts = {**whole, "sft_batch_size": 2, "sft_accumulation_steps": 2, "checkpoint_dir": "saved2"}
    for own in (whole, parts):
        run("SFTRec", "toy", overrides=own)
    (one,), (two,) = (entries(own, "train") for own in (whole, parts))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_the_adapter_of_the_best_validation_is_kept(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 0.1, 0.3, 0.2 in each stage: the second epoch's adapter is the result."""
    scores = {"sft": iter((0.1, 0.3, 0.2)), "preference": iter((0.1, 0.3, 0.2))}
    kept: list[tuple[str, int]] = []
    rank_rows, save = DynamicPOTrainer.rank_rows, DynamicPOTrainer._save_adapter

    def scored(self: DynamicPOTrainer, rows: Any, *more: Any) -> Ranked:
        found = rank_rows(self, rows, *more)
        if rows is not self.valid_data:
            return found
        return found._replace(result={self.valid_metric: next(scores[self.progress.stage])})

    def noted(self: DynamicPOTrainer, stage: str) -> None:
        kept.append((stage, self.progress.step))
        save(self, stage)

    monkeypatch.setattr(DynamicPOTrainer, "rank_rows", scored)
    monkeypatch.setattr(DynamicPOTrainer, "_save_adapter", noted)
    run("DynamicPO", "toy", overrides={**settings, "sft_epochs": 3, "epochs": 3})
    assert kept == [("sft", 3), ("sft", 6), ("preference", 3), ("preference", 6)]


def test_validation_each_n_steps_and_at_the_end_of_a_stage(settings: dict[str, Any]) -> None:
    """Two epochs of 3 steps, every 4 steps: after step 4 and after the last, 6."""
    run("SFTRec", "toy", overrides={**settings, "sft_epochs": 2, "validate_every": 4})
    assert [e["step"] for e in entries(settings, "valid")] == [4, 6]


def test_early_stopping_ends_a_stage_only(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rank_rows = DynamicPOTrainer.rank_rows

    def falling(self: DynamicPOTrainer, rows: Any, *more: Any) -> Ranked:
        found = rank_rows(self, rows, *more)
        return found._replace(result={self.valid_metric: 1.0 / max(1, self.progress.step)})

    monkeypatch.setattr(DynamicPOTrainer, "rank_rows", falling)
    run("DynamicPO", "toy", overrides={**settings, "sft_epochs": 9, "epochs": 9, "stopping_step": 1})
    steps = [e["stage"] for e in entries(settings, "train")]
    assert (steps.count("sft"), steps.count("preference")) == (9, 9)  # 3 of 9 epochs of 3 steps


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, at=3)
    with pytest.raises(NumericsError, match=r"stage sft, step 3: loss nan.*rows \[\d+"):
        run("DynamicPO", "toy", overrides={**settings, "checkpoint_every": 1})
    state = json.loads((folder_of(settings) / "checkpoint" / "state.json").read_text())
    assert (state["stage"], state["step"]) == ("sft", 2)


def test_a_failed_evaluation_leaves_no_answers(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had scored for the policy too; what is asked later is answered by the adapter of that time."""
    loaded = load(plain_config("DynamicPO", "toy", (), {**settings, "compare_stages": True}))
    model, trainer = loaded.model, DynamicPOTrainer(loaded.test.config, loaded.model)

    def fail(self: DynamicPOTrainer, interaction: Any, scores: torch.Tensor) -> torch.Tensor:
        if model.voice == "backbone":
            raise NumericsError("in the evaluation")
        return scores

    monkeypatch.setattr(DynamicPOTrainer, "among_candidates", fail)
    with pytest.raises(NumericsError, match="in the evaluation"):
        trainer.evaluate(loaded.test, load_best_model=False)
    for parameter in model.policy.trainable():
        torch.nn.init.normal_(parameter)
    batch = next(iter(loaded.test))[0]
    assert torch.equal(model.candidate_logps(batch), model.candidate_logps(batch))
    assert model.voice == "policy"


def test_an_sft_adapter_replaces_the_sft_stage(settings: dict[str, Any]) -> None:
    run("SFTRec", "toy", overrides=settings)
    adapter = folder_of(settings) / "sft"
    again = {**settings, "sft_adapter": str(adapter), "checkpoint_dir": "saved2"}
    run("DynamicPO", "toy", overrides=again)
    assert {e["stage"] for e in entries(again, "train")} == {"preference"}
    weights = "adapter_model.safetensors"
    assert (folder_of(again) / "sft" / weights).read_bytes() == (adapter / weights).read_bytes()


def test_an_adapter_for_other_shapes_is_refused_before_anything_is_written(settings: dict[str, Any]) -> None:
    run("SFTRec", "toy", overrides=settings)
    other = {
        **settings,
        "sft_adapter": str(folder_of(settings) / "sft"),
        "lora_rank": 2,
        "checkpoint_dir": "new",
    }
    with pytest.raises(AdapterError, match="lora_A"):
        run("DynamicPO", "toy", overrides=other)
    assert not any(Path("new").glob("*"))


def test_a_preference_stage_without_sft_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="sft_epochs: got 0"):
        run("DynamicPO", "toy", overrides={**settings, "sft_epochs": 0})


@pytest.mark.parametrize("mode", ["full", "uni5", "pop5"])
def test_hit_at_1_equals_the_rate_by_hand(mode: str, settings: dict[str, Any]) -> None:
    from recbole.evaluator import metric_types
    from recbole.utils import EvaluatorType

    own = {
        **settings,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": mode},
        "metrics": [name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING],
        "topk": [1, 5],
    }
    result = run("SDPO", "toy", overrides=own)["test_result"]
    assert len({name.partition("@")[0] for name in result}) == len(own["metrics"])
    ranks = read_ranks(folder_of(own) / "ranks.parquet").ranks
    assert len(ranks) == 12
    assert result["hit@1"] == pytest.approx(np.mean(ranks == 1), abs=1e-4)
    assert result["hit@5"] == pytest.approx(np.mean(ranks <= 5), abs=1e-4)


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    from recbole_dynamicpo.settings import Settings

    plan = plan_stages(Settings(warmup_ratio=0.2, learning_rate=1.0))[1]
    rates = [plan.learning_rate_at(step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert plan.learning_rate_at(10, 10) == pytest.approx(0.0)
    assert sorted(rates[2:], reverse=True) == rates[2:]
