"""The next step laid out by a thread: the same bits, the same errors, no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from safetensors.torch import load_file

from recbole_dynamicpo.dataset.columns import ROW_ID, TOKENS
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.settings import Settings
from recbole_dynamicpo.steps.ahead import Ahead, Ready, parts_of
from recbole_dynamicpo.training.checkpoint import load_progress
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.trainer import DynamicPOTrainer

from ..helpers.broken_losses import break_losses
from ..training.test_checkpoint import outcome
from .test_step import Stage, settings_of

MAIN = threading.main_thread().name


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("layout")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def own_settings(toy_settings: dict[str, Any], name: str) -> tuple[dict[str, Any], Path]:
    home = Path(toy_settings["checkpoint_dir"]) / name
    more = {"checkpoint_dir": str(home), "compare_stages": False, "eval_rows": 4, "sft_epochs": 2}
    return {**toy_settings, **more}, home


@pytest.mark.parametrize("way", ["vocabulary", "windows"])
def test_a_run_is_the_same_bits_whoever_lays_out(
    way: str, toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a run with the thread, all steps' rows are laid out by it."""
    found, by = [], set()
    lay_out = DynamicPO.lay_out

    def noted(self: DynamicPO, rows: Any) -> Any:
        by.add(threading.current_thread().name)
        return lay_out(self, rows)

    monkeypatch.setattr(DynamicPO, "lay_out", noted)
    for name in ("ahead", "when asked"):
        own, home = own_settings(settings_of(toy_settings, way), name)
        with monkeypatch.context() as patch:
            if name == "when asked":
                patch.setattr(
                    Ahead, "steps", lambda self, batches: (Ready(self.model, rows) for rows in batches)
                )
            run("DynamicPO", "toy", overrides=own)
        found.append(outcome(next(home.iterdir())))
        assert (MAIN in by) == (name == "when asked")
    assert len(found[0][0]) > 4
    assert found[0][0] == found[1][0]
    assert all(torch.equal(weight, found[1][1][key]) for key, weight in found[0][1].items())


def test_one_step_ahead_and_no_more(toy_settings: dict[str, Any]) -> None:
    """While a step is worked on the next one is laid out, and the one behind it is not begun."""
    stage = Stage(settings_of(toy_settings, "vocabulary"), "sft")
    steps, laid_out = list(stage.rows.batches(0, 0)), []
    lay_out = stage.model.lay_out

    def noted(rows: Any) -> Any:
        laid_out.append(rows)
        return lay_out(rows)

    stage.model.lay_out = noted
    with Ahead(stage.model) as ahead:
        for number, ready in enumerate(ahead.steps(steps), start=1):
            ahead.rest()
            assert len(laid_out) == min(number + 1, len(steps))
            assert ready.batches is steps[number - 1]
            assert len(ready.passes()) == 1
            assert len(laid_out) == min(number + 1, len(steps))  # asked again, they are there
    assert len(steps) > 2


