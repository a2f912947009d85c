"""RecBole's Config for our models: their default files behind RecBole's own, and every setting checked.

Config asks for its defaults once it knows the model, by name or as a class, and before it works on any value.
This module imports nothing of RecBole: it is handed the class to patch.
"""

from __future__ import annotations

import codecs
import functools
import logging
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SettingsError, nearest
from ..names import MODEL_NAMES, RETRIEVER, is_prior
from ..parallel import is_one_of_several, join
from ..settings import Settings, fields_of_settings, properties_folder
from ..tracking.record import settings_of_run
from .recbole_rules import evaluation_problems, problems
from .recbole_settings import NOT_READ, REFUSED, USED
from .stock_rules import stock_problems, training_problems

logger = logging.getLogger(__name__)
HOME = "recbole_dynamicpo.training.model"  # the module of our models

# Our models by name, and the classes of others that were made from them and met so far.
known_models: dict[str, type | None] = dict.fromkeys(MODEL_NAMES)


def lineage(model_class: type) -> list[str]:
    """Return the names of our models that a class is or is made from, the most general first."""
    ours = [base.__name__ for base in model_class.__mro__ if base.__module__ == HOME]
    return [name for name in reversed(ours) if name in MODEL_NAMES]


def read_dataset_defaults(config: Any, dataset: str) -> None:
    """Let a RecBole Config read our file of a data set, if there is one, behind what it has read so far."""
    path = properties_folder() / "dataset" / f"{dataset}.yaml"
    if path.is_file():
        config._update_internal_config_dict(str(path))


def read_our_defaults(config_class: Any) -> None:
    """Patch RecBole's ``Config``; may be called any number of times."""
    original = config_class._load_internal_config_dict
    if getattr(original, "reads_dynamicpo_defaults", False):
        return

    @functools.wraps(original)
    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        ancestors = lineage(model_class)
        if ancestors:
            known_models[model] = model_class
            for name in dict.fromkeys([*MODEL_NAMES[:1], *ancestors]):
                self._update_internal_config_dict(str(properties_folder() / "model" / f"{name}.yaml"))
            load_times(self.internal_config_dict)
            read_dataset_defaults(self, dataset)
            _go_on_as_begun(self, model)
            _leave_out_foreign_options(self)
            read_byte_order_marks(self)
            check_settings(self)
            _choose_devices(self)
            join()  # now that the processes know which devices they may see

    load.reads_dynamicpo_defaults = True  # type: ignore[attr-defined]
    config_class._load_internal_config_dict = load


def _go_on_as_begun(config: Any, model: str) -> None:
    """Let a run that is gone on with keep its settings where the user says nothing else.

    Raises:
        CheckpointError: it is a run of another model, whose defaults would differ, its record is damaged or
            has settings that this version does not know.
    """
    resume = config.external_config_dict.get("resume")
    if not isinstance(resume, str) or not resume:
        return
    then = settings_of_run(Path(resume))
    began_as = then.pop("model", model)
    if began_as != model:
        raise CheckpointError(
            f"{resume}: cannot be resumed as another model: then {began_as!r}, now {model!r}"
        )
    unknown = sorted(then.keys() - {"dataset", *_known(config)})
    if unknown:
        raise CheckpointError(
            f"{resume}: cannot be resumed by this version, which has no setting {', '.join(unknown)}; wanted "
            "the version that began it"
        )
    ours = {key: value for key, value in then.items() if key not in {"dataset", *REFUSED, *NOT_READ}}
    config.internal_config_dict.update(ours)


def _choose_devices(config: Any) -> None:
    """Let all devices be visible, but for those that a user leaves out."""
    given = config.external_config_dict
    if not {**config.internal_config_dict, **given}["use_gpu"]:
        given["gpu_id"] = ""  # RecBole 1.2.1 would take the GPU all the same
    elif given.get("gpu_id") is None and is_one_of_several():
        import torch  # only now: importing this package is light

        # RecBole's default, 0, would put every process on the first one.
        devices = range(torch.cuda.device_count())
        given["gpu_id"] = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, devices))
    if given.get("gpu_id") is not None:
        seen = given["gpu_id"]
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ",".join(map(str, seen)) if isinstance(seen, tuple) else str(seen)
        )


