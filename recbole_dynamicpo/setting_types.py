"""Types of settings: what YAML and command lines write for each, and what to say of anything else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from .errors import nearest
from .names import (
    AUTO,
    CANDIDATE_DISTRIBUTIONS,
    CANDIDATE_SOURCES,
    DECIDES,
    FROM_POLICY,
    HISTORY_ORDERS,
    LIKELIHOODS,
    NEGATIVE_SOURCES,
    OBJECTIVES,
    POSITIONS,
    PRIORS,
    RANKED_AMONG,
    REDRAWS,
    REFERENCE_FREE,
    RETRIEVER,
    TIME_TIES,
    is_prior,
)

_Value = TypeVar("_Value")


def setting(default: Any, help: str, *, decides: str, **limits: Any) -> Any:
    """Declare a setting.

    Args:
        default: its value where nobody gives another.
        help: what it means.
        decides: the first stage whose result depends on it; ``nothing`` if none does.
        limits: ``ge``, ``gt`` and ``le``, as pydantic calls them.
    """
    assert decides in DECIDES, decides
    return Field(default=default, description=help, json_schema_extra={"decides": decides}, **limits)


def _wanted(words: str, fits: Callable[[Any], bool], made: Callable[[Any], _Value]) -> BeforeValidator:
    """Return a check that takes what YAML and command lines write for a type, and says what it wanted."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(words)
        return made(value)

    return BeforeValidator(check)


def _number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _absent(value: Any) -> Any:
    """Return None for what YAML and command lines write for it."""
    return None if isinstance(value, str) and value.lower() in ("", "none", "null") else value


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _are_texts(value: Any) -> bool:
    listed = isinstance(value, str | list | tuple) and bool(value)
    return listed and all(isinstance(item, str) for item in value)


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def _one_of(choices: tuple[str, ...], *, dotted: bool = False) -> BeforeValidator:
    """Return a check that takes one of ``choices``; with ``dotted`` also ``package.module.Class``."""

    def check(value: Any) -> Any:
        if dotted and isinstance(value, str) and _DOTTED.fullmatch(value):
            return value
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}{nearest(str(value), choices)}")
        return value

    return BeforeValidator(check)


def _some_of(choices: tuple[str, ...], least: int) -> BeforeValidator:
    """Return a check that takes a list of ``choices``, each once; fewer than ``least`` are too few."""

    wanted = f"a list of some of {', '.join(choices)}, each once"

    def check(value: Any) -> tuple[str, ...]:
        value = [] if _absent(value) is None else value
        if not isinstance(value, str | list | tuple):
            raise ValueError(wanted)
        listed = _texts(value)
        if len(listed) < least or len(set(listed)) < len(listed) or not set(listed) <= set(choices):
            raise ValueError(wanted)
        return listed

    return BeforeValidator(check)


def _priors() -> BeforeValidator:
    """Return a check that takes a list of priors, each once: of ``PRIORS``, or models of RecBole's."""
    wanted = f"a list of some of {', '.join(PRIORS)} and {RETRIEVER}<model of RecBole's>, each once"

    def check(value: Any) -> tuple[str, ...]:
        value = [] if _absent(value) is None else value
        if not (isinstance(value, str | list | tuple) and all(isinstance(name, str) for name in value)):
            raise ValueError(wanted)
        listed = _texts(value)
        if len(set(listed)) < len(listed) or not all(map(is_prior, listed)):
            raise ValueError(wanted)
        return listed

    return BeforeValidator(check)


def _mapping(words: str, fits: Callable[[Any], bool]) -> BeforeValidator:
    """Return a check that takes nothing, or a mapping from texts to values that fit."""

    def right(value: Any) -> bool:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return _absent(value) is None or all(isinstance(key, str) and fits(one) for key, one in pairs)

    return _wanted(words, right, lambda value: dict(value) if _absent(value) else None)


DTYPES = (AUTO, "float32", "bfloat16", "float64")


def _schema(choices: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"enum": list(choices)})


def _list_schema(choices: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"type": "array", "items": {"enum": list(choices)}, "uniqueItems": True})


