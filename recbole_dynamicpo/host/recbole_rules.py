"""What is wrong with RecBole's settings for a run of one of our models, found before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

from ..errors import nearest, short
from .recbole_settings import METRICS_OF_ITEMS, NOT_READ, PLACELESS, REFUSED, USED, number

_MODE = re.compile(r"full|(uni|pop)[1-9]\d{0,5}")
_EVAL_ARGS = ("split", "order", "group_by", "mode")
_LEAVE_OUT = ("valid_and_test", "valid_only", "test_only")
# Settings by which interactions do not count, and intervals that leave none out.
_ALL_COUNT = ("[0,inf)", "(0,inf)", "[1,inf)")
_LEAVING_OUT = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "rm_dup_inter")
# What RecBole's own script hands over for a run in one process.
_ONE_PROCESS = {
    **{"nproc": (1,), "world_size": (-1, 1), "offset": (0,)},
    **{"ip": ("localhost",), "port": (5678, "5678")},
}


def problems(values: Mapping[str, Any], given: Collection[str], defaults: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, a line each.

    Args:
        values: all settings, before RecBole works on them.
        given: the names among them that the user wrote.
        defaults: values of those that nobody wrote.
    """
    refused = {**REFUSED, **NOT_READ}
    found = [
        f"{name}: got {short(values[name])}; {refused[name]}"
        for name in given
        if name in refused and not _changes_nothing(name, values[name], defaults)
    ]
    wrong = [name for name, kind in USED.items() if name in values and not kind.fits(values[name])]
    found += [f"{name}: got {short(values[name])}, wanted {USED[name].wanted}" for name in wrong]
    return [*found, *_agreement(values, given, wrong), *_names(values, wrong)]


