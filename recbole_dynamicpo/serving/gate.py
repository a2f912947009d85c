"""The test that a registered model has to pass in a fresh process: it ranks as the run's own adapter does.

``python -m recbole_dynamicpo.serving.gate QUESTION ANSWER`` reads a question and writes an answer, both JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import DynamicPOError, TrackingError
from ..storage import load_json, write_json
from .folder import BACKBONE_VARIABLE
from .ranking import Ranked
from .recommender import load_recommender

# Nats that a score may differ; both sides compute on one device, in one dtype, in the same way.
TOLERANCE = 1e-3
# Seconds for loading two recommenders and ranking some rows.
GATE_WITHIN = 1800.0


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        rows: that were ranked.
        largest_difference: between two scores of a title, nats.
        reasons: why they do not rank alike; empty if they do.
        dtype: of the backbone's weights on both sides: that of the card, with which it is served.
        device: where both sides computed.
    """

    rows: int
    largest_difference: float
    reasons: list[str]
    dtype: str = ""
    device: str = ""

    @property
    def passed(self) -> bool:
        """Whether they rank alike."""
        return not self.reasons


def ask(
    folder: Path, model: str, tracking_uri: str, rows: Sequence[Mapping[str, Any]], backbone: str
) -> Verdict:
    """Compare a registered model with the recommender folder that it was made of, in a fresh process.

    Args:
        folder: recommender folder.
        model: ``models:/name/version``.
        tracking_uri: where the model is registered.
        rows: each with ``history`` and ``candidates``, as titles.
        backbone: as the folder names it; a folder's path is not known to the model.

    Raises:
        TrackingError: the comparison could not be made.
    """
    environment = dict(os.environ)
    if Path(backbone).is_dir():
        environment.setdefault(BACKBONE_VARIABLE, backbone)
    with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        question, answer = Path(work) / "question.json", Path(work) / "answer.json"
        asked = {
            "folder": str(folder.resolve()),
            "model": model,
            "tracking_uri": tracking_uri,
            "rows": list(rows),
        }
        write_json(question, asked)
        command = [sys.executable, "-m", __spec__.name, str(question), str(answer)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=GATE_WITHIN, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise TrackingError(f"{model}: no answer of the gate within {GATE_WITHIN:.0f} s") from error
        except OSError as error:
            raise TrackingError(f"{model}: the gate could not be started ({error})") from error
        try:
            return Verdict(**load_json(answer))
        except (OSError, ValueError, TypeError) as error:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise TrackingError(f"{model}: the gate could not compare it ({last})") from error


def compare(ours: Sequence[Sequence[Ranked]], theirs: Sequence[Sequence[Ranked]]) -> Verdict:
    """Compare two rankings of the same rows.

    Args:
        ours: of each row, best first.
        theirs: likewise.
    """
    reasons, largest = [], 0.0
    for row, (first, second) in enumerate(zip(ours, theirs, strict=True), start=1):
        if [item.title for item in first] != [item.title for item in second]:
            reasons.append(f"row {row}: another order")
        scores = {item.title: item.score for item in second}
        gaps = [abs(item.score - scores[item.title]) for item in first if item.title in scores]
        # A score that is no number is a difference, though no comparison with it is true.
        gap = max((float("inf") if gap != gap else gap for gap in gaps), default=0.0)
        if gap > TOLERANCE:
            reasons.append(f"row {row}: scores differ by {gap:.3g} nats, wanted at most {TOLERANCE:g}")
        largest = max(largest, gap)
    if not ours:
        reasons.append("no rows to compare")
    return Verdict(len(ours), largest, reasons)


def main(question: Path, answer: Path) -> None:
    """Answer a question; both sides rank in the same way, on a GPU where it has room for one more model."""
    asked = load_json(question)
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        try:
            dtype, ours, theirs = _rank(asked, device)
            break
        except RuntimeError as error:  # such as memory that the training process holds
            if device == "cpu":
                raise
            print(f"{device}: {error}; the CPU answers instead", file=sys.stderr)
    write_json(answer, asdict(replace(compare(ours, theirs), dtype=dtype, device=device)))


def _rank(asked: Mapping[str, Any], device: str) -> tuple[str, list[list[Ranked]], list[list[Ranked]]]:
    """Return the dtype and the two rankings, made one after the other to hold one backbone only."""
    dtype, sides = "", []
    for source in (asked["folder"], asked["model"]):
        recommender = load_recommender(source, device=device, tracking_uri=asked["tracking_uri"])
        dtype = recommender.card.dtype
        questions = [
            recommender.question(r["history"], r["candidates"], len(r["candidates"])) for r in asked["rows"]
        ]
        sides.append([found.ranked for found in recommender.answer(questions)])
        del recommender
    ours, theirs = sides
    return dtype, ours, theirs


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except DynamicPOError as error:
        sys.exit(" ".join(f"{error}".split()))
