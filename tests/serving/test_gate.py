"""The gate: a registered model ranks in a fresh process as the run's own folder does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo.errors import TrackingError
from recbole_dynamicpo.serving import gate
from recbole_dynamicpo.serving.gate import TOLERANCE, Verdict, ask, compare
from recbole_dynamicpo.serving.ranking import Ranked
from recbole_dynamicpo.storage import load_json, write_json
from recbole_dynamicpo.tracking.registry import register_model

from ..helpers import near_gate
from ..helpers.finished_runs import NAME, PASSED, ROWS, make_run
from ..helpers.saved_recommender import write_recommender

pytestmark = pytest.mark.usefixtures("figures_drawn_once")


def ranking(*scores: tuple[str, float]) -> list[Ranked]:
    return [Ranked(title, (), score) for title, score in scores]


def test_the_comparison() -> None:
    ours = [ranking(("a", -1.0), ("b", -2.0))]
    assert compare(ours, ours) == Verdict(1, 0.0, [])
    near = [ranking(("a", -1.0 + TOLERANCE / 2), ("b", -2.0))]
    assert compare(ours, near).passed
    assert compare(ours, near).largest_difference == pytest.approx(TOLERANCE / 2)
    far = compare(ours, [ranking(("a", -1.0), ("b", -2.25))])
    assert (far.passed, far.largest_difference) == (False, 0.25)
    assert far.reasons == ["row 1: scores differ by 0.25 nats, wanted at most 0.001"]
    turned = compare(ours, [ranking(("b", -1.0), ("a", -1.0))])
    assert turned.reasons[0] == "row 1: another order"
    assert not compare(ours, [ranking(("a", float("nan")), ("b", -2.0))]).passed
    assert not compare([], []).passed


def test_the_gate_sees_other_weights(tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any) -> None:
    """The registered model is of one adapter, the folder by now of another."""
    folder = make_run(tmp_path / "run", tiny_backbone, uri)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "ask", lambda *args: PASSED)
        register_model(folder, uri)
    monkeypatch.setattr(gate, "subprocess", near_gate)
    other = write_recommender(tmp_path / "other", tiny_backbone, seed=9)
    verdict = ask(other, f"models:/{NAME}/1", uri, ROWS, str(tiny_backbone))
    assert not verdict.passed
    assert verdict.largest_difference > TOLERANCE


def test_a_gate_that_cannot_answer(tmp_path: Path, tiny_backbone: Path, uri: str, monkeypatch: Any) -> None:
    """In a fresh process, which says so at once where there is no folder, and in this one."""
    with pytest.raises(TrackingError, match=r"models:/nothing/1: the gate could not compare it \(.*nowhere"):
        ask(tmp_path / "nowhere", "models:/nothing/1", uri, ROWS, str(tiny_backbone))
    monkeypatch.setattr(gate, "subprocess", near_gate)
    folder = write_recommender(tmp_path / "preference", tiny_backbone)
    with pytest.raises(TrackingError, match=r"models:/nothing/1: the gate could not compare it .*not found"):
        ask(folder, "models:/nothing/1", uri, ROWS, str(tiny_backbone))


def test_a_gate_that_cannot_be_started(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(TrackingError, match=r"m/1: the gate could not be started .*No such file.*python"):
        ask(tmp_path, "models:/m/1", "none", ROWS, str(tiny_backbone))


@pytest.mark.parametrize(
    "row",
    [
        {"history": [], "candidates": ["Canyon", "Delta", "Amber"]},
        {"history": [], "candidates": ["Delta"]},
        {"history": [], "candidates": ["nobody knows it", "Delta"]},
        {"history": ["nobody knows it"], "candidates": ["Canyon", "Delta"]},
    ],
)
def test_a_row_of_a_new_user_is_compared(tmp_path: Path, tiny_backbone: Path, row: dict[str, Any]) -> None:
    folder = str(write_recommender(tmp_path / "preference", tiny_backbone))
    asked = {"folder": folder, "model": folder, "tracking_uri": "none", "rows": [*ROWS, row]}
    write_json(tmp_path / "question.json", asked)
    gate.main(tmp_path / "question.json", tmp_path / "answer.json")
    assert load_json(tmp_path / "answer.json") == {
        "rows": 2, "largest_difference": 0.0, "reasons": [], "dtype": "float32", "device": "cpu",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_sides_rank_in_the_dtype_of_the_card(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """As it will be served; and on the CPU where the GPU has no room for one more model."""
    folder = write_recommender(tmp_path / "preference", tiny_backbone)
    card = load_json(folder / "recommender.json")
    write_json(folder / "recommender.json", {**card, "dtype": dtype})
    used: list[tuple[str, torch.dtype]] = []
    load = gate.load_recommender

    def loaded(source: str, *, device: str, **how: Any) -> Any:
        if device == "cuda":
            raise torch.OutOfMemoryError("no room")
        found = load(source, device=device, **how)
        used.append((device, found.scorer.policy.backbone.dtype))
        return found

    monkeypatch.setattr(gate, "load_recommender", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = {"folder": str(folder), "model": str(folder), "tracking_uri": "none", "rows": ROWS}
    write_json(tmp_path / "question.json", asked)
    gate.main(tmp_path / "question.json", tmp_path / "answer.json")
    assert used == [("cpu", getattr(torch, dtype))] * 2
    answer = load_json(tmp_path / "answer.json")
    assert (answer["dtype"], answer["device"], answer["reasons"]) == (dtype, "cpu", [])
