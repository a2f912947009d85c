"""The flows' parameters: what the server lets through, and which job they make."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.flows import parameters
from recbole_dynamicpo.flows.evaluate import evaluate
from recbole_dynamicpo.flows.parameters import make_job, merged, overrides_schema, store
from recbole_dynamicpo.flows.pipeline import dynamicpo
from recbole_dynamicpo.flows.preference import preference
from recbole_dynamicpo.flows.prepare import prepare
from recbole_dynamicpo.flows.sft import sft
from recbole_dynamicpo.flows.study import study

NAMES = [
    *("dataset", "model", "objective", "dynamic", "backbone", "num_negatives", "seed", "sft_rows"),
    *("preference_rows", "eval_rows", "nproc", "settings_file", "overrides"),
]
FLOWS = {
    "prepare": prepare,
    "sft": sft,
    "preference": preference,
    "evaluate": evaluate,
    "dynamicpo": dynamicpo,
}


def submit(flow: Any, values: dict[str, Any]) -> None:
    """Check values as the server does when a run of a deployment is submitted."""
    validate(values, flow.parameters.model_dump_for_openapi(), raise_on_error=True)


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_takes_the_same_flat_parameters(name: str) -> None:
    flow = FLOWS[name]
    assert flow.name == name
    properties = flow.parameters.properties
    assert list(properties) == NAMES
    assert flow.parameters.required == []
    assert all(properties[parameter].get("description") for parameter in NAMES)


def test_right_values_are_let_through() -> None:
    submit(dynamicpo, {"dataset": "ml-100k"})
    submit(dynamicpo, dict.fromkeys(NAMES))
    overrides = {
        "beta": 0.5,
        "lora_targets": ["q_proj"],
        "metrics": ["Hit"],
        "load_col": {"inter": ["user_id"]},
    }
    submit(dynamicpo, {"sft_rows": 16, "dynamic": False, "objective": "sdpo", "overrides": overrides})
    submit(study, {"num_negatives": [1, 3], "dynamic": [True], "grid": "study/paper.yaml"})


@pytest.mark.parametrize(
    ("flow", "values", "message"),
    [
        (dynamicpo, {"num_negatives": 0}, "'num_negatives'.*less than the minimum of 1"),
        (dynamicpo, {"num_negatives": 1.5}, "'num_negatives'.*1.5"),
        (dynamicpo, {"dynamic": "yes"}, "'dynamic'.*'yes'"),
        (dynamicpo, {"sft_rows": -1}, "'sft_rows'.*minimum of 0"),
        (dynamicpo, {"nproc": 0}, "'nproc'.*minimum of 1"),
        (dynamicpo, {"seed": 2**32}, "'seed'.*maximum of 4294967295"),
        (dynamicpo, {"backbone": ""}, "'backbone'"),
        (dynamicpo, {"objective": "dpo"}, "'objective'.*'dmpo', 'mppo', 'sdpo'"),
        (dynamicpo, {"model": "dynamicpo"}, "'model'.*'DynamicPO'"),
        (dynamicpo, {"model": "BPR"}, "'model'.*'BPR'"),
        (dynamicpo, {"dataset": "../secret"}, "'dataset'"),
        (dynamicpo, {"dataset": "a/b"}, "'dataset'"),
        (dynamicpo, {"overrides": {"unknown": 1}}, "'overrides'.*'unknown' was unexpected"),
        (dynamicpo, {"overrides": {"epochs": "3"}}, "'overrides.epochs'"),
        (dynamicpo, {"overrides": {"warmup_ratio": 2}}, "'overrides.warmup_ratio'.*maximum of 1"),
        (dynamicpo, {"overrides": {"resume": "x"}}, "'resume' was unexpected"),
        (dynamicpo, {"overrides": "beta=1"}, "'overrides'"),
        (study, {"num_negatives": [3, 0]}, r"'num_negatives\[1\]'.*minimum of 1"),
        (study, {"objective": []}, "'objective'"),
    ],
)
def test_wrong_values_are_refused_by_name(flow: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        submit(flow, values)


def test_the_known_settings_are_those_that_the_package_knows(
    toy_settings: dict[str, Any], tmp_path: Path
) -> None:
    """What RecBole's Config names as its own general settings may be overridden too."""
    from recbole_dynamicpo.host.config import plain_config

    config = plain_config("DynamicPO", "toy", (), toy_settings)
    general = {name for names in config.parameters.values() for name in names}
    known = set(overrides_schema()["properties"])
    assert general - known <= parameters._NOT_OVERRIDDEN
    assert {"beta", "lora_rank", "data_path", "metrics", "valid_metric", "mlflow_tracking_uri"} <= known
    assert known.isdisjoint(parameters._NOT_OVERRIDDEN)


