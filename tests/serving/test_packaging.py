"""What serving needs is what a logged model names, and no more; our code travels with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recbole_dynamicpo.serving.packaging import DISTRIBUTION, package_code, requirements

from ..helpers.mlflow_world import load_logged, make_store
from ..helpers.saved_recommender import as_json
from ..helpers.served_model import post, served

ROOT = Path(__file__).parents[2]
HISTORY = ["Bear", "Delta"]

# Loads a model and predicts where the modules in argv[2] cannot be found.
ALONE = """
import importlib.machinery, json, sys
model, hidden = sys.argv[1], set(json.loads(sys.argv[2]))
class Finder(importlib.machinery.PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return importlib.machinery.PathFinder.find_spec(name, path, target)
# An editable installation of this package has a finder of its own.
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Finder]
import mlflow.pyfunc
(answer,) = mlflow.pyfunc.load_model(model).predict([{"history": ["Bear", "Delta"], "k": 4}])
import recbole_dynamicpo
loaded = sorted({name.partition(".")[0] for name in sys.modules} & hidden)
print(json.dumps([answer.model_dump()["ranked"], recbole_dynamicpo.__file__, loaded]))
"""


def needed(lines: list[str]) -> set[str]:
    """Return the distributions that requirements bring, as far as they are installed here."""
    found: set[str] = set()
    open_ = [Requirement(line) for line in lines]
    while open_:
        wanted = open_.pop()
        name, extras = canonicalize_name(wanted.name), wanted.extras or {""}
        if name in found and not wanted.extras:
            continue
        try:
            further = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # of another system, or an optional one
            continue
        found.add(name)
        open_ += [
            one
            for one in further
            if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
        ]
    return found


def not_named() -> set[str]:
    """Return the modules of everything installed that the requirements do not bring."""
    brought = {*needed(requirements()), DISTRIBUTION}
    return {
        module
        for module, owners in packages_distributions().items()
        if not brought & {canonicalize_name(owner) for owner in owners}
    }


def test_the_list_takes_its_bounds_from_our_own_requirements() -> None:
    ours = {
        one.name: str(one.specifier)
        for one in map(Requirement, requires(DISTRIBUTION) or [])
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }
    ours["mlflow-skinny"] = ours.pop("mlflow")
    named = {one.name: str(one.specifier) for one in map(Requirement, requirements())}
    assert named.items() <= ours.items()
    assert {"torch", "transformers", "peft", "mlflow-skinny"} <= set(named)
    assert not {"recbole", "prefect", "ray", "matplotlib", "sqlalchemy", DISTRIBUTION} & set(named)


def test_the_code_is_the_package_without_what_only_orchestrates(tmp_path: Path) -> None:
    package_code(tmp_path / "code")
    files = {path.relative_to(tmp_path / "code").as_posix() for path in (tmp_path / "code").rglob("*.*")}
    assert {"__init__.py", "serving/recommender.py", "properties/prompts/movie.txt", "py.typed"} <= files
    assert not [name for name in files if name.startswith("flows/") or "__pycache__" in name]


@pytest.mark.parametrize("priors", [None, ["popularity"]], ids=["vocabulary", "catalogue"])
def test_a_model_ranks_where_nothing_can_be_imported_that_it_does_not_name(
    priors: list[str] | None, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Outside the project, whose code comes from the model alone."""
    store = make_store(tmp_path / "store", tiny_backbone, priors)
    hidden = not_named()
    there = {"ray"} if sys.version_info < (3, 12) else set()  # what RecBole brings along only there
    assert {"recbole", "prefect", "matplotlib", "sqlalchemy", "pyarrow", "pytest", *there} <= hidden
    assert not {"torch", "mlflow", "peft", "scipy"} & hidden
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "RECBOLE_DYNAMICPO_BACKBONE": str(store.backbone)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(store.files), json.dumps(sorted(hidden))],
        cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranked, code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert ranked == as_json(load_logged(store).rank(HISTORY, k=4))
    assert Path(code) == store.files / "code" / "recbole_dynamicpo" / "__init__.py"
    assert loaded == []


@pytest.mark.long
@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_an_environment_of_what_the_model_names_serves_it(tiny_backbone: Path, tmp_path: Path) -> None:
    """A fresh one, filled by pip with the lines of the model's own file."""
    store = make_store(tmp_path / "store", tiny_backbone, ["popularity"])
    place = tmp_path / "lean"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = str(place / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, "-r", str(store.files / "requirements.txt")], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    installed = {canonicalize_name(one["name"]) for one in json.loads(listed.stdout)}
    assert not {"recbole", "prefect", "ray", "mlflow", "matplotlib", DISTRIBUTION} & installed
    with served(store, str(store.files), python) as address:
        status, body = post(address, {"inputs": [{"history": HISTORY, "k": 4}]})
    assert status == 200
    found = body["predictions"][0]["ranked"]
    expected = load_logged(store).rank(HISTORY, k=4)
    assert [item["title"] for item in found] == [item.title for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)
