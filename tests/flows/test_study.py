"""A study is checked whole before its first cell; that one runs: test_server.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.flows.study import study


@pytest.fixture
def parameters(toy_settings: dict[str, Any]) -> dict[str, Any]:
    names = ("data_path", "load_col", "num_candidates", "mlflow_tracking_uri")
    return {
        "dataset": "toy",
        "backbone": toy_settings["backbone"],
        "num_negatives": [2, 4],
        "overrides": {name: toy_settings[name] for name in names},
    }


@pytest.mark.parametrize(
    ("more", "error", "named"),
    [
        ({"num_negatives": [2, 6]}, SettingsError, "num_negatives: got 6"),
        ({"objective": ["dmpo", "dpo"]}, SettingsError, "objective: got 'dpo'"),
        ({"dataset": "nonesuch"}, DataError, "nonesuch"),
        ({"grid": "nowhere.yaml"}, SettingsError, "nowhere.yaml"),
    ],
)
def test_a_cell_that_cannot_be_run_stops_the_study_before_it_begins(
    parameters: dict[str, Any], more: dict[str, Any], error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        study.fn(**{**parameters, **more})
    assert not (tmp_path / "saved").exists()
