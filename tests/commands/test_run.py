"""``run_recbole`` as a command: what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.cli import run_recbole
from recbole_dynamicpo.errors import PeerError, StoppedError
from recbole_dynamicpo.evaluation.report import VIEWS, read_report
from recbole_dynamicpo.host import run as host_run
from recbole_dynamicpo.names import STAGES
from recbole_dynamicpo.serving import gate

from ..helpers import near_gate

CATALOGUE = {"likelihood": "catalogue", "prompt": "sequence", "catalogue_prior": ["popularity"]}


def words(settings: dict[str, Any], *left_out: str) -> list[str]:
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return ["--model=DynamicPO", "--dataset=toy", *(f"--{key}={value}" for key, value in kept.items())]


def test_a_quiet_run_says_its_result_alone(
    toy_settings: dict[str, Any], uri: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The tables, what they leave unsaid, and last what became of the model."""
    monkeypatch.setattr(gate, "subprocess", near_gate)
    own = {**toy_settings, **CATALOGUE, "checkpoint_dir": "saved", "mlflow_tracking_uri": uri}
    assert run_recbole(["--quiet", *words(own, "state", "show_progress")]) == 0
    said, errors = capfd.readouterr()
    lines = said.splitlines()
    assert lines[0].startswith("among the candidates")
    assert "HR@1" in lines[1]
    assert any("after DynamicPO" in line for line in lines)
    assert sum("*" in line for line in lines) >= 2
    assert (
        "* the highest of its column; without priors: the language model's share alone, no counts in it"
        in lines
    )
    assert lines[-1].startswith("registered: models:/dynamicpo-toy/1, ")
    assert errors == ""


def test_the_log_says_what_was_ranked_and_how_long(
    toy_settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own = {**toy_settings, **CATALOGUE, "rank_among": ["candidates", "all"], "compare_stages": False}
    with caplog.at_level("INFO"):
        assert run_recbole(words(own)) == 0
    candidates, titles = (VIEWS[among].among for among in ("candidates", "all"))
    for line in (
        f": validated among {candidates}: hit@1 ",
        f"best validation among {candidates}: hit@1 ",
        f"test result among {titles}: hit@1 ",
    ):
        assert any(line in message.replace(" : ", " ") for message in caplog.messages), line
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    assert {*read_report(folder)["seconds"]} == {*STAGES, "validation", "reference", "evaluation"}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(StoppedError("stopped"), 143, "stopped"), (PeerError("another ended"), 1, "error: another ended")],
)
def test_an_end_in_the_loading_says_that_nothing_was_trained(
    error: BaseException, status: int, said: str, toy_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(config: object) -> None:
        raise error

    monkeypatch.setattr(host_run, "load", load)
    assert run_recbole(words(toy_settings)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{said}, before anything was trained; the same command starts again"
