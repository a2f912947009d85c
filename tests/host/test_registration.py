"""RecBole finds our models by name, in this process and in spawned ones, with the right precedence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

import recbole_dynamicpo
from recbole_dynamicpo.host.config import PlainConfig, parse_overrides, parse_value
from recbole_dynamicpo.names import MODEL_NAMES


def resolve(rank: int, names: tuple[str, ...]) -> None:
    """Run in a spawned child, which has imported only what it unpickles."""
    from recbole.utils import get_model, get_trainer

    for name in names:
        assert get_model(name).__name__ == name
        assert get_trainer(None, name).func.__name__ == "DynamicPOTrainer"


def test_models_trainers_and_datasets_resolve_by_name(toy_settings: dict[str, Any]) -> None:
    import recbole.data.dataset

    recbole_dynamicpo.register()
    resolve(0, MODEL_NAMES)
    assert all(hasattr(recbole.data.dataset, f"{name}Dataset") for name in MODEL_NAMES)


def test_spawned_processes_resolve_them_too() -> None:
    torch.multiprocessing.spawn(resolve, args=(MODEL_NAMES,), nprocs=1, join=True)


def test_precedence_default_file_dictionary(toy_settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("beta: 0.5\nmargin: 2.5\n")
    config = PlainConfig("DMPO", "toy", [str(file)], {**toy_settings, "margin": 3.5})
    assert (config["dynamic"], config["objective"]) == (False, "dmpo")
    assert (config["beta"], config["margin"]) == (0.5, 3.5)


def test_the_command_line_wins_in_plain_recbole(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole.config import Config

    monkeypatch.setattr(sys, "argv", ["run", "--margin=4.5", "--seed=7"])
    config = Config("SDPO", "toy", config_dict={**toy_settings, "margin": 3.5})
    assert (config["margin"], config["seed"], config["objective"]) == (4.5, 7, "sdpo")


def test_plain_quick_start_runs_our_models_and_stock_ones(toy_settings: dict[str, Any]) -> None:
    from recbole.quick_start import run_recbole

    small = {**toy_settings, "compare_stages": False}
    assert "hit@1" in run_recbole("SFTRec", "toy", config_dict=small)["test_result"]
    keys = ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    stock = {key: toy_settings[key] for key in keys} | {"epochs": 1, "topk": [5], "valid_metric": "hit@5"}
    assert "hit@5" in run_recbole("BPR", "toy", config_dict=stock)["test_result"]


def test_command_line_values_are_literals_and_never_run() -> None:
    got = parse_overrides(
        [
            "--a=1e-4",
            "--b=[1, 2]",
            "--c=True",
            "--d=none",
            "--e=x=y",
            "--f=__import__('os').getpid()",
            "--g=2024-10-1",
        ]
    )
    assert got == {
        "a": 1e-4, "b": [1, 2], "c": True, "d": None, "e": "x=y",
        "f": "__import__('os').getpid()", "g": "2024-10-1",
    }  # fmt: skip
    assert parse_value("1/0") == "1/0"


def test_import_is_light() -> None:
    """Neither RecBole nor the heavy libraries are imported, and it is quick beyond torch."""
    script = (
        "import sys, recbole_dynamicpo\n"
        "heavy = {'recbole', 'transformers', 'mlflow', 'prefect', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_with_code_is_refused() -> None:
    from recbole_dynamicpo.cli import run_recbole

    assert run_recbole(["--model=__import__('os')"]) == 2


def test_flows_are_found_in_a_checkout_that_stands_before_an_installed_package(tmp_path: Path) -> None:
    for name in ("recbole_dynamicpo", "flows"):
        shutil.copytree(Path(__file__).parents[2] / name, tmp_path / name)
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
        "import recbole_dynamicpo.flows.parameters as found; print(found.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "flows" / "parameters.py"
