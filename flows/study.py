"""A study: number of negatives x objective x plain or dynamic x seeds, each cell a run of the pipeline.

    prefect deployment run study/grid --param sft_rows=64
    python -c "from recbole_dynamicpo.flows.study import study; study(grid='study/paper.yaml')"

The cells share what they have in common, as any runs do: the prepared data, the SFT adapter of a seed, and
the reference's log-probabilities. They register no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task

from recbole_dynamicpo.errors import DynamicPOError
from recbole_dynamicpo.study.grid import cells, read_grid, shipped_path

from . import artifacts
from .logs import run_logs
from .parameters import SCHEMAS, limited_signature, make_job, setting_schema
from .pipeline import dynamicpo
from .tasks import FLOW, RECORD_TIMEOUT, options

# Finds the MLflow run of a study again.
STUDY_TAG = "recbole_dynamicpo.study"


def _axis(name: str) -> dict[str, Any]:
    values = {"type": "array", "items": setting_schema(name), "minItems": 1}
    return {"anyOf": [values, {"type": "null"}]}


_AXES = {name: _axis(name) for name in ("num_negatives", "objective", "dynamic", "seed")}
_SCHEMAS = {**SCHEMAS, **_AXES, "grid": SCHEMAS["settings_file"]}


def study(
    dataset: str | None = None,
    num_negatives: list[int] | None = None,
    objective: list[str] | None = None,
    dynamic: list[bool] | None = None,
    seed: list[int] | None = None,
    grid: str | None = None,
    backbone: str | None = None,
    sft_rows: int | None = None,
    preference_rows: int | None = None,
    eval_rows: int | None = None,
    settings_file: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the pipeline for every combination of the lists, and compare the final models.

    Args:
        dataset: Name of the data set.
        num_negatives: Values of K.
        objective: Preference objectives.
        dynamic: True for boundary negatives with dual-margin beta, false for the plain objective.
        seed: Seeds.
        grid: YAML file with such lists, or a shipped one such as study/paper.yaml; lists given here win.
        backbone: Embedded name, local folder or hub id of the language model.
        sft_rows: Training rows of the SFT stage; 0 for all.
        preference_rows: Training rows of the preference stage; 0 for all.
        eval_rows: Test rows; 0 for all.
        settings_file: YAML file with settings on the worker's machine, or a shipped one such as paper.yaml.
        overrides: Further settings; they win over the settings file.

    Raises:
        DynamicPOError: a cell cannot be run (before any is begun), or some have failed (after all of them).
    """
    axes = {"num_negatives": num_negatives, "objective": objective, "dynamic": dynamic, "seed": seed}
    found = read_grid(shipped_path(grid) if grid else None, axes)
    same = {
        **{"dataset": dataset, "backbone": backbone, "settings_file": settings_file},
        **{"sft_rows": sft_rows, "preference_rows": preference_rows, "eval_rows": eval_rows},
        "overrides": {**(overrides or {}), "register": False},
    }
    with run_logs():
        return _run(found, same)


study.__signature__ = limited_signature(study, _SCHEMAS)  # type: ignore[attr-defined]
study = flow(name="study", **FLOW)(study)


def _run(axes: dict[str, list[Any]], same: dict[str, Any]) -> dict[str, Any]:
    """Run the cells one after the other, and show what there is, even where some fail."""
    from recbole_dynamicpo.job import check
    from recbole_dynamicpo.study.results import cell_result
    from recbole_dynamicpo.tracking.record import read_record

    found = cells(axes)
    asked = [_parameters(cell.settings(axes), same) for cell in found]
    jobs = [make_job(**parameters) for parameters in asked]
    for job in jobs:
        check(job)
    results, runs, failed = [], [], []
    for cell, parameters in zip(found, asked, strict=True):
        run = dynamicpo.with_options(flow_run_name=cell.name)
        state: Any = run(**parameters, return_state=True)
        if state.is_completed():
            runs.append(state.result()["run_folder"])
            record = read_record(Path(runs[-1]))
            folders = {stage: record.stage_folder(Path(runs[-1]), stage) for stage in record.stages}
            results.append(cell_result(cell, folders, record.ingredients))
        else:
            failed.append(cell.name)
    shown = compare(results, runs, jobs[0].dataset) if results else {}
    if failed:
        raise DynamicPOError(f"{len(failed)} of {len(found)} runs failed: {', '.join(failed)}")
    return shown


def _parameters(own: dict[str, Any], same: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a cell's run; what no parameter takes is an override, the user's own first."""
    named = {name: own[name] for name in ("objective", "dynamic", "num_negatives", "seed")}
    more = {name: value for name, value in own.items() if name not in named}
    return {**same, **named, "overrides": {**more, **same["overrides"]}}


def compare(results: list[dict[str, Any]], runs: list[str], dataset: str) -> dict[str, Any]:
    """Show the finished cells as a table, a figure and a verdict, in Prefect's UI and in MLflow."""
    from recbole_dynamicpo.study.comparisons import compare_cells, verdict
    from recbole_dynamicpo.study.figure import draw
    from recbole_dynamicpo.study.report import table_row
    from recbole_dynamicpo.tracking.record import read_record

    rows = [table_row(result, run) for result, run in zip(results, runs, strict=True)]
    said = verdict(compare_cells(results))
    text = f"{len(rows)} runs on {dataset}. {said}"
    artifacts.show_table(artifacts.artifact_key("study", dataset), rows, text)
    key = artifacts.artifact_key("study-hit-rate", dataset)
    figure = draw(results, dataset)
    artifacts.show_figure(key, figure, "Ranks, loss and gradient share against the number of negatives.")
    setting = read_record(Path(runs[0])).params["mlflow_tracking_uri"]
    return {"rows": rows, "verdict": said, **record_study(rows, figure, dataset, setting)}


@task(name="record", **options(RECORD_TIMEOUT))
def record_study(
    rows: list[dict[str, Any]], figure: Any, dataset: str, setting: str | None
) -> dict[str, Any]:
    """Keep table and figure in a run of their own in MLflow; the same study is kept once."""
    from recbole_dynamicpo.serving.mlflow_uri import resolve_uri
    from recbole_dynamicpo.storage import sha256_json
    from recbole_dynamicpo.tracking import sync as tracking
    from recbole_dynamicpo.tracking.client import open_experiment

    uri = resolve_uri(setting)
    if uri is None:
        return {}
    client = tracking.connect(uri)
    experiment = open_experiment(client, uri, dataset)
    key = sha256_json(rows)
    there = client.search_runs([experiment], f"tags.`{STUDY_TAG}` = '{key}' and status = 'FINISHED'")
    if there:
        run_id = there[0].info.run_id
    else:
        run_id = client.create_run(experiment, run_name=f"study-{dataset}", tags={STUDY_TAG: key}).info.run_id
        client.log_table(run_id, {name: [row[name] for row in rows] for name in rows[0]}, "study.json")
        client.log_figure(run_id, figure, "figure.png")
        client.set_terminated(run_id)
    artifacts.link_run(f"study-{dataset}", uri, run_id, experiment)
    return {"mlflow_run_id": run_id}
