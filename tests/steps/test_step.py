"""A whole optimizer step: nothing in it waits for the device, and what is read later is what was computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.language_model.decoder import decoder_layers, recomputes
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.steps.ahead import Ahead, Ready
from recbole_dynamicpo.steps.numbers import ReadLater
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.rows import ListedRows
from recbole_dynamicpo.training.trainer import DynamicPOTrainer

from ..helpers.pretended_device import pretended_device
from ..likelihoods.test_losses import WAYS

Said = list[tuple[int, dict[str, Any]]]


class Stage:
    """A stage of a run, ready for its first step.

    Args:
        settings: of the run.
        name: of the stage.
    """

    def __init__(self, settings: dict[str, Any], name: str) -> None:
        loaded = load(PlainConfig("DynamicPO", "toy", [], settings))
        self.trainer = DynamicPOTrainer(loaded.test.config, loaded.model)
        self.model = model = loaded.model
        self.plan = next(plan for plan in plan_stages(model.settings) if plan.name == name)
        model.policy.freeze_reference()
        model.stage = name
        dense = model.settings.positions == "all"
        self.rows = (DenseRows if dense else ListedRows)(model, self.plan)
        if name == "preference":
            self.rows.add_reference(0, lambda wanted: wanted.score(wanted.rows))
        self.trainer.optimizer = self.trainer._build_optimizer(learning_rate=0.01)
        self.said: Said = []

    def ready(self) -> list[Ready]:
        """Return the steps of the first epoch, laid out."""
        found = []
        for batches in self.rows.batches(0, 0):
            ready = Ready(self.model, batches)
            passes = ready.passes()
            ready.passes = lambda passes=passes: passes  # type: ignore[method-assign,misc]
            found.append(ready)
        return found

    def take(self, steps: list[Ready]) -> None:
        """Take steps as the trainer does."""
        self.trainer.later = ReadLater("sft", self.trainer.run_folder, self._say)
        for ready in steps:
            assert not self.trainer._step(self.plan, ready, len(steps))

    def _say(self, step: int, values: dict[str, Any]) -> None:
        self.said.append((step, values))


def settings_of(toy_settings: dict[str, Any], way: str, **more: Any) -> dict[str, Any]:
    own = {**toy_settings, **WAYS[way], "lora_dropout": 0.1, "clip_grad_norm": {"max_norm": 0.3}, **more}
    return own | ({"sft_batch_size": 24, "train_batch_size": 24} if way == "windows" else {})


@pytest.mark.parametrize("stage", ["sft", "preference"])
@pytest.mark.parametrize("way", WAYS)
def test_no_step_waits_for_the_device(way: str, stage: str, toy_settings: dict[str, Any]) -> None:
    """Forward, loss, backward, clipping, optimizer and schedule; numbers come one step later."""
    own = settings_of(toy_settings, way)
    alone = Stage(own, stage)
    alone.take(alone.ready())
    alone.trainer.later.settle()
    watched = Stage(own, stage)
    steps = watched.ready()
    assert len(steps) == len(alone.said) > 1
    with pretended_device(watched.model.policy) as device:
        watched.take(steps)
        assert device.waits == []
        assert device.sent == len(steps)
        assert [step for step, _ in watched.said] == [*range(1, len(steps))]
    watched.trainer.later.settle()
    for (step, ours), (other, theirs) in zip(watched.said, alone.said, strict=True):
        assert step == other
        assert {name: value for name, value in ours.items() if name != "tokens_per_second"} == {
            name: value for name, value in theirs.items() if name != "tokens_per_second"
        }
    pairs = zip(watched.model.policy.trainable(), alone.model.policy.trainable(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(device.has(weight) for weight in watched.model.policy.trainable())


@pytest.mark.parametrize("learner", ["adam", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("foreach", [False, True])
def test_no_optimizer_of_recbole_waits(learner: str, foreach: bool, toy_settings: dict[str, Any]) -> None:
    """Of all parameters at once too, as torch has them on a GPU."""
    stage = Stage(settings_of(toy_settings, "vocabulary", learner=learner), "sft")
    for group in stage.trainer.optimizer.param_groups:
        group["foreach"] = foreach
    steps = stage.ready()
    made = [value for state in stage.trainer.optimizer.state.values() for value in state.values()]
    with pretended_device(stage.model.policy) as device:
        device.put(*(value for value in made if value.dim()))  # adagrad's, beside the weights
        stage.take(steps)
    assert device.waits == []


def test_steps_that_pass_in_parts_do_not_wait(toy_settings: dict[str, Any]) -> None:
    stage = Stage(settings_of(toy_settings, "vocabulary", tokens_per_batch=300), "preference")
    steps = stage.ready()
    assert max(len(ready.passes()) for ready in steps) > 1
    with pretended_device(stage.model.policy) as device:
        stage.take(steps)
    assert device.waits == []


@pytest.mark.parametrize("where", ["loss", "step"])
def test_the_watch_sees_a_step_that_waits(
    where: str, toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(settings_of(toy_settings, "vocabulary"), "sft")
    model, optimizer = stage.model, stage.trainer.optimizer
    losses, step, weight = type(model).losses_of, optimizer.step, model.policy.trainable()[0]

    def asking(self: Any, laid_out: Any) -> torch.Tensor:
        found = losses(self, laid_out)
        return found if float(found.detach().sum()) < 1e9 else found * 0

    if where == "loss":
        monkeypatch.setattr(type(model), "losses_of", asking)
    else:
        monkeypatch.setattr(optimizer, "step", lambda: step() if float(weight.detach().sum()) < 1e9 else None)
    steps = stage.ready()[:1]
    with pretended_device(stage.model.policy) as device:
        stage.take(steps)
    assert device.waits


class Scarce:
    """A pretended device: so many rows pass with their activations kept, and so many without.

    Args:
        model: whose passes run out of memory beyond that.
        kept: most rows of a pass whose activations are kept.
        recomputed: most rows of one whose activations are computed again.
    """

    def __init__(self, model: DynamicPO, kept: int, recomputed: int) -> None:
        self.model, self.limits = model, {False: kept, True: recomputed}
        self.seen: list[tuple[int, bool]] = []
        self.logps = model.policy.logps
        model.policy.logps = self  # type: ignore[method-assign]

    def __call__(self, batch: TokenBatch, *more: Any) -> torch.Tensor:
        layers = decoder_layers(self.model.policy.peft.get_base_model())
        again = all(hasattr(layer.forward, "recomputed") for layer in layers)
        self.seen.append((len(batch.prompt), again))
        if len(batch.prompt) > self.limits[again]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.logps(batch, *more)


@pytest.mark.parametrize(
    ("recomputes", "kept", "recomputed", "seen"),
    [
        (None, 4, 4, [(4, False)]),
        (None, 2, 4, [(4, False), (4, True)]),
        (None, 1, 2, [(4, False), (4, True), (2, True), (2, True)]),
        (False, 2, 4, [(4, False), (2, False), (2, False)]),
        (True, 2, 4, [(4, True)]),
    ],
)
def test_room_is_found_by_trying(
    recomputes: bool | None, kept: int, recomputed: int, seen: list[Any], toy_settings: dict[str, Any]
) -> None:
    """Activations are kept where they fit, else computed again, and passes get smaller last; all alike."""
    steps, found = [], []
    for limited in (False, True):
        own = settings_of(toy_settings, "vocabulary", gradient_checkpointing=recomputes is True)
        stage = Stage(own, "sft")
        object.__setattr__(stage.model.policy.backbone, "recomputes", recomputes)
        scarce = Scarce(stage.model, *((kept, recomputed) if limited else (99, 99)))
        with Ahead(stage.model) as ahead:
            ready = next(ahead.steps(stage.rows.batches(0, 0)))
            stage.take([ready])
        stage.trainer.later.settle()
        steps.append(stage.said[0][1])
        found.append(scarce.seen)
    assert found[1] == seen
    assert steps[1]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-5)
    assert steps[1]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-4)


def test_who_decides_what_is_computed_again() -> None:
    for wanted, on_cpu, on_gpu in (("auto", False, None), (True, True, True), (False, False, False)):
        assert [recomputes(wanted, torch.device(kind)) for kind in ("cpu", "cuda")] == [on_cpu, on_gpu]
