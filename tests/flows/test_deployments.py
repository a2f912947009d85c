"""prefect.yaml: every deployment points to a flow that takes its parameters."""

from __future__ import annotations

from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools.validation import validate

from recbole_dynamicpo.dataset.data_files import can_be_fetched
from recbole_dynamicpo.flows import bootstrap

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


def test_every_deployment_points_to_a_flow_that_takes_its_parameters() -> None:
    found = {}
    for deployment in CONTENT["deployments"]:
        flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        validate(deployment["parameters"], flow.parameters.model_dump_for_openapi(), raise_on_error=True)
        found[f"{flow.name}/{deployment['name']}"] = deployment["parameters"]["dataset"]
    assert found == {
        **{f"dynamicpo/{name}": name for name in ("ml-100k", "lastfm", "goodreads", "steam")},
        "study/grid": "ml-100k",
    }


def test_the_deployments_data_sets_can_be_had() -> None:
    assert [d["name"] for d in CONTENT["deployments"][1:4] if not can_be_fetched(d["name"])] == []


def test_deployments_agree_with_what_bootstrap_makes() -> None:
    beats = set()
    for deployment in CONTENT["deployments"]:
        assert deployment["work_pool"]["name"] == bootstrap.POOL
        assert deployment["tags"] == [bootstrap.TAG]
        environment = deployment["work_pool"]["job_variables"]["env"]
        beats.add(int(environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]))
    (beat,) = beats
    assert bootstrap.SILENCE.total_seconds() == 3 * beat


def test_the_installed_flows_carry_the_same_file() -> None:
    assert bootstrap.DEPLOYMENTS.read_bytes() == (ROOT / "prefect.yaml").read_bytes()