def test_the_job_has_what_was_given_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECBOLE_DYNAMICPO_STORE", raising=False)
    job = make_job("toy", sft_rows=16, dynamic=False, overrides={"beta": 0.5})
    assert (job.model, job.dataset, job.config_files) == ("DynamicPO", "toy", ())
    assert job.overrides == {"show_progress": False, "beta": 0.5, "sft_rows": 16, "dynamic": False}
    assert job.store == str(tmp_path / "saved")
    monkeypatch.setenv("RECBOLE_DYNAMICPO_STORE", "elsewhere")
    assert store() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("parameters", "text", "wanted"),
    [
        ({}, "model: SDPO\ndataset: toy\n", ("SDPO", "toy")),
        ({"model": "DMPO"}, "model: SDPO\ndataset: toy\n", ("DMPO", "toy")),
        ({"dataset": "other"}, "model: MPPO\ndataset: toy\n", ("MPPO", "other")),
        ({}, "dataset: toy\n", ("DynamicPO", "toy")),
        ({}, "beta: 1\n", ("DynamicPO", "ml-100k")),
    ],
)
def test_model_and_data_set_of_a_settings_file_count(
    parameters: dict[str, str], text: str, wanted: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    job = make_job(settings_file=str(tmp_path / "own.yaml"), **parameters)
    assert (job.model, job.dataset) == wanted


@pytest.mark.parametrize("text", ["model: BPR\n", "model: dynamicpo\n", "model: [SDPO]\n", "[]\n"])
def test_a_settings_file_of_another_model_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(
        SettingsError, match=r"model: got .*, wanted one of DynamicPO|wanted key: value lines"
    ):
        make_job(settings_file=str(tmp_path / "own.yaml"))


def test_a_settings_file_is_a_path_or_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (shipped,) = make_job(settings_file="paper.yaml").config_files
    assert Path(shipped).is_absolute()
    assert Path(shipped).read_text().startswith("# The paper's recipe")
    (tmp_path / "paper.yaml").write_text("beta: 2.0\n")
    assert make_job(settings_file="paper.yaml").config_files == ("paper.yaml",)


def test_one_setting_given_twice_is_refused() -> None:
    assert merged({"seed": 3, "beta": None}, {"seed": 3, "beta": 1.0}) == {"seed": 3, "beta": 1.0}
    with pytest.raises(SettingsError, match="seed: got 3 as a parameter and 4 in overrides"):
        merged({"seed": 3}, {"seed": 4})
    with pytest.raises(SettingsError, match=r"checkpoint_dir: .* the flow decides it"):
        make_job(overrides={"checkpoint_dir": "/tmp"})
    with pytest.raises(SettingsError, match=r"model: got 'BPR'"):
        make_job(model="BPR")


def test_flows_load_without_the_heavy_libraries() -> None:
    """A deployment is made, and a worker's process begins, by importing the flows."""
    script = "import sys, recbole_dynamicpo.flows.study, json; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=True,
    )
    assert set(json.loads(done.stdout)).isdisjoint(
        {"torch", "recbole", "mlflow", "transformers", "matplotlib"}
    )


def test_the_signature_is_that_of_make_job() -> None:
    given = inspect.signature(dynamicpo.fn).parameters
    expected = inspect.signature(make_job).parameters
    assert {name: p.default for name, p in given.items()} == {name: p.default for name, p in expected.items()}