def check_settings(config: Any, *, stock: bool = False) -> None:
    """Check every setting of a configuration that knows its defaults and has not worked on them yet.

    Args:
        config: RecBole's.
        stock: a model of RecBole's own is trained on our rows: only evaluation is checked as ours.

    Raises:
        SettingsError: naming all that is wrong.
    """
    given, defaults = config.external_config_dict, config.internal_config_dict
    values = {**defaults, **given}
    found = problems(values, given, defaults)
    if stock:
        found = [*training_problems(values), *evaluation_problems(values, given)]
    found = [*found, *_retriever_problems(values)]
    listed = [name for names in config.parameters.values() for name in names]
    known = [*listed, *defaults, *USED, *REFUSED, *NOT_READ]
    Settings.from_mapping(values, given=given, known=known, problems=found)


def _retriever_problems(values: dict[str, Any]) -> list[str]:
    """Return what is wrong with the models of RecBole's that are named as priors, a line each."""
    priors, more = values.get("catalogue_prior") or [], values.get("retriever_settings") or {}
    named, kept = [priors] if isinstance(priors, str) else priors, values.get("retriever_checkpoints") or {}
    if not isinstance(named, list | tuple) or not isinstance(more, dict) or not isinstance(kept, dict):
        return []  # the type is what is wrong
    chosen = [str(name) for name in named if str(name).startswith(RETRIEVER)]
    if not chosen or not all(map(is_prior, chosen)):
        return []
    from ..retrievers.training import problems as problems_of_models  # only now: RecBole is being imported

    return problems_of_models([name.removeprefix(RETRIEVER) for name in chosen], more, kept)


def check_stock_settings(config: Any) -> None:
    """Check the settings of a stock model's run on RecBole's own rows.

    Raises:
        SettingsError: naming all that is wrong.
    """
    given = config.external_config_dict
    found = stock_problems({**config.internal_config_dict, **given}, given)
    if found:
        raise SettingsError("wrong settings:" + "".join(f"\n  {line}" for line in found))


def read_byte_order_marks(config: Any) -> None:
    """Let UTF-8 be read with or without a byte order mark, which RecBole would take for a part of a name."""
    given = config.external_config_dict.get("encoding")
    if given is None or _codec(given) == "utf-8":
        config.external_config_dict.pop("encoding", None)
        config.internal_config_dict["encoding"] = "utf-8-sig"


def _codec(name: Any) -> str | None:
    try:
        return codecs.lookup(name).name
    except (LookupError, TypeError, ValueError):
        return None


def _leave_out_foreign_options(config: Any) -> None:
    """Pass over what only the command line of the process says and nobody reads.

    Config reads the command line of whatever program it runs in, which may have options of its own.
    """
    said_to_us = {**config.file_config_dict, **config.variable_config_dict}
    known = _known(config) - {*NOT_READ}
    for key in [key for key in config.external_config_dict if key not in known and key not in said_to_us]:
        del config.external_config_dict[key]
        logger.warning("command line: --%s is no setting, passed over%s", key, nearest(key, known))


def _known(config: Any) -> set[str]:
    """Return the names of all settings, RecBole's and ours."""
    listed = {name for names in config.parameters.values() for name in names}
    return {*fields_of_settings(), *listed, *config.internal_config_dict, *USED, *REFUSED, *NOT_READ}


def load_times(values: dict[str, Any]) -> None:
    """Let the time column be loaded where RecBole's defaults would load users and items only.

    They are meant for models without order; a sequence cannot be made of them.

    Args:
        values: the defaults, changed in place; what a user says of ``load_col`` stands elsewhere and wins.
    """
    if values.get("load_col") == {"inter": ["user_id", "item_id"]}:
        values["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
