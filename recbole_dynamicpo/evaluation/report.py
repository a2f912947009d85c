"""The table at the end of a run: who ranks how well, on how many rows, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage import load_json
from .by_user import Users, p_name, paired_hits, share_interval
from .ranks import ALL_RANKS_FILE, RANKS_FILE, WITHOUT_PRIORS
from .statistics import bootstrap_interval, hit_at, ndcg_at, reciprocal_rank

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        name: who ranked.
        ranks: (n,) 1-based rank of the item chosen, in each test row.
        users: (n,) whose row it is.
        logps: (n,) its log-probability among all titles, nats; None where there is none.
    """

    name: str
    ranks: np.ndarray[Any, Any]
    users: Users
    logps: np.ndarray[Any, Any] | None = None


def metric_name(name: str) -> str:
    """Return a metric's name as records spell it: ``hit@1`` is ``hit_at_1``."""
    return name.lower().replace("@", "_at_")


@dataclass(frozen=True)
class View:
    """What a table shows of ranks.

    Attributes:
        among: what was ranked, in words.
        hits: of the hit rate with an interval, HR@hits.
        depth: of NDCG.
        key: of its lines in the report.
        file: of the ranks.
        prefix: of its figures' names in records.
    """

    among: str
    hits: int
    depth: int
    key: str
    file: str
    prefix: str


# By what setting ``rank_among`` calls them.
VIEWS = {
    "candidates": View("the candidates of each row", 1, 5, "contestants", RANKS_FILE, ""),
    "all": View("all titles of the catalogue", 10, 10, "all", ALL_RANKS_FILE, "all_"),
}


