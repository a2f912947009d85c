"""The parameters that every flow of one pipeline takes, and what Prefect's server lets through.

A deployment carries a JSON schema of them, made from the package's settings, with which the server refuses
a wrong value when a run is submitted. Whatever comes another way is refused by ``job.check``, before
the first stage. No value is ever evaluated as code.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml
from pydantic import TypeAdapter, WithJsonSchema

from recbole_dynamicpo import MODEL_NAMES
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.settings import Settings
from recbole_dynamicpo.study.grid import shipped_path

from .logs import run_logs

STORE_VARIABLE = "RECBOLE_DYNAMICPO_STORE"

_SETTINGS: dict[str, dict[str, Any]] = TypeAdapter(Settings).json_schema()["properties"]
# Settings that the flow itself decides.
_NOT_OVERRIDDEN = {"dataset", "model", "config_file", "config_files", "checkpoint_dir", "resume"}
_NULL = {"type": "null"}
# A data set's name becomes part of paths.
_NAME = {"type": "string", "pattern": r"^\w[\w.-]{0,99}$"}


def setting_schema(name: str, *, optional: bool = False) -> dict[str, Any]:
    """Return the JSON schema of a setting, with its limits; ``optional`` also lets null through.

    Limits stand beside the types, so that a message tells the limit and not only that nothing fitted.
    """
    schema = dict(_SETTINGS[name])
    for word in ("default", "title", "description", "decides"):
        schema.pop(word, None)
    absent = optional or "anyOf" in schema
    for part in schema.pop("anyOf", []):
        schema |= part if part != _NULL else {}
    if not absent:
        return schema
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    kinds = {word: schema.pop(word) for word in ("type", "items") if word in schema}
    return {"anyOf": [kinds, _NULL], **schema}


def overrides_schema() -> dict[str, Any]:
    """Return the JSON schema of the mapping of further settings: the known ones, and no others."""
    known = {name: setting_schema(name) for name in _SETTINGS}
    known = {**{name: {} for name in _recbole_settings()}, **known}
    properties = {name: schema for name, schema in known.items() if name not in _NOT_OVERRIDDEN}
    return {"anyOf": [{"type": "object"}, _NULL], "properties": properties, "additionalProperties": False}


def _recbole_settings() -> list[str]:
    """Return the names of RecBole's general settings, read without importing RecBole."""
    spec = importlib.util.find_spec("recbole")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    names: list[str] = []
    for value in runpy.run_path(str(home / "utils" / "argument_list.py")).values():
        names += value if isinstance(value, list) else []
    for file in ("overall.yaml", "dataset/sample.yaml"):
        names += yaml.safe_load((home / "properties" / file).read_text(encoding="utf-8"))
    return sorted(set(names))


# What the server lets through, by parameter.
SCHEMAS: dict[str, dict[str, Any]] = {
    "dataset": {"anyOf": [_NAME, _NULL]},
    "model": {"enum": [*MODEL_NAMES, None]},
    **{
        name: setting_schema(name, optional=True)
        for name in ("objective", "dynamic", "backbone", "num_negatives", "seed")
    },
    **{name: setting_schema(name, optional=True) for name in ("sft_rows", "preference_rows", "eval_rows")},
    "nproc": {"anyOf": [{"type": "integer"}, _NULL], "minimum": 1, "maximum": 64},
    "settings_file": {"anyOf": [{"type": "string"}, _NULL], "minLength": 1},
    "overrides": overrides_schema(),
}