# A class of the user's own is named by a dotted path; no schema of a server's lets one through.
Objective = Annotated[str, _one_of(OBJECTIVES, dotted=True), _schema(OBJECTIVES)]
Dtype = Annotated[str, _one_of(DTYPES), _schema(DTYPES)]
CandidateSource = Annotated[str, _one_of(CANDIDATE_SOURCES), _schema(CANDIDATE_SOURCES)]
Distribution = Annotated[str, _one_of(CANDIDATE_DISTRIBUTIONS), _schema(CANDIDATE_DISTRIBUTIONS)]
HistoryOrder = Annotated[str, _one_of(HISTORY_ORDERS), _schema(HISTORY_ORDERS)]
Likelihood = Annotated[str, _one_of(LIKELIHOODS), _schema(LIKELIHOODS)]
RankedAmong = Annotated[tuple[str, ...], _some_of(RANKED_AMONG, 1), _list_schema(RANKED_AMONG)]
Priors = Annotated[
    tuple[str, ...],
    _priors(),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
]
Positions = Annotated[str, _one_of(POSITIONS), _schema(POSITIONS)]
NegativeSource = Annotated[str, _one_of(NEGATIVE_SOURCES), _schema(NEGATIVE_SOURCES)]
Redraw = Annotated[str, _one_of(REDRAWS), _schema(REDRAWS)]
TimeTies = Annotated[str, _one_of(TIME_TIES), _schema(TIME_TIES)]
Flag = Annotated[bool, _wanted("true or false", lambda value: isinstance(value, bool), bool)]
Automatic = Annotated[
    bool | str,
    _wanted(
        "true, false or auto", lambda value: value == AUTO or isinstance(value, bool), lambda value: value
    ),
    WithJsonSchema({"enum": [True, False, AUTO]}),
]
Whole = Annotated[
    int, _wanted("a whole number", lambda value: _number(value) and float(value).is_integer(), int)
]
Number = Annotated[float, _wanted("a finite number", _number, float)]
Text = Annotated[
    str, Field(min_length=1), _wanted("a non-empty text", lambda v: isinstance(v, str) and bool(v), str)
]
Texts = Annotated[
    tuple[str, ...],
    _wanted("a list of texts", _are_texts, _texts),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
PerhapsMapped = Annotated[
    dict[str, Any] | None,
    _mapping("name: value pairs", lambda value: True),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}]}),
]
PerhapsPaths = Annotated[
    dict[str, str] | None,
    _mapping("model: path pairs", lambda value: isinstance(value, str) and bool(value)),
    WithJsonSchema(
        {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]}
    ),
]
PerhapsNumber = Annotated[Number | None, BeforeValidator(_absent)]
PerhapsWhole = Annotated[Whole | None, BeforeValidator(_absent)]
Perhaps = Annotated[Text | None, BeforeValidator(_absent)]


# What to say of pydantic's own kinds of error; ``{0}`` is the limit.
_LIMITS = {
    "greater_than_equal": ("ge", "at least {0:g}"),
    "less_than_equal": ("le", "at most {0:g}"),
    "greater_than": ("gt", "more than {0:g}"),
}


def problem_of(error: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return one line for an error of pydantic's: the setting, what was got, what was wanted."""
    name, kind, context = str(error["loc"][0]), error["type"], error.get("ctx", {})
    got = values[name]
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        wanted = words.format(context[limit])
    else:
        wanted = str(context["error"]) if "error" in context else str(error["msg"])
    return f"{name}: got {got!r}, wanted {wanted}"


def contradictions(settings: Any) -> list[str]:
    """Return what is wrong between settings that are right each for itself, a line each."""
    problems = []
    if settings.num_candidates == 0:
        problems.append("num_candidates: got 0, wanted at least 2 (20 in the paper)")
    elif settings.num_negatives > settings.num_candidates - 1:
        problems.append(
            f"num_negatives: got {settings.num_negatives}, wanted at most num_candidates - 1 = "
            f"{settings.num_candidates - 1}"
        )
    if settings.positions == "all" and settings.likelihood != "catalogue":
        problems.append("positions: wanted last, as likelihood is not catalogue")
    if settings.negatives in FROM_POLICY and settings.positions != "all":
        problems.append(f"negatives: got {settings.negatives}, wanted uniform, as positions is not all")
    if settings.negatives == "prior" and not settings.catalogue_prior:
        problems.append("negatives: wanted uniform, as there is no catalogue_prior")
    if settings.catalogue_prior and settings.likelihood != "catalogue":
        problems.append("catalogue_prior: wanted none, as likelihood is not catalogue")
    for name in settings.retriever_checkpoints or {}:
        if f"{RETRIEVER}{name}" not in settings.catalogue_prior:
            wanted = ", ".join(prior for prior in settings.catalogue_prior if prior.startswith(RETRIEVER))
            problems.append(
                f"retriever_checkpoints: got {name!r}, wanted models of catalogue_prior ({wanted or 'none'})"
            )
    if settings.first_stage and not settings.catalogue_prior:
        problems.append("first_stage: wanted 0, as there is no catalogue_prior")
    if "all" in settings.rank_among and settings.likelihood != "catalogue":
        problems.append("rank_among: wanted candidates alone, as likelihood is not catalogue")
    if (
        settings.epochs
        and not settings.sft_epochs
        and not settings.sft_adapter
        and settings.objective not in REFERENCE_FREE
    ):
        problems.append(
            "sft_epochs: got 0 without sft_adapter; the reference must be an SFT policy, never the bare "
            "backbone, so wanted at least 1 or the folder of an SFT adapter"
        )
    return problems
