"""The rules of the house that docs/architecture.md draws: who may import whom, how large things may get.

Every import counts: those inside functions, those for type checkers (a name that only a type needs is still
knowledge of the other side), and texts that are the name of one of our modules.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recbole_dynamicpo

PACKAGE = Path(recbole_dynamicpo.__file__).parent
NAME = PACKAGE.name

GROUND = "errors hub names settings setting_types ingredients storage interrupt parallel version"
PILLARS = "data language_model objectives evaluation"

BELOW_HOST = f"{PILLARS} scoring title_trie dataset retrievers likelihoods steps serving tracking training"

# What a package may import beside itself and the ground; a place is a package or one module of it.
MAY_IMPORT = {
    **dict.fromkeys(f"{GROUND} {PILLARS}".split(), ""),
    "scoring": "language_model",
    "title_trie": "language_model scoring",
    "retrievers": "data dataset language_model.embedded",
    "serving": "data language_model scoring title_trie retrievers.retriever",
    "tracking": "serving evaluation objectives.boundary",
    "dataset": "data evaluation scoring",
    "likelihoods": "data language_model objectives scoring title_trie dataset retrievers serving",
    "steps": "language_model objectives scoring dataset likelihoods",
    "training": f"{PILLARS} scoring title_trie dataset retrievers likelihoods steps serving "
    "tracking.run_folder tracking.record tracking.journal tracking.system tracking.live",
    "host": BELOW_HOST,
    "saved_models": f"{BELOW_HOST} host",
    "stage_results": "training.checkpoint serving.folder",
    "job": f"{BELOW_HOST} host stage_results",
    "stage_processes": "job stage_results tracking.live",
    "pipeline": f"{BELOW_HOST} host stage_results stage_processes job",
    "study": "evaluation tracking.journal tracking.record stage_results job pipeline",
    "commands": f"{BELOW_HOST} host saved_models stage_results stage_processes job pipeline study",
    "cli": "commands",
    "": "host serving",  # the face, __init__
}
# The only one that knows the flows, and by name, because it starts what they need.
KNOWS_FLOWS = "commands.bootstrap"

# Where a library may be imported; one that is not here may be imported nowhere.
EMBASSIES = {
    "torch": "parallel language_model objectives scoring title_trie evaluation.scores serving "
    "tracking.system dataset retrievers likelihoods steps training host saved_models",
    "transformers": "language_model",
    "peft": "language_model",
    "recbole": "dataset retrievers.training retrievers.agreement likelihoods steps training host "
    "saved_models",
    "mlflow": "serving.mlflow_store serving.pyfunc tracking.client tracking.sync",
    "pydantic": "settings setting_types serving.requests",
    "scipy": "data.counting data.give_away data.global_order evaluation.by_user evaluation.statistics",
    "matplotlib": "tracking.figures study.figure",
    "optuna": "study.search",
    "psutil": "tracking.system",
    "pyarrow": "data.sequences evaluation.ranks saved_models.batch saved_models.users",
    "huggingface_hub": "data.download hub language_model.backbone language_model.tokenizer",
    "safetensors": "language_model.adapter_folder retrievers.scorers serving.priors training.checkpoint",
    "filelock": "storage",
    "packaging": "serving.packaging",
    "sqlalchemy": "serving.mlflow_uri",
    "gradio": "serving.demo",
    "numpy": "data evaluation scoring title_trie dataset retrievers likelihoods serving tracking.figures "
    "tracking.shown steps.numbers training host saved_models study.comparisons study.results",
    "tqdm": "data scoring training saved_models",
    "yaml": "ingredients dataset.data_files host.config study.grid",
}

MOST_LINES, MOST_MODULES = 300, 15
NO_NAMES = {"utils", "common", "helpers", "base"}  # they say nothing of what is inside


@dataclass(frozen=True)
class House:
    """The modules of a package by their names within it ("" is the face), and what each imports."""

    files: dict[str, Path]
    imports: dict[str, set[str]]  # full names

    @classmethod
    def at(cls, root: Path) -> House:
        found = {path.relative_to(root).with_suffix("").parts: path for path in sorted(root.rglob("*.py"))}
        # An installed package holds flows and properties, which stand beside it in the checkout.
        paths = {parts: path for parts, path in found.items() if parts[0] not in ("flows", "properties")}
        files = {".".join(p[:-1] if p[-1] == "__init__" else p): path for p, path in paths.items()}
        return cls(files, {name: set(_imported(path, name)) for name, path in files.items()})

    def own(self, module: str) -> set[str]:
        """Return the modules of this package that a module imports."""
        return {self._module(full) for full in self.imports[module] if _is_ours(full)} - {module}

    def _module(self, full: str) -> str:
        """Return the module that a full name is, or is a name in."""
        parts = full.split(".")[1:]
        while parts and ".".join(parts) not in self.files:
            parts.pop()
        return ".".join(parts)

    def others(self, module: str) -> set[str]:
        """Return the top names of what a module imports from elsewhere, the standard library left out."""
        names = {full.split(".")[0] for full in self.imports[module] if not full.startswith(f"{NAME}.")}
        return names - {NAME} - set(sys.stdlib_module_names)


def _is_ours(full: str) -> bool:
    return full.split(".")[0] == NAME and not full.startswith(f"{NAME}.flows")


def _imported(path: Path, module: str) -> Iterator[str]:
    """Yield the full names that a file imports anywhere."""
    package = [NAME, *filter(None, module.split("."))]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(rf"{NAME}(\.\w+)+", str(node.value)):
            yield str(node.value)


def _inside(module: str, places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places.split())


def _wrong_arrows(house: House, module: str) -> Iterator[str]:
    """Yield what a module imports of ours, or of the flows, that its package may not."""
    package = module.split(".")[0]
    if package not in MAY_IMPORT:
        yield f"{module}: has no place in MAY_IMPORT"
        return
    allowed = f"{package} {GROUND} {MAY_IMPORT[package]}"
    for target in sorted(house.own(module)):
        if not target or not _inside(target, allowed):
            yield f"{module}: may not import {target or NAME}"
    if module != KNOWS_FLOWS and any(full.startswith(f"{NAME}.flows") for full in house.imports[module]):
        yield f"{module}: may not import flows"


def _wrong_libraries(house: House, module: str) -> Iterator[str]:
    for library in sorted(house.others(module)):
        if library not in EMBASSIES:
            yield f"{module}: {library} has no place in EMBASSIES"
        elif not _inside(module, EMBASSIES[library]):
            yield f"{module}: may not import {library}, which belongs to {EMBASSIES[library]}"


def _circle(house: House) -> Iterator[str]:
    try:
        TopologicalSorter({module: house.own(module) for module in house.files}).prepare()
    except CycleError as error:
        members = error.args[1][:-1]
        yield f"a circle: {' '.join(sorted(members))}"


def _too_large(house: House) -> Iterator[str]:
    for module, path in house.files.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{module}: {lines} lines, at most {MOST_LINES}"
        if NO_NAMES & set(module.split(".")):
            yield f"{module}: a name that says nothing"
    folders = [path.parent for path in house.files.values() if path.name != "__init__.py"]
    for folder in sorted(set(folders)):
        if folders.count(folder) > MOST_MODULES:
            yield f"{folder.name}: {folders.count(folder)} modules, at most {MOST_MODULES}"


def broken_rules(root: Path) -> list[str]:
    """Return what is wrong with the package at ``root``, a line each."""
    house = House.at(root)
    found = [line for module in house.files for line in _wrong_arrows(house, module)]
    found += [line for module in house.files for line in _wrong_libraries(house, module)]
    return [*found, *_circle(house), *_too_large(house)]


def test_the_house_keeps_its_rules() -> None:
    assert broken_rules(PACKAGE) == []


def test_no_rule_is_about_what_is_not_there() -> None:
    """So that the tables stay as short as the house is."""
    house = House.at(PACKAGE)
    places = {place for words in (*MAY_IMPORT.values(), *EMBASSIES.values()) for place in words.split()}
    assert {place for place in places | set(MAY_IMPORT) if place not in house.files} == set()
    used = {(lib, module) for module in house.files for lib in house.others(module)}
    for library, words in EMBASSIES.items():
        for place in words.split():
            assert any(lib == library and _inside(module, place) for lib, module in used), (library, place)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("data/audit.py", "def f():\n    from ..scoring.prompts import Templates",
         "data.audit: may not import scoring.prompts"),
        ("evaluation/ranks.py", f"import importlib\nimportlib.import_module('{NAME}.host.run')",
         "evaluation.ranks: may not import host.run"),
        ("objectives/losses.py", "if TYPE_CHECKING:\n    from ..language_model.policy import Policy",
         "objectives.losses: may not import language_model.policy"),
        ("training/plan.py", "from ..tracking import sync", "training.plan: may not import tracking.sync"),
        ("storage.py", "from .data import audit", "storage: may not import data.audit"),
        ("job.py", "from .cli import main", "job: may not import cli"),
        ("pipeline.py", "from .commands import rank", "pipeline: may not import commands.rank"),
        ("serving/gate.py", f"import {NAME}", f"serving.gate: may not import {NAME}"),
        ("pipeline.py", f"from {NAME}.flows import tasks", "pipeline: may not import flows"),
        ("training/plan.py", "def f():\n    import mlflow.pyfunc",
         f"training.plan: may not import mlflow, which belongs to {EMBASSIES['mlflow']}"),
        ("data/audit.py", "import torch.nn",
         f"data.audit: may not import torch, which belongs to {EMBASSIES['torch']}"),
        ("job.py", "from prefect import flow", "job: prefect has no place in EMBASSIES"),
        ("study/grid.py", "from ..commands import rank", "study.grid: may not import commands.rank"),
        ("pipeline.py", "from .study import run", "pipeline: may not import study.run"),
        ("names.py", "import requests", "names: requests has no place in EMBASSIES"),
        ("scoring/utils.py", "", "scoring.utils: a name that says nothing"),
        ("scoring/long.py", "\n" * 299, "scoring.long: 301 lines, at most 300"),
        ("extra/new.py", "", "extra.new: has no place in MAY_IMPORT"),
        ("language_model/packed.py", "def f():\n    from . import logps",
         "a circle: language_model.logps language_model.packed"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found(file: str, text: str, complaint: str, tmp_path: Path) -> None:
    """In a copy of the package with one line more, which may close a circle as well."""
    copy = tmp_path / NAME
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / file).parent.mkdir(exist_ok=True)
    with (copy / file).open("a", encoding="utf-8") as handle:
        handle.write(f"\n{text}\n")
    more = set(broken_rules(copy)) - set(broken_rules(PACKAGE))
    assert complaint in more
    assert all(line.startswith("a circle: ") for line in more - {complaint})


def test_a_package_that_wants_a_wall_is_found(tmp_path: Path) -> None:
    folder = tmp_path / NAME / "scoring"
    folder.mkdir(parents=True)
    for number in range(MOST_MODULES):
        (folder / f"m{number}.py").touch()
    assert broken_rules(tmp_path / NAME) == []
    (folder / "more.py").touch()
    assert broken_rules(tmp_path / NAME) == ["scoring: 16 modules, at most 15"]