def make_job(
    dataset: str | None = None,
    model: str | None = None,
    objective: str | None = None,
    dynamic: bool | None = None,
    backbone: str | None = None,
    num_negatives: int | None = None,
    seed: int | None = None,
    sft_rows: int | None = None,
    preference_rows: int | None = None,
    eval_rows: int | None = None,
    nproc: int | None = None,
    settings_file: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """Return the job (``recbole_dynamicpo.job.Job``) that the parameters ask for.

    Args:
        dataset: Name of the data set; none for that of the settings file, else ml-100k.
        model: DynamicPO or one of the plain baselines SFTRec, DMPO, MPPO, SDPO; none for that of the
            settings file, else DynamicPO.
        objective: Preference objective; none for the model's own.
        dynamic: Boundary negatives with dual-margin beta; none for the model's own.
        backbone: Embedded name, local folder or hub id of the language model.
        num_negatives: Negatives K that enter the objective.
        seed: Of everything that is drawn.
        sft_rows: Training rows of the SFT stage; 0 for all.
        preference_rows: Training rows of the preference stage; 0 for all.
        eval_rows: Test rows; 0 for all.
        nproc: Processes of the worker's machine that train and evaluate together, one a GPU.
        settings_file: YAML file with settings on the worker's machine, or a shipped one such as paper.yaml.
        overrides: Further settings; they win over the settings file.

    Raises:
        SettingsError: a model that is not ours, or one setting given twice with two values.
    """
    from recbole_dynamicpo.errors import SettingsError
    from recbole_dynamicpo.job import Job
    from recbole_dynamicpo.names import OBJECTIVES

    for named in (objective, (overrides or {}).get("objective")):
        if named is not None and named not in OBJECTIVES:  # what comes over a wire names no code
            raise SettingsError(f"objective: got {named!r}, wanted one of {', '.join(OBJECTIVES)}")
    flat = {
        **{"objective": objective, "dynamic": dynamic, "backbone": backbone, "seed": seed},
        **{"num_negatives": num_negatives, "sft_rows": sft_rows},
        **{"preference_rows": preference_rows, "eval_rows": eval_rows},
    }
    files = (shipped_path(settings_file),) if settings_file else ()
    settings = {"show_progress": False, **merged(flat, overrides or {})}
    return Job(model or "", dataset or "", files, settings, str(store()), nproc or 1)


def merged(flat: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that parameters and ``overrides`` give together.

    Raises:
        SettingsError: both give the same one differently, or the flow itself decides it.
    """
    given = {name: value for name, value in flat.items() if value is not None}
    problems = [
        f"{name}: got {given[name]!r} as a parameter and {overrides[name]!r} in overrides, wanted one of them"
        for name in sorted(given.keys() & overrides.keys())
        if given[name] != overrides[name]
    ]
    decided = sorted(_NOT_OVERRIDDEN & overrides.keys())
    problems += [f"{name}: got it in overrides, but the flow decides it" for name in decided]
    if problems:
        raise SettingsError("wrong settings:\n  " + "\n  ".join(problems))
    return {**overrides, **given}


def store() -> Path:
    """Return the folder of stage results and run records: ``saved`` in the present folder, or what
    the environment variable RECBOLE_DYNAMICPO_STORE says."""
    return (Path.cwd() / (os.environ.get(STORE_VARIABLE) or "saved")).resolve()


def takes_job(body: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a flow's function that takes the parameters above, for a body that takes the job they ask for.

    Its signature carries the JSON schemas; its log records, and those of the package, go to the run's log.
    """

    @functools.wraps(body)
    def function(*args: Any, **kwargs: Any) -> Any:
        with run_logs():
            return body(make_job(*args, **kwargs))

    function.__signature__ = limited_signature(make_job, SCHEMAS)  # type: ignore[attr-defined]
    texts = inspect.getdoc(make_job) or ""
    arguments = texts[texts.index("Args:") : texts.index("Raises:")]
    function.__doc__ = f"{inspect.getdoc(body)}\n\n{arguments}"
    return function


def limited_signature(
    function: Callable[..., Any], schemas: Mapping[str, dict[str, Any]]
) -> inspect.Signature:
    """Return a function's signature with the JSON schemas of its parameters, as Prefect reads them."""
    hints = get_type_hints(function)
    plain = inspect.signature(function)
    limited = [
        parameter.replace(annotation=Annotated[hints[name], WithJsonSchema(schemas[name])])
        for name, parameter in plain.parameters.items()
    ]
    return plain.replace(parameters=limited, return_annotation=dict[str, Any])