def test_an_error_of_the_thread_is_that_of_its_step(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised as it is, when its step is due: the steps before are taken and kept."""
    lay_out, calls = DynamicPO.lay_out, []

    def failing(self: DynamicPO, rows: Any) -> Any:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise DataError("the third step's rows")
        return lay_out(self, rows)

    monkeypatch.setattr(DynamicPO, "lay_out", failing)
    own, home = own_settings(toy_settings, "failing")
    with pytest.raises(DataError, match=r"^the third step's rows$"):
        run("DynamicPO", "toy", overrides={**own, "checkpoint_every": 100})
    assert MAIN not in calls
    folder = next(home.iterdir())
    assert load_progress(folder / "checkpoint").step == 2
    monkeypatch.setattr(DynamicPO, "lay_out", lay_out)
    run("DynamicPO", "toy", overrides={**own, "resume": str(folder)})
    whole, other = own_settings(toy_settings, "whole")
    run("DynamicPO", "toy", overrides=whole)
    resumed, undisturbed = outcome(folder), outcome(next(other.iterdir()))
    assert resumed[0] == undisturbed[0]
    assert all(torch.equal(value, undisturbed[1][name]) for name, value in resumed[1].items())


def test_no_prompt_is_written_by_two_threads(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation within an epoch waits until the next step is laid out, slow as that may be."""
    lay_out, validate, busy, met = DynamicPO.lay_out, DynamicPOTrainer._validate, [], []

    def slow(self: DynamicPO, rows: Any) -> Any:
        busy.append(True)
        time.sleep(0.2)
        found = lay_out(self, rows)
        busy.pop()
        return found

    def watched(self: DynamicPOTrainer, *rest: Any) -> bool:
        met.append(bool(busy))
        return validate(self, *rest)

    monkeypatch.setattr(DynamicPO, "lay_out", slow)
    monkeypatch.setattr(DynamicPOTrainer, "_validate", watched)
    own, _ = own_settings(toy_settings, "slow")
    run("SFTRec", "toy", overrides={**own, "validate_every": 1, "valid_rows": 2})
    assert len(met) == 6
    assert not any(met)


def test_a_smaller_budget_lays_out_anew(toy_settings: dict[str, Any]) -> None:
    stage = Stage(settings_of(toy_settings, "vocabulary"), "sft")
    with Ahead(stage.model) as ahead:
        ready = next(ahead.steps(stage.rows.batches(0, 0)))
        (whole,) = ready.passes()
        stage.model.budget.tokens = 1
        parts = ready.passes()
    assert [part.losses for part in parts] == [1] * whole.losses
    assert len(parts) > 1


def test_what_is_not_finite_is_in_no_checkpoint(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows one step later, when the weights are spoilt already; the checkpoint before holds."""
    calls = break_losses(monkeypatch, at=5)
    own, home = own_settings(toy_settings, "broken")
    with pytest.raises(Exception, match=r"stage sft, step 5: loss nan"):
        run("SFTRec", "toy", overrides={**own, "checkpoint_every": 2})
    assert len(calls) == 6
    folder = next(home.iterdir())
    assert load_progress(folder / "checkpoint").step == 4
    kept = load_file(folder / "checkpoint" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


def test_passes_fill_the_budget_by_hand() -> None:
    """Six rows in batches of two: 100 tokens hold 1 x 60, then 2 x 50 and 3 x 30, the largest first."""
    sizes, names = [30, 60, 50, 30, 45, 10], torch.arange(6)
    rows = Interaction({TOKENS: torch.tensor(sizes), ROW_ID: names})
    batches = [rows[torch.tensor(pair)] for pair in ([0, 1], [2, 3], [4, 5])]
    filled = parts_of(batches, TokenBudget(100, fills=True))
    assert [part[ROW_ID].tolist() for part in filled] == [[1], [2, 4], [0, 3, 5]]
    one_by_one = parts_of(batches, TokenBudget(100))
    assert [part[ROW_ID].tolist() for part in one_by_one] == [[0], [1], [2, 3], [4, 5]]
    (whole,) = parts_of(batches, TokenBudget(1000, fills=True))
    assert sorted(whole[ROW_ID].tolist()) == names.tolist()
    assert parts_of([], TokenBudget(100, fills=True)) == []


@pytest.mark.parametrize("stage", ["sft", "preference"])
def test_filled_passes_take_the_same_step(stage: str, toy_settings: dict[str, Any]) -> None:
    """Accumulation is so many rows then: one pass in place of four."""
    prefix, found = ("sft_batch_size", "sft_accumulation_steps"), []
    if stage == "preference":
        prefix = ("train_batch_size", "accumulation_steps")
    for fills, passes in ((False, 4), (True, 1)):
        more = {prefix[0]: 1, prefix[1]: 4, "fill_passes": fills}
        one = Stage(settings_of(toy_settings, "vocabulary", **more), stage)
        steps = one.ready()
        assert [len(ready.passes()) for ready in steps] == [passes] * len(steps)
        one.take(steps)
        one.trainer.later.settle()
        found.append(one)
    (_, apart), (_, together) = (one.said[0] for one in found)
    for name in ("loss", "grad_norm", "rows"):
        assert together[name] == pytest.approx(apart[name], rel=1e-4)
    pairs = zip(*(one.model.policy.trainable() for one in found), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_passes_are_filled_on_a_gpu_unless_said_otherwise() -> None:
    for wanted, on_cpu, on_gpu in (("auto", False, True), (True, True, True), (False, False, False)):
        settings = Settings(fill_passes=wanted)
        found = [TokenBudget.of(settings, torch.device(kind)).fills for kind in ("cpu", "cuda")]
        assert found == [on_cpu, on_gpu]