def summarize(
    contestant: Contestant, view: View = VIEWS["candidates"], *, intervals: bool = True
) -> dict[str, Any]:
    """Return hit rate, NDCG and MRR as plain numbers, each with its 95 % interval.

    Args:
        contestant: who ranked.
        view: of the ranks.
        intervals: of NDCG and MRR too, which are bootstrapped; the hit rate's costs nothing.
    """
    ranks = contestant.ranks
    hits = hit_at(ranks, view.hits)
    low, high = share_interval(hits, contestant.users)
    rate = f"hr_at_{view.hits}"
    found = {
        "name": contestant.name,
        "rows": len(ranks),
        "users": len(np.unique(contestant.users)),
        "hr_at_1": float(hit_at(ranks, 1).mean()),
        rate: float(hits.mean()),
        f"{rate}_low": low,
        f"{rate}_high": high,
    }
    gains = {f"ndcg_at_{view.depth}": ndcg_at(ranks, view.depth), "mrr": reciprocal_rank(ranks)}
    for name, values in gains.items():
        found[name] = float(values.mean())
        if intervals:
            found[f"{name}_low"], found[f"{name}_high"] = bootstrap_interval(values, contestant.users)
    return found if contestant.logps is None else {**found, "nll": float(-contestant.logps.mean())}


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report that a run left in ``folder``: lines by a view's key, seconds, segments, notes.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / REPORT_FILE
    try:
        found: dict[str, Any] = load_json(path)
        list(found["contestants"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a readable report ({error!r})") from error
    return found


def columns(view: View) -> dict[str, str]:
    """Return the shares that a table shows, key -> title; larger is better in all of them."""
    titles = (f"HR@{view.hits}", f"NDCG@{view.depth}", "MRR")
    return dict(zip((f"hr_at_{view.hits}", f"ndcg_at_{view.depth}", "mrr"), titles, strict=True))


def with_interval(line: Mapping[str, Any], key: str) -> str:
    """Return a figure with its interval as text; nothing where a report has no interval of it."""
    if f"{key}_low" not in line:
        return ""
    return f"{line[key]:.4f} [{line[f'{key}_low']:.4f}, {line[f'{key}_high']:.4f}]"


def clustered(line: Mapping[str, Any]) -> bool:
    """Return whether users have several rows; reports of earlier versions took each for a user of its own."""
    return bool(line.get("users", line["rows"]) < line["rows"])


def rows_text(line: Mapping[str, Any]) -> str:
    """Return how many rows a figure is of, and of how many users where that says more."""
    return f"{line['rows']} of {line['users']} users" if clustered(line) else str(line["rows"])


def winners(figures: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    """Return the names of those whose figure is the largest of a column."""
    best = max(line[key] for line in figures)
    return {str(line["name"]) for line in figures if line[key] == best}


def markdown_lines(figures: Sequence[Mapping[str, Any]], view: View) -> list[str]:
    """Return a table in Markdown, the winner of each column bold; no figure is without its interval.

    Args:
        figures: of ``summarize``.
        view: that they were made for.
    """
    shown = {key: title for key, title in columns(view).items() if with_interval(figures[-1], key)}
    lines = [f"| | {' | '.join(shown.values())} | rows |", "|---" * (len(shown) + 2) + "|"]
    best = {key: winners(figures, key) for key in shown}
    for line in figures:
        texts = [
            f"**{with_interval(line, key)}**" if line["name"] in best[key] else with_interval(line, key)
            for key in shown
        ]
        name = str(line["name"]).replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(texts)} | {rows_text(line)} |")
    return lines


def paired_p(first: Contestant, second: Contestant, hits: int = 1) -> tuple[int, int, float]:
    """Return rows that only the first and only the second has at ``hits``, and p by the signs of users."""
    found = paired_hits(first.ranks <= hits, second.ranks <= hits, first.users)
    return found.only_a, found.only_b, found.p


def table_lines(figures: Sequence[Mapping[str, Any]], view: View, chance: float = 0.0) -> list[str]:
    """Return the lines of a table: a head, one for each of the ``figures``, and what they leave unsaid.

    The highest of each column has a star.

    Args:
        figures: of ``summarize``.
        view: that they were made for.
        chance: hit rate of a random choice at the first place; 0: not shown.
    """
    best = {key: winners(figures, key) for key in columns(view)}
    width = max(len(s["name"]) for s in figures) + 2
    rate = f"hr_at_{view.hits}"
    titles = (f"HR@{view.hits}", f"NDCG@{view.depth}")
    losses = any("nll" in s for s in figures)
    head = f"{'':{width}}{titles[0]:>7}   {'95 % interval':^17}{titles[1]:>8} {'MRR':>7} "
    lines = [f"{head}{'NLL':>8}{'rows':>7}" if losses else f"{head}{'rows':>7}"]
    for s in figures:
        interval = f"[{s[rate + '_low']:.4f}, {s[rate + '_high']:.4f}]"
        nll = f"{s['nll']:8.4f}" if "nll" in s else " " * 8 * losses
        of_rate, of_ndcg, of_mrr = (
            f"{s[key]:.4f}{'*' if s['name'] in names else ' '}" for key, names in best.items()
        )
        line = f"{s['name']:{width}}{of_rate:>8}  {interval:^17}{of_ndcg:>9}{of_mrr:>8}"
        lines.append(f"{line}{nll}{s['rows']:7d}")
    if chance:
        lines.append(f"{'random choice':{width}}{min(1.0, chance * view.hits):7.4f}")
    said = ["* the highest of its column"] if len(figures) > 1 else []
    if any(s["name"].endswith(WITHOUT_PRIORS) for s in figures):
        said.append("without priors: the language model's share alone, no counts in it")
    lines += ["; ".join(said)] if said else []
    if clustered(last := figures[-1]):
        rows = f"{last['rows']} rows of {last['users']} users"
        lines.append(f"{rows}: a user's are one observation in intervals and tests")
    return lines


def render(
    contestants: Sequence[Contestant],
    *,
    chance: float,
    seconds: Mapping[str, float],
    notes: Sequence[str],
    view: View = VIEWS["candidates"],
    more: Sequence[str] = (),
) -> str:
    """Return the table as text.

    Args:
        contestants: in the order of the lines; the last one is the final model.
        chance: hit rate of a random choice; 0: not shown.
        seconds: training or evaluation time by name.
        notes: further lines: what was subsampled, where things lie.
        view: what to show.
        more: lines of another table, behind the comparisons.
    """
    figures = [summarize(contestant, view) for contestant in contestants]
    lines, final = table_lines(figures, view, chance), contestants[-1]
    p_value = p_name(figures[-1]["rows"], figures[-1]["users"])
    for other in contestants[:-1]:
        ours, theirs, p = paired_p(final, other, view.hits)
        place = "first" if view.hits == 1 else f"in the first {view.hits}"
        lines.append(
            f"{final.name} against {other.name}: {place} in {ours} rows that the other misses, "
            f"{theirs} the other way round, {p_value} = {p:.2g}"
        )
    lines += more
    if seconds:
        spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        lines.append(f"time: {spent}")
    return "\n".join([*lines, *notes])


def figures_text(found: Mapping[str, float] | None) -> str:
    """Return metrics by name on one line, "none" if there are none."""
    return ", ".join(f"{name} {value}" for name, value in (found or {}).items()) or "none"
