"""What others may rely on, as CONTRIBUTING.md says: these names and paths; that importing them is light."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_dynamicpo

PACKAGE = Path(recbole_dynamicpo.__file__).parent

PUBLIC = {
    "recbole_dynamicpo": "MODEL_NAMES Recommender __version__ load_recommender register",
    "recbole_dynamicpo.errors": "AdapterError BackboneError CheckpointError DataError DynamicPOError "
    "LockedError NumericsError PeerError SettingsError StoppedError TrackingError",
    "recbole_dynamicpo.objectives": "Boundary Diagnostics Objective PreferenceLoss dmpo_loss find_boundary "
    "find_objective mppo_loss preference_loss sdpo_loss sft_loss",
    "recbole_dynamicpo.job": "Job check",
    "recbole_dynamicpo.pipeline": "begin evaluate prepare train",
    "recbole_dynamicpo.data.prepare": "PreparedData prepare",
    "recbole_dynamicpo.evaluation.statistics": "Comparison compare_runs",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_is_there(module: str) -> None:
    found = importlib.import_module(module)
    assert sorted(found.__all__) == PUBLIC[module].split()
    for name in found.__all__:
        assert getattr(found, name) is not None


def trees() -> dict[str, ast.Module]:
    """Return the syntax trees of all modules by their paths within the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def test_nothing_else_says_that_it_is_public() -> None:
    saying = {
        path
        for path, tree in trees().items()
        for node in tree.body
        if isinstance(node, ast.Assign) and "__all__" in ast.dump(node.targets[0])
    }
    names = {name.removeprefix("recbole_dynamicpo").lstrip(".").replace(".", "/") for name in PUBLIC}
    assert saying == {
        f"{name}.py" if (PACKAGE / f"{name}.py").is_file() else f"{name}/__init__.py".lstrip("/")
        for name in names
    }


def test_other_packages_open_with_a_docstring_alone() -> None:
    """So that the import of one module brings no other along."""
    first = {path: tree for path, tree in trees().items() if path.endswith("__init__.py")}
    assert len(first) > 9
    full = {path for path, tree in first.items() if len(tree.body) != 1 or not ast.get_docstring(tree)}
    assert full == {"__init__.py", "objectives/__init__.py"}


FRAMEWORKS = ["recbole", "transformers", "peft", "mlflow", "prefect", "matplotlib", "scipy"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("recbole_dynamicpo", ["torch", "pandas", "pyarrow", *FRAMEWORKS]),
        ("recbole_dynamicpo.cli", ["torch", "pandas", "pyarrow", *FRAMEWORKS]),
        ("recbole_dynamicpo.objectives", FRAMEWORKS),
        ("recbole_dynamicpo.data.prepare", ["torch", *FRAMEWORKS]),
        ("recbole_dynamicpo.evaluation.statistics", ["torch", *(set(FRAMEWORKS) - {"scipy"})]),
        ("recbole_dynamicpo.serving.recommender", ["recbole", "mlflow", "prefect", "matplotlib", "scipy"]),
    ],
)
def test_importing_is_light(module: str, absent: list[str]) -> None:
    """In a process of its own, with warnings as errors."""
    script = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
