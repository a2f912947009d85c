"""What decides a result: one mapping, of which every key, record and comparison is a projection.

An ingredient is a setting, or a fact that no setting tells: the digest of a file's content, the kind of
device. Each says at which stage it first matters. The key of a stage's result holds the ingredients up to
that stage, a run that is gone on with those up to its training, a reference's log-probabilities those of its
scores, and two models are comparable where the ingredients of their validation rows agree.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .names import DECIDES, MODEL_NAMES, RECORDED
from .settings import Settings, fields_of_settings, properties_folder
from .storage import sha256_json

# Where a setting of RecBole's first matters; one that is not named here is taken to shape the rows.
RECBOLE_DECIDES = {
    **dict.fromkeys(
        (
            *("learner", "clip_grad_norm", "valid_metric", "valid_metric_bigger", "eval_step"),
            "train_neg_sample_args",
        ),
        "sft",
    ),
    **dict.fromkeys(
        ("metrics", "topk", "tail_ratio", "repeatable", "metric_decimal_place", "model"), "evaluate"
    ),
    **dict.fromkeys(
        (
            *("data_path", "checkpoint_dir", "config_files", "show_progress", "state", "gpu_id", "use_gpu"),
            *("device", "log_wandb", "wandb_project", "nproc", "worker", "local_rank", "world_size"),
            *("offset", "ip", "port", "save_dataset", "save_dataloaders", "dataset_save_path"),
            *("dataloaders_save_path", "single_spec", "reproducibility", "loss_decimal_place"),
        ),
        "nothing",
    ),
}
# Facts beside the settings, and where each first matters.
FACTS = {
    "data": "prepare",
    **dict.fromkeys(("backbone", "tokenizer", "template", "adapter", "dtype", "device", "kernel"), "sft"),
    "retriever_checkpoints": "sft",
    "objective": "preference",  # the code of a class of the user's own, which no version of ours tells
}
# Settings whose names and paths stand for facts, and are no ingredients themselves.
_NAMES_OF_FACTS = {"backbone", "sft_adapter", "dtype", "prompt", "retriever_checkpoints"}
# What a title's log-probability under a fixed adapter depends on, beside the text that is scored.
_SCORES = ("fact.backbone", "fact.tokenizer", "fact.dtype", "fact.device", "fact.kernel", "load_in_4bit")
# Libraries whose next version may round otherwise; they part cached results, but end no run and no reign.
_LIBRARIES = ("torch", "transformers", "peft", "recbole", "numpy")
# Never written anywhere; there is no secret among the settings of our models.
SECRETS = {
    *("token", "hf_token", "api_key", "wandb_api_key", "password", "secret", "credential"),
    *("aws_secret_access_key", "mlflow_tracking_password", "mlflow_tracking_token"),
}


def decides(name: str) -> str:
    """Return the first stage whose result depends on a setting, as ``names.DECIDES`` calls it.

    Args:
        name: of a setting of ours or of RecBole's; ``outer.inner`` for an entry of a mapping.
    """
    outer = name.partition(".")[0]
    fields = fields_of_settings()
    if outer in fields:
        extra: Any = fields[outer].json_schema_extra
        return "nothing" if outer in _NAMES_OF_FACTS else str(extra["decides"])
    return RECBOLE_DECIDES.get(outer, "prepare")


def describes_run(name: str) -> bool:
    """Say whether a setting tells which run it is, and not only where and how it is made."""
    return decides(name) != "nothing" or name in _NAMES_OF_FACTS


@dataclass(frozen=True)
class Ingredients:
    """Everything that decides the results of one run.

    Attributes:
        values: name -> JSON value; facts are called ``fact.<name>``.
    """

    values: Mapping[str, Any]

    @classmethod
    def of(cls, params: Mapping[str, Any], facts: Mapping[str, str | None]) -> Ingredients:
        """Return the ingredients of a run.

        Args:
            params: its final settings, flat.
            facts: by the names of ``FACTS``; None where there is no such thing.
        """
        assert facts.keys() <= FACTS.keys(), facts.keys() - FACTS.keys()
        kept = {name: value for name, value in params.items() if decides(name) != "nothing"}
        return cls({**kept, **{f"fact.{name}": value for name, value in facts.items()}})

    def upto(self, stage: str) -> dict[str, Any]:
        """Return what decides the result of ``stage``: the ingredients of it and of the stages before."""
        last = RECORDED.index(stage)
        return {name: value for name, value in self.values.items() if self._at(name) <= last}

    def digest(self, stage: str) -> str:
        """Return the SHA-256 of what decides the result of ``stage``."""
        return sha256_json(self.upto(stage))

    def scores(self) -> dict[str, Any]:
        """Return what decides a title's log-probability, but for the adapter and the text."""
        return {name: self.values.get(name) for name in _SCORES}

    @staticmethod
    def _at(name: str) -> int:
        fact = name.removeprefix("fact.")
        return DECIDES.index(FACTS[fact] if name != fact else decides(name))


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the ingredients in which two records differ, sorted.

    A setting that one of them does not know came with a version in between, and every new one leaves by its
    bare default what was before it: a record without it has that default.
    """
    names = sorted({*then, *now})
    return [name for name in names if value_of(then, name) != value_of(now, name)]


def value_of(record: Mapping[str, Any], name: str) -> Any:
    """Return an ingredient's value in a record, the bare default of a setting that it does not know."""
    if name in record:
        return record[name]
    return flat_settings(bare_defaults("nothing")).get(name)


def bare_defaults(last: str) -> dict[str, Any]:
    """Return the defaults, shipped files aside, of all settings that matter to ``last`` or a stage before."""
    stages = DECIDES[: DECIDES.index(last) + 1]
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields_of_settings().items()
        if not field.is_required() and decides(name) in stages
    }


def default_settings(model: str, dataset: str) -> Settings:
    """Return the settings of a run that is given none: those of the shipped files above the bare defaults.

    Args:
        model: its name. A class of a user's own has the settings of the first of our models.
        dataset: its name; one without a shipped file has no more.
    """
    models = dict.fromkeys([MODEL_NAMES[0], *(name for name in MODEL_NAMES if name == model)])
    values: dict[str, Any] = {}
    for name in (*(f"model/{name}.yaml" for name in models), f"dataset/{dataset}.yaml"):
        file = properties_folder() / name
        if file.is_file():
            values.update(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    return Settings.from_mapping(values)


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain settings as JSON values, inner mappings as ``outer.inner``, secrets left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or key.lower() in SECRETS:
            continue
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in flat_settings(value).items()})
        elif isinstance(value, list | tuple):
            flat[key] = [str(item) if not isinstance(item, int | float | str) else item for item in value]
        elif value is None or isinstance(value, bool | int | float | str):
            flat[key] = value
    return dict(sorted(flat.items()))


def nested_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings as they were: ``outer.inner`` is an entry of the mapping ``outer``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result may depend on in its last bits."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
