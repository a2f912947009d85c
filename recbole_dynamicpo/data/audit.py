"""What a prepared data set holds, and what in it would flatter or spoil a figure computed on it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from ..storage import load_json
from .atomic_files import MANIFEST_FILE, RATING_COLUMN, SEQUENCE_COLUMNS, SPLIT_COLUMNS, read_table
from .catalogue import contained_titles, read_titles
from .give_away import audit_give_away
from .rules import Rows

SPLITS = ("train", "valid", "test")
Prompt = tuple[list[str], list[str]]  # history titles, oldest first, and candidate titles
_SAMPLE = 2000  # prompts per split whose tokens are counted: the share is then known to about +-2 points
_CANDIDATES = 20  # of a prompt, where the data leave them to the run
_EXAMPLES = 5  # titles that are named
_QUANTILES = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}


class PromptCheck(Protocol):
    """Says how long prompts are for a backbone; nothing here knows how it does."""

    @property
    def described(self) -> dict[str, str | int]:
        """What a reader has to know of it: the backbone, the template, the limits."""

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its longest candidate together."""

    def measure(self, prompts: list[Prompt]) -> list[int]:
        """Return the tokens that each prompt and its longest candidate need, before any truncation."""


def audit(folder: Path, check: PromptCheck | None = None) -> dict[str, Any]:
    """Audit a folder that ``prepare`` wrote, published (pre-split) or plain sequences.

    Args:
        folder: holds ``<name>.item`` and the ``.inter`` files.
        check: with it the share of prompts that would be truncated is reported, from at most 2,000 evenly
            spaced rows of each split. Plain sequences have no candidates yet: random items stand for them,
            and each user's last item for the target.

    Returns:
        Figures that JSON can hold; ``audit_table`` prints them.

    Raises:
        DataError: if the folder does not hold a prepared data set.
    """
    folder = Path(folder)
    name = _data_set_name(folder)
    titles = read_titles(folder / f"{name}.item", id_field="item_id", title_field="title")
    inside = contained_titles(titles.values())
    report: dict[str, Any] = {"dataset": name, "items": len(titles), "titles": _title_figures(titles, inside)}
    if check is not None:
        report["prompts"] = check.described
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        report["test_from_validation"] = load_json(manifest).get("test_from_validation")
    if (folder / f"{name}.inter").is_file():
        users = _read_sequences(folder / f"{name}.inter")
        report["sequences"] = _sequence_figures(users)
        prompts = {"sequences": _sequence_prompts(users, titles)}
    else:
        splits = {split: _read_split(folder / f"{name}.{split}.inter", titles) for split in SPLITS}
        report["splits"] = {
            split: _split_figures(rows, splits["train"] if split != "train" else None, titles, inside)
            for split, rows in splits.items()
        }
        train, *held_out = _as_rows(list(splits.values()))
        named = dict(zip(SPLITS[1:], held_out, strict=True))
        report["findings"] = audit_give_away(train, named, len(titles) + 1, seed=0).findings()
        prompts = {split: _split_prompts(rows, titles) for split, rows in splits.items()}
    if check is not None:
        columns = report.get("splits") or {"sequences": report["sequences"]}
        for split, rendered in prompts.items():
            columns[split]["prompts"] = _prompt_figures(rendered, check)
        most = max(len(candidates) for rendered in prompts.values() for _, candidates in rendered)
        report["titles"]["without_room"] = _without_room(titles, most, check)
    return report