def evaluation_problems(values: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Return what is wrong with the settings of evaluation alone, a line each; see ``problems``."""
    names = ("metrics", "topk", "valid_metric", "eval_args")
    wrong = [name for name in names if name in values and not USED[name].fits(values[name])]
    found = [f"{name}: got {short(values[name])}, wanted {USED[name].wanted}" for name in wrong]
    return [*found, *_agreement(values, given, wrong)]


def _agreement(values: Mapping[str, Any], given: Collection[str], wrong: Collection[str]) -> Iterator[str]:
    """Yield where settings of evaluation that are right alone are wrong together, or inside."""
    if not {"metrics", "topk", "valid_metric"} & {*wrong}:
        yield from _metrics(values, given)
    if "eval_args" not in wrong:
        yield from _eval_args(values.get("eval_args", {}))
    yield from passed_over(values)


def _changes_nothing(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Say whether a refused setting is given as it would be anyway."""
    default = defaults.get(name)
    unsampled = name == "train_neg_sample_args" and value in ("None", {"distribution": None})
    off = value is None or (value is False and not default)
    return off or value == default or unsampled or value in _ONE_PROCESS.get(name, ())


def _metrics(values: Mapping[str, Any], given: Collection[str]) -> Iterator[str]:
    """Yield where ``valid_metric``, ``metrics``, ``topk`` and the candidates disagree."""
    metrics, topk, valid = (values.get(name) for name in ("metrics", "topk", "valid_metric"))
    if not (metrics and topk and valid):
        return
    names = [metrics] if isinstance(metrics, str) else [str(name) for name in metrics]
    places = [topk] if isinstance(topk, int) else topk
    known = results_of(names, places, {PLACELESS})
    if valid.lower() not in map(str.lower, known):
        default = "" if "valid_metric" in given else " (the default)"
        yield f"valid_metric: got {valid}{default}, wanted one that metrics and topk hold: {', '.join(known)}"
    shown = (
        values.get("num_candidates") if "candidates" in (values.get("rank_among") or "candidates") else None
    )
    counting = [name for name in names if name.lower() in METRICS_OF_ITEMS]
    if counting and isinstance(shown, int) and max(places) > shown and not values.get("benchmark_filename"):
        yield (
            f"topk: got {max(places)} with metric {counting[0]}, which counts the items at all these "
            f"places; wanted at most num_candidates = {shown}"
        )


def results_of(names: Collection[str], places: Collection[int], placeless: Collection[str]) -> list[str]:
    """Return what RecBole calls the results of metrics at some places; ``placeless`` ones have no place."""
    known = [f"{name}@{k}" for name, k in product(names, places) if name.lower() not in placeless]
    return [*known, *(name for name in names if name.lower() in placeless)]


def passed_over(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings that leave interactions out, where rows come pre-split and RecBole leaves out none."""
    for name in _LEAVING_OUT if values.get("benchmark_filename") else ():
        if values.get(name) and str(values[name]).replace(" ", "") not in _ALL_COUNT:
            yield (
                f"{name}: got {short(values[name])} with benchmark_filename, and RecBole leaves out no "
                "pre-split row; wanted none (prepare the files without such rows)"
            )


def _eval_args(args: Mapping[Any, Any]) -> Iterator[str]:
    """Yield what is wrong inside ``eval_args``."""
    for key in args.keys() - {*_EVAL_ARGS}:
        yield f"eval_args: got the key {key!r}{nearest(str(key), _EVAL_ARGS)}"
    split, order = args.get("split", {"RS": [0.8, 0.1, 0.1]}), args.get("order", "RO")
    if not _split(split):
        wanted = "{LS: valid_and_test}, or RS or TS with three shares"
        yield f"eval_args: split: got {short(split)}, wanted {wanted}"
    if order != "TO":
        said = "" if "order" in args else " (RecBole's own where none is given)"
        yield f"eval_args: order: got {order!r}{said}, wanted TO: sequences are in time"
    group = args.get("group_by", "user")
    if group not in (None, "user", "none"):
        yield f"eval_args: group_by: got {group!r}, wanted user or none"
    mode = args.get("mode", "full")
    modes = mode if isinstance(mode, Mapping) else {"valid": mode, "test": mode}
    if not modes or modes.keys() - {"valid", "test"} or not all(map(_mode, modes.values())):
        yield f"eval_args: mode: got {short(mode)}, wanted full, or uni or pop and a number, such as uni19"


def _split(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    way, parts = next(iter(value.items()))
    if way == "LS":
        return parts in _LEAVE_OUT
    shares = isinstance(parts, list | tuple) and len(parts) == 3 and all(number(p) and p >= 0 for p in parts)
    return shares and sum(parts) > 0 and (way == "RS" or (way == "TS" and parts[2] < sum(parts)))


def _mode(value: Any) -> bool:
    return isinstance(value, str) and _MODE.fullmatch(value) is not None


def _names(values: Mapping[str, Any], wrong: Collection[str]) -> Iterator[str]:
    """Yield two columns of one name, two separators that are one, and needed columns that are dropped."""
    columns = ["USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "ITEM_LIST_LENGTH_FIELD"]
    groups = (columns, ["field_separator", "seq_separator"])
    if any(name not in values or name in wrong for group in groups for name in group):
        return
    for group in groups:
        seen: dict[str, str] = {}
        for name in group:
            if seen.setdefault(values[name], name) != name:
                yield f"{name}: got {values[name]!r}, as {seen[values[name]]} is; wanted another"
    user, item, time, length = (values[name] for name in columns)
    suffix = values.get("LIST_SUFFIX")
    if "LIST_SUFFIX" in wrong or "unused_col" in wrong or "val_interval" in wrong:
        return
    lists = [f"{item}{suffix}", f"{time}{suffix}"]
    if {user, item, time, length} & {*lists}:
        yield f"LIST_SUFFIX: got {suffix!r}, which makes {lists} of the columns; wanted names that are free"
    needed = [user, item, lists[0], length, values.get("candidate_field")]
    for column in (values.get("unused_col") or {}).get("inter", []):
        if column == "*" or column in needed:
            yield f"unused_col: got {column!r} of inter, which every row needs"
    if isinstance((values.get("val_interval") or {}).get(time), list | tuple):
        yield f"val_interval: got a list for {time}, wanted an interval such as [0,inf)"
