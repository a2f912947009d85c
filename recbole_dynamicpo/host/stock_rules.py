"""What is wrong with the settings of a stock model's run, found before anything is loaded.

RecBole 1.2.1 says so after the first epoch, by a traceback, or not at all: an optimizer that it does not know
becomes Adam.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from ..errors import nearest, short
from .recbole_rules import passed_over, results_of
from .recbole_settings import LEARNERS, METRICS, PLACELESS, USED, VALUE_METRICS

# Settings that our models read otherwise, or that are looked up with their reasons below.
_OTHERWISE = {"learner", "metrics", "repeatable", "eval_args", "model", "dataset", "config_files"}
# Names of columns that a model without order or negatives may do without.
_PERHAPS = {"TIME_FIELD", "ITEM_LIST_LENGTH_FIELD", "LIST_SUFFIX", "NEG_PREFIX", "USER_ID_FIELD"}


def stock_problems(values: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Return what is wrong, a line each.

    Args:
        values: all settings, before RecBole works on them.
        given: the names among them that the user wrote.
    """
    kinds = {name: kind for name, kind in USED.items() if name in given and name not in _OTHERWISE}
    wrong = [
        name
        for name, kind in kinds.items()
        if not kind.fits(values[name]) and not (name in _PERHAPS and values[name] is None)
    ]
    found = [f"{name}: got {short(values[name])}, wanted {kinds[name].wanted}" for name in wrong]
    return [*found, *training_problems(values), *_evaluation(values, given, wrong), *passed_over(values)]


def training_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with how a stock model is trained and recorded."""
    learner = values.get("learner")
    if str(learner).lower() == "sparse_adam":
        yield f"learner: got {learner!r}, but no model of RecBole's has the sparse gradients that it needs"
    elif not isinstance(learner, str) or learner.lower() not in LEARNERS:
        wanted = f"wanted one of {', '.join(LEARNERS)} (RecBole would train with Adam instead)"
        yield f"learner: got {short(learner)}, {wanted}{nearest(str(learner), LEARNERS)}"
    if values.get("log_wandb") and find_spec("wandb") is None:
        yield "log_wandb: got True, but wandb is not installed (pip install wandb)"


def _evaluation(values: Mapping[str, Any], given: Collection[str], wrong: Collection[str]) -> Iterator[str]:
    """Yield where metrics, places, the metric of early stopping and the mode of evaluation disagree."""
    metrics, topk, valid = (values.get(name) for name in ("metrics", "topk", "valid_metric"))
    names = [metrics] if isinstance(metrics, str) else metrics
    every = (*METRICS, *VALUE_METRICS)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        yield f"metrics: got {short(metrics)}, wanted some of {', '.join(every)}"
        return
    unknown = [name for name in names if name.lower() not in every]
    for name in unknown:
        yield f"metrics: got {name!r}, wanted some of {', '.join(every)}{nearest(name.lower(), every)}"
    of_values = [name for name in names if name.lower() in VALUE_METRICS]
    if unknown or {"topk", "valid_metric"} & {*wrong}:
        return
    if of_values and len(of_values) < len(names):
        ranking = next(name for name in names if name not in of_values)
        yield f"metrics: got {ranking} and {of_values[0]}; wanted metrics of ranks, or of values, not both"
        return
    places = [topk] if isinstance(topk, int) else topk
    known = results_of(names, places or [], {PLACELESS, *VALUE_METRICS})
    if str(valid).lower() not in map(str.lower, known):
        default = "" if "valid_metric" in given else " (the default)"
        yield f"valid_metric: got {valid}{default}, wanted one that metrics and topk hold: {', '.join(known)}"
    yield from _modes(values.get("eval_args"), names[0], bool(of_values))


def _modes(args: Any, metric: str, of_values: bool) -> Iterator[str]:
    """Yield where the mode of evaluation does not give what the metrics need."""
    if not isinstance(args, Mapping):
        yield f"eval_args: got {short(args)}, wanted split, order, group_by and mode"
        return
    mode = args.get("mode", "full")
    for each in sorted({*mode.values()} if isinstance(mode, Mapping) else {mode}):
        if each == "labeled" and not of_values:
            yield f"eval_args: mode: got labeled with metric {metric}, which ranks; wanted full, uniN or popN"
        if each == "full" and of_values:
            yield f"eval_args: mode: got full with metric {metric} of values; wanted labeled, uniN or popN"
