"""Make RecBole find our models, trainers, data sets and default settings by name.

RecBole looks a model up as a module below ``recbole.model``, a trainer and a data set as attributes
of its modules, and default settings in its own folder; it has no entry points. ``register`` only
puts a finder on ``sys.meta_path``. RecBole's Config asks for the model class before it reads
defaults, data set or trainer, so that is when the rest is attached. A second finder patches RecBole's
trainer when it is imported, so that stock models load their own checkpoints. No installed file is touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..names import MODEL_NAMES
from ..settings import properties_folder, read_dataset_defaults
from .stock_checkpoints import load_own_checkpoints

if TYPE_CHECKING:
    from ..tracking.live import Tracker

_PACKAGE = "recbole.model.sequential_recommender."
_MODULES = {_PACKAGE + name.lower() for name in MODEL_NAMES}
_TRAINER = "recbole.trainer.trainer"


class _ModelFinder(MetaPathFinder):
    """Answers for the module names under which RecBole looks for our models."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _ModelLoader()) if fullname in _MODULES else None


class _ModelLoader(Loader):
    """Gives a module that carries our model classes; they keep their own ``__module__``."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        attach()
        source = importlib.import_module("recbole_dynamicpo.training.model")
        for name in MODEL_NAMES:
            setattr(module, name, getattr(source, name))


class _TrainerFinder(MetaPathFinder):
    """Lets the module of RecBole's trainers be found as ever, and patched once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRAINER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: ModuleType) -> None:
                run(module)
                load_own_checkpoints(module)

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Let RecBole find our models by name; may be called any number of times."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ModelFinder())
    if not any(isinstance(finder, _TrainerFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TrainerFinder())  # before the finder that would find the real module
    if _TRAINER in sys.modules:
        load_own_checkpoints(sys.modules[_TRAINER])


class MLflowTracking:
    """Copies runs to MLflow while they grow, and registers their models when they are whole."""

    def open(self, folder: Path, uri: str | None) -> Tracker:
        """Return who copies the run in ``folder``."""
        from ..tracking.sync import open_tracker

        return open_tracker(folder, uri)

    def publish(self, folder: Path, uri: str | None) -> None:
        """Register the run's model where that is asked for; trouble is a warning."""
        from ..serving.mlflow_uri import resolve_uri
        from ..tracking.registry import register as register_model
        from ..tracking.registry import wants_registration

        place = resolve_uri(uri)
        if place is not None and wants_registration(folder):
            register_model(folder, place)


def attach() -> None:
    """Attach trainers, data sets and default settings to RecBole; idempotent."""
    from functools import partial

    import recbole.data.dataset
    import recbole.trainer

    from ..training.dataset import DynamicPODataset
    from ..training.trainer import DynamicPOTrainer

    # RecBole takes the attribute and calls it.
    trainer = partial(DynamicPOTrainer, tracking=MLflowTracking())
    for name in MODEL_NAMES:
        setattr(recbole.trainer, f"{name}Trainer", trainer)
        setattr(recbole.data.dataset, f"{name}Dataset", DynamicPODataset)
    _attach_defaults()


def _attach_defaults() -> None:
    """Let RecBole's Config read our default files behind its own, for our models only."""
    from recbole.config import Config

    original = Config._load_internal_config_dict
    if getattr(original, "reads_dynamicpo_defaults", False):
        return

    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if model in MODEL_NAMES:
            for name in dict.fromkeys(["DynamicPO", model]):
                self._update_internal_config_dict(str(properties_folder() / "model" / f"{name}.yaml"))
            _load_times(self.internal_config_dict)
            read_dataset_defaults(self, dataset)

    load.reads_dynamicpo_defaults = True  # type: ignore[attr-defined]
    Config._load_internal_config_dict = load


def _load_times(values: dict[str, Any]) -> None:
    """Let the time column be loaded where RecBole's defaults would load users and items only.

    They are meant for models without order; a sequence cannot be made of them.
    """
    if values.get("load_col") == {"inter": ["user_id", "item_id"]}:
        values["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