def audit_table(report: dict[str, Any]) -> str:
    """Return the audit as lines of text: the data set first, then one column per split."""
    titles = report["titles"]
    lines = [
        f"{report['dataset']}: {report['items']} items, {titles['distinct']} distinct titles; "
        f"{titles['items_sharing_a_title']} items share a title; "
        f"{titles['contained']} titles occur inside other titles",
    ]
    lines += [f"  inside: {inner!r} in {outer!r}" for inner, outer in titles["contained_examples"]]
    if report.get("test_from_validation"):
        lines.append("  the test split was made from the validation rows: no test file was given")
    for item, letters, start in titles.get("without_room", []):
        lines.append(f"  too long for any prompt: the title of item '{item}', {letters} letters: {start!r}")
    if "prompts" in report:
        described = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report["prompts"].items())
        lines.append(f"  prompts: {described}")
    columns = report.get("splits") or {"sequences": report["sequences"]}
    flat = {split: dict(_flat(figures)) for split, figures in columns.items()}
    labels = list(dict.fromkeys(label for figures in flat.values() for label in figures))
    width = max(map(len, labels))
    lines.append(" " * width + "".join(f"{split:>12}" for split in flat))
    for label in labels:
        cells = (figures.get(label, "-") for figures in flat.values())
        lines.append(f"{label:<{width}}" + "".join(f"{_shown(cell):>12}" for cell in cells))
    lines += [f"- {finding}" for finding in report.get("findings", [])]
    return "\n".join(lines)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        label = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{label}, ")
        else:
            yield label, value


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass
class _Split:
    """One split's rows as item ids; a key is a row's history and target as one text, to find it again."""

    users: list[str] = field(default_factory=list)
    histories: list[list[str]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    candidates: list[list[str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def _data_set_name(folder: Path) -> str:
    names = [path.stem for path in folder.glob("*.item")]
    if len(names) != 1:
        raise DataError(f"{folder}: wanted a prepared data set with one .item file, got {len(names)} of them")
    return names[0]


def _read_split(path: Path, titles: dict[str, str]) -> _Split:
    """Read one benchmark file; its ids are the very strings of ``titles``, to save memory."""
    same = {item: item for item in titles}
    split = _Split()
    for number, cells in enumerate(read_table(path, SPLIT_COLUMNS), start=1):
        try:
            user, history, target, candidates = cells
            split.histories.append([same[item] for item in history.split()])
            split.targets.append(same[target])
            split.candidates.append([same[item] for item in candidates.split()])
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{path}, row {number}: wanted 4 cells with known item ids, got {cells}"
            ) from error
        split.users.append(user)
        split.keys.append(f"{history}\t{target}")
    if not split.users:
        raise DataError(f"{path}: wanted at least one row, got none")
    return split


def _as_rows(splits: list[_Split]) -> list[Rows]:
    """Return the rows of each split with items and users as numbers, items from 1 on."""
    items: dict[str, int] = {}
    users: dict[str, int] = {}

    def numbered(ids: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([items.setdefault(item, len(items) + 1) for item in ids], dtype=np.int64)

    found = []
    for split in splits:
        lists = np.zeros((len(split.targets), max(map(len, split.candidates))), dtype=np.int64)
        for row, candidates in enumerate(split.candidates):
            lists[row, : len(candidates)] = numbered(candidates)
        owners = np.array([users.setdefault(user, len(users)) for user in split.users], dtype=np.int64)
        found.append(Rows([numbered(ids) for ids in split.histories], lists, numbered(split.targets), owners))
    return found


def _title_figures(titles: dict[str, str], inside: dict[str, set[str]]) -> dict[str, Any]:
    times = Counter(titles.values())
    pairs = sorted((inner, outer) for outer, inners in inside.items() for inner in inners)
    return {
        "distinct": len(times),
        "items_sharing_a_title": sum(count for count in times.values() if count > 1),
        "contained": len({inner for inner, _ in pairs}),
        "contained_pairs": len(pairs),
        "contained_examples": [list(pair) for pair in pairs[:: max(1, len(pairs) // 5)][:5]],
    }


def _split_figures(
    rows: _Split, train: _Split | None, titles: dict[str, str], inside: dict[str, set[str]]
) -> dict[str, Any]:
    """Count what one split holds, and what it shares with the training rows."""
    sizes = [len(candidates) for candidates in rows.candidates]
    triples = list(zip(rows.histories, rows.targets, rows.candidates, strict=True))
    figures: dict[str, Any] = {
        "rows": len(rows.users),
        "users": len(set(rows.users)),
        "candidate_titles": len({titles[item] for candidates in rows.candidates for item in candidates}),
        "candidates_per_row": {"min": min(sizes), "max": max(sizes)},
        "rows_with_target_in_history": sum(target in history for history, target, _ in triples),
        "rows_with_other_candidate_in_history": sum(
            any(item in history for item in candidates if item != target)
            for history, target, candidates in triples
        ),
        "rows_with_candidate_inside_candidate": sum(
            _has_contained([titles[item] for item in candidates], inside) for candidates in rows.candidates
        ),
        "rows_with_empty_history": sum(not history for history in rows.histories),
        "rows_repeated": len(rows.keys) - len(set(rows.keys)),
        "history_length": _quantiles([len(history) for history in rows.histories]),
    }
    if train is not None:
        seen = set(train.keys)
        figures["rows_also_in_train"] = sum(key in seen for key in rows.keys)
    return figures


def _has_contained(candidates: list[str], inside: dict[str, set[str]]) -> bool:
    """Say whether one candidate's title is part of another's: naming the longer one then names both."""
    return any(not inside[title].isdisjoint(candidates) for title in candidates if title in inside)


def _read_sequences(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Read a plain .inter file as user -> (item, time), in file order."""
    users: dict[str, list[tuple[str, str]]] = {}
    for cells in read_table(path, SEQUENCE_COLUMNS, more=[RATING_COLUMN]):
        users.setdefault(cells[0], []).append((cells[1], cells[2]))
    return users


def _sequence_figures(users: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """Count what a plain .inter file holds."""
    lengths = list(map(len, users.values()))
    moments = sum(len({time for _, time in rows}) for rows in users.values())
    return {
        "rows": sum(lengths),
        "users": len(users),
        "items": len({item for rows in users.values() for item, _ in rows}),
        "rows_at_a_moment_of_the_same_user": sum(lengths) - moments,
        "history_length": _quantiles(lengths),
    }


def _quantiles(values: list[int]) -> dict[str, float]:
    figures = {name: float(np.percentile(values, q)) for name, q in _QUANTILES.items()}
    return {**figures, "mean": float(np.mean(values))}


def _spaced(values: Sequence[Any]) -> list[Any]:
    """Return at most ``_SAMPLE`` of the values, evenly spaced."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, _SAMPLE).astype(int))]


def _split_prompts(rows: _Split, titles: dict[str, str]) -> list[Prompt]:
    chosen = _spaced(list(zip(rows.histories, rows.candidates, strict=True)))
    return [([titles[item] for item in old], [titles[item] for item in shown]) for old, shown in chosen]


def _sequence_prompts(users: dict[str, list[tuple[str, str]]], titles: dict[str, str]) -> list[Prompt]:
    draw, every = random.Random(0), list(titles.values())
    prompts = []
    for rows in _spaced(list(users.values())):
        *history, target = (titles.get(item, item) for item, _ in rows)
        others = draw.sample(every, min(_CANDIDATES - 1, len(every)))
        prompts.append((history, [*others, target]))
    return prompts


def _prompt_figures(prompts: list[Prompt], check: PromptCheck) -> dict[str, Any]:
    lengths = check.measure(prompts)
    share = float(np.mean([length > check.max_length for length in lengths]))
    return {"counted": len(prompts), "truncated_share": share, "tokens": _quantiles(lengths)}


def _without_room(titles: dict[str, str], candidates: int, check: PromptCheck) -> list[list[Any]]:
    """Return id, letters and first words of some titles that have no room beside others of usual length."""
    by_length = sorted(titles, key=lambda item: len(titles[item]))
    others = [titles[item] for item in by_length[len(titles) // 2 :][: candidates - 1]]
    longest = by_length[: -_EXAMPLES - 1 : -1]
    lengths = check.measure([([], [titles[item], *others]) for item in longest])
    found = [item for item, length in zip(longest, lengths, strict=True) if length > check.max_length]
    return [[item, len(titles[item]), titles[item][:60]] for item in found]
