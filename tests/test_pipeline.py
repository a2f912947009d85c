"""The whole job on a toy data set: by name, through RecBole, with a tiny random language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.host.run import run


@pytest.mark.parametrize("model", ["DynamicPO", "DMPO", "MPPO", "SDPO", "SFTRec"])
def test_every_model_runs_by_name(model: str, toy_settings: dict[str, Any]) -> None:
    result = run(model, "toy", overrides=toy_settings)
    assert 0.0 <= result["test_result"]["hit@1"] <= 1.0
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    report = json.loads((folder / "report.json").read_text())
    names = [contestant["name"] for contestant in report["contestants"]]
    assert names[0] == "popularity"
    assert f"after {model}" in names
    assert names[-1] in (f"after {model}", "after SFT")  # whichever ranks its validation rows better
    assert report["contestants"][-1]["hr_at_1"] == pytest.approx(result["test_result"]["hit@1"], abs=1e-4)
