"""Make RecBole find our models, trainers, data sets and default settings by name.

RecBole looks a model up as a module below ``recbole.model``, a trainer and a data set as attributes
of its modules, and default settings in its own folder; it has no entry points. ``register`` only
puts two finders on ``sys.meta_path``: one answers for our models, the other patches some of RecBole's
modules when they are imported (``_PATCHES``), so that trainers, data sets and defaults are found whether a
model comes by name, as a class or as a class made from ours. No installed file is touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..settings import package_folder
from .compat import prepare
from .defaults import HOME, known_models, read_our_defaults
from .stock_checkpoints import load_own_checkpoints

if TYPE_CHECKING:
    from ..tracking.live import Tracker

_PACKAGE = "recbole.model.sequential_recommender."


class _ModelFinder(MetaPathFinder):
    """Answers for the module names under which RecBole looks for our models."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname == _PACKAGE + name.lower() for name in known_models):
            return None
        return ModuleSpec(fullname, _ModelLoader())


class _ModelLoader(Loader):
    """Gives a module that carries our model classes; they keep their own ``__module__``."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def attribute(name: str) -> Any:
            if name not in known_models:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            # The class that was met last: one that is defined anew replaces the old one.
            return known_models[name] or getattr(importlib.import_module(HOME), name)

        vars(module)["__getattr__"] = attribute


class _Patcher(MetaPathFinder):
    """Lets some of RecBole's modules be found as ever, and patched once they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "recbole":
            prepare()
        if fullname not in _PATCHES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: ModuleType) -> None:
                run(module)
                _PATCHES[fullname](module)

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


class _FlowsFinder(MetaPathFinder):
    """Finds the flows beside a checkout's package, which Python takes before the installed one that has them.

    So it does wherever a script is run in a checkout that was installed from, and not with ``-e``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, face = package_folder(), package_folder().parent / "flows" / "__init__.py"
        if fullname != f"{package.name}.flows" or not face.is_file():
            return None
        return spec_from_file_location(fullname, face, submodule_search_locations=[str(face.parent)])


def register() -> None:
    """Let RecBole find our models by name; may be called any number of times."""
    if not any(isinstance(finder, _FlowsFinder) for finder in sys.meta_path):
        sys.meta_path.append(_FlowsFinder())
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ModelFinder())
    if not any(isinstance(finder, _Patcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Patcher())  # before the finder that would find the real module
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            patch(sys.modules[name])


class MLflowTracking:
    """Copies runs to MLflow while they grow, and registers their models when they are whole."""

    def open(self, folder: Path, uri: str | None) -> Tracker:
        """Return who copies the run in ``folder``."""
        from ..tracking.sync import open_tracker

        return open_tracker(folder, uri)

    def publish(self, folder: Path, uri: str | None) -> str | None:
        """Register the run's model where that is asked for, and say as what; trouble is a warning."""
        from ..serving.mlflow_uri import resolve_uri
        from ..tracking.registry import register as register_model
        from ..tracking.registry import wants_registration

        place = resolve_uri(uri)
        if place is None or not wants_registration(folder):
            return None
        registered = register_model(folder, place)
        return registered.line if registered else None


def _give_trainers(module: ModuleType) -> None:
    """Let RecBole find our trainer where it looks for ``<model>Trainer``."""

    def trainer(name: str) -> Any:
        from ..training.trainer import DynamicPOTrainer

        return partial(DynamicPOTrainer, tracking=MLflowTracking())  # RecBole only calls it

    _answer(module, "Trainer", trainer)


def _give_data_sets(module: ModuleType) -> None:
    """Let RecBole find our data set where it looks for ``<model>Dataset``."""

    def data_set(name: str) -> Any:
        from ..dataset.dataset import DynamicPODataset

        return DynamicPODataset

    _answer(module, "Dataset", data_set)


def _answer(module: ModuleType, suffix: str, make: Callable[[str], Any]) -> None:
    """Let a module have the attribute ``<model><suffix>`` for each of our models, made when first asked."""

    def attribute(name: str) -> Any:
        if not name.endswith(suffix) or name.removesuffix(suffix) not in known_models:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        value = make(name)
        setattr(module, name, value)
        return value

    vars(module)["__getattr__"] = attribute


def _read_defaults(module: ModuleType) -> None:
    read_our_defaults(vars(module)["Config"])


def _answer_for_all(module: ModuleType) -> None:
    from .case_study import answer_for_all

    answer_for_all(module)


# What is done to which module of RecBole's once it is imported; each may be done again.
_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "recbole.trainer": _give_trainers,
    "recbole.trainer.trainer": load_own_checkpoints,
    "recbole.data.dataset": _give_data_sets,
    "recbole.config.configurator": _read_defaults,
    "recbole.utils.case_study": _answer_for_all,
}
