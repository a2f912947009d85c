"""Who may import whom: each module only from those before it in ORDER, and heavy libraries in few places."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recbole_dynamicpo

PACKAGE = Path(recbole_dynamicpo.__file__).parent
NAME = PACKAGE.name

# From what knows nothing to what knows everything. A new module needs a place here.
_ORDER = """
    version errors names interrupt stock histories storage journal reference
    batches boundary objectives logps lower_layers prompts collate settings stages
    embedded attention backbone adapter_folder policy checkpoint run_folder record system memory scorer
    catalogue sampling ranks statistics report generate
    prepared_files published converter sequences audit download prepare prompt_check inter_file known_data
    packaging card model_store saved_folders
    dataset model recommender requests mlflow_model points figures mirror live
    stores tracking gate registry evaluation recording stage_rows steps trainer
    registration stock_record plain_config runner
    stage_results job pipeline
    saved_evaluation baselines commands cli __init__
"""
ORDER = _ORDER.split()

TENSORS = ["batches", "boundary", "objectives", "logps", "lower_layers", "collate"]
TEXT = [
    *("errors", "storage", "prompts", "catalogue", "stages", "settings", "journal"),
    "prepared_files",
]
MLFLOW = {"tracking", "mlflow_model", "model_store"}
WITHOUT_RECBOLE = ["recommender", "prepare", "statistics", "report", "checkpoint"]


def modules() -> list[str]:
    """Return the names of all modules, those in folders with dots."""
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts) for path in found)


def imports(module: str, *, for_types: bool) -> set[str]:
    """Return the full names that a module imports anywhere in its code.

    Args:
        module: name within the package.
        for_types: count the imports under ``if TYPE_CHECKING`` too.
    """
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    return {name for node in _walk(tree, for_types) for name in _names(node, module)}


def _walk(node: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if for_types or not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield from _walk(child, for_types)


def _names(node: ast.AST, module: str) -> list[str]:
    """Return what one node imports; a text that is the name of one of our modules counts as an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        inside = [f"{NAME}.{alias.name}" for alias in node.names] if node.module == NAME else []
        return inside or [str(node.module)]
    if isinstance(node, ast.ImportFrom):
        above = [NAME, *module.split(".")][: -node.level]
        full = [*above, node.module] if node.module else above
        return [".".join(full)] if node.module else [".".join([*full, alias.name]) for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value] if re.fullmatch(rf"{NAME}\.\w+", node.value) else []
    return []


def own(names: set[str]) -> set[str]:
    """Return the modules of this package among full names."""
    return {name.split(".")[1] for name in names if name.startswith(f"{NAME}.")}


def others(names: set[str]) -> set[str]:
    """Return the top names of other packages, the standard library left out."""
    return {name.split(".")[0] for name in names} - {NAME} - set(sys.stdlib_module_names)


def reached(module: str) -> set[str]:
    """Return the other packages that running a module's code can import, through ours too."""
    found, todo, seen = set(), [module], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        names = imports(name, for_types=False)
        found |= others(names)
        todo += own(names) - seen - {"registration"}
    return found


def test_every_module_has_its_place() -> None:
    assert sorted(set(modules()) - set(ORDER)) == [], "not in ORDER"
    assert sorted(set(ORDER) - set(modules())) == [], "in ORDER, but no such file"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_from_above(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert own(imports(module, for_types=True)) - above == set()


@pytest.mark.parametrize("module", TENSORS)
def test_the_mathematics_needs_torch_alone(module: str) -> None:
    assert others(imports(module, for_types=True)) == {"torch"}


@pytest.mark.parametrize("module", TEXT)
def test_plain_modules_need_nothing(module: str) -> None:
    assert others(imports(module, for_types=True)) == set()


@pytest.mark.parametrize("module", modules())
def test_mlflow_and_prefect_stay_out(module: str) -> None:
    """MLflow is known to three modules; flows know the package, never the other way round."""
    found = others(imports(module, for_types=True))
    assert "prefect" not in found
    assert "flows" not in found
    assert "mlflow" not in found or module in MLFLOW


@pytest.mark.parametrize("module", WITHOUT_RECBOLE)
def test_ranking_and_preparing_need_no_recbole(module: str) -> None:
    assert "recbole" not in reached(module)


def test_the_walk_sees_what_it_should() -> None:
    """So that an empty answer above means something."""
    assert own(imports("boundary", for_types=True)) == {"batches"}
    assert "recbole" in reached("trainer")
    assert {"torch", "transformers", "peft"} <= reached("recommender")
    assert own(imports("registration", for_types=True)) >= {"model", "trainer", "dataset", "settings"}


def test_importing_the_package_is_light() -> None:
    """In a process of its own, with warnings as errors."""
    heavy = ["recbole", "transformers", "mlflow", "prefect", "peft", "pandas"]
    script = f"import sys, {NAME}; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
