"""A study is checked whole before its first cell, and shows its cells as the command does.

That one runs on a server: test_server.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recbole_dynamicpo import pipeline
from recbole_dynamicpo.errors import DataError, DynamicPOError, SettingsError
from recbole_dynamicpo.flows import study as module
from recbole_dynamicpo.flows.parameters import make_job
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


class Cells:
    """In place of the flow of a cell: runs its stages without Prefect; one of two negatives fails."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def with_options(self, flow_run_name: str) -> Any:
        self.names.append(flow_run_name)
        return self.run

    def run(self, return_state: bool, **parameters: Any) -> Any:
        job = make_job(**parameters)
        if parameters["num_negatives"] == 2:
            return SimpleNamespace(is_completed=lambda: False)
        prepared = pipeline.prepare(job)
        folder = pipeline.begin(job, prepared)
        for stage in ("sft", "preference"):
            pipeline.train(job, stage, prepared)
        pipeline.evaluate(job, prepared)
        return SimpleNamespace(is_completed=lambda: True, result=lambda: {"run_folder": str(folder)})


def test_cells_that_ran_are_shown_even_where_others_fail(
    toy_settings: dict[str, Any], parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, shown = Cells(), []
    monkeypatch.setattr(module, "dynamicpo", cells)
    monkeypatch.setattr(
        module, "record_study", lambda rows, figure, *more: shown.append((rows, figure)) or {}
    )
    own = {n: v for n, v in toy_settings.items() if n not in ("checkpoint_dir", "backbone", "num_negatives")}
    own = {**own, **parameters["overrides"]}
    with pytest.raises(
        DynamicPOError, match="2 of 4 runs failed: dmpo-plain-K2-s2020, dmpo-dynamic-K2-s2020"
    ):
        study.fn(**{**parameters, "overrides": own})
    assert cells.names[:2] == ["dmpo-plain-K4-s2020", "dmpo-dynamic-K4-s2020"]
    ((rows, figure),) = shown
    assert [(row["num_negatives"], row["dynamic"], row["rows"]) for row in rows] == [
        (4, False, 12),
        (4, True, 12),
    ]
    assert all(0 <= row["hr_at_1_low"] <= row["hr_at_1"] <= row["hr_at_1_high"] <= 1 for row in rows)
    assert len(figure.axes) == 4
