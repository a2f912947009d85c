"""A run as one page of HTML that fetches nothing: figures are in it, and its policy forbids the rest."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.exposure import KEY
from ..evaluation.report import REPORT_FILE, VIEWS, View, columns, rows_text, winners, with_interval
from ..serving.mlflow_uri import without_password
from ..storage import atomic_file
from . import figures
from .shown import Run

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b }
body { max-width: 68em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: .7em 0 } td, th { padding: .2em .8em; text-align: left }
th { border-bottom: 1px solid #888 } td { border-bottom: 1px solid #eee; vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td.best { font-weight: bold }
td.best::after { content: " \\2605"; color: #b8860b } small { color: #666; white-space: nowrap }
tr.model td { background: #eef5fb } img { max-width: 100%; border: 1px solid #eee; margin: .4em 0 }
code { overflow-wrap: anywhere } summary { cursor: pointer; margin: .4em 0 }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_KEY = (
    "Brackets hold the 95 % interval; the star marks the largest figure of a column, however close others "
    "are; the shaded line is the run's model."
)


def write_page(run: Run, path: Path) -> None:
    """Write a run as one HTML file, whole or not at all.

    Args:
        run: to show.
        path: of the file.

    Raises:
        DataError: the run's report is damaged.
    """
    try:
        text = "\n".join(_page(run))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run.folder / REPORT_FILE}: not a readable report ({error!r})") from error
    with atomic_file(path) as handle:
        handle.write(text + "\n")


def _page(run: Run) -> Iterator[str]:
    title = escape(run.record.name if run.record else run.folder.resolve().name)
    yield "<!DOCTYPE html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    for view in VIEWS.values():
        if view.key in run.report:
            yield f"<h2>Among {escape(view.among)}</h2>"
            yield from _contestants(run.report[view.key], view)
            yield f"<p>{_KEY}</p>"
    yield from _beyond(run.report.get(KEY, ()))
    yield "<ul>"
    yield from (f"<li>{escape(str(note))}</li>" for note in run.report.get("notes", ()))
    yield "</ul>"
    yield from _figures(run)
    yield from _segments(run.report)
    yield from _provenance(run)
    yield from _settings(run)
    yield "</body></html>"


def _contestants(lines: Sequence[Mapping[str, Any]], view: View) -> Iterator[str]:
    """Yield a table; figures whose interval an old report does not have are left out."""
    shown = {key: title for key, title in columns(view).items() if with_interval(lines[-1], key)}
    best = {key: winners(lines, key) for key in shown}
    losses = any("nll" in line for line in lines)
    head = [*shown.values(), *(["NLL, nats"] if losses else []), "rows"]
    yield f"<table><tr><th></th>{''.join(f'<th class=n>{escape(name)}</th>' for name in head)}</tr>"
    for line in lines:
        cells = [
            f'<td class="n{" best" if line["name"] in best[key] else ""}">{_figure(line, key)}</td>'
            for key in shown
        ]
        if losses:
            cells.append(f"<td class=n>{line['nll']:.4f}</td>" if "nll" in line else "<td></td>")
        cells.append(f"<td class=n>{escape(rows_text(line))}</td>")
        kind = ' class="model"' if line is lines[-1] else ""
        yield f"<tr{kind}><td>{escape(str(line['name']))}</td>{''.join(cells)}</tr>"
    yield "</table>"


def _beyond(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of what the first titles of all rows show."""
    if not lines:
        return
    depth = int(lines[0]["depth"])
    named = {"coverage": "coverage", "gini": "Gini", "novelty": "novelty, bits"}
    shares = {f"tenth {number}": ("tenths", number) for number in lines[0]["tenths"]}
    head = [*named.values(), *shares, "cold"]
    yield f"<h2>What the first {depth} of all titles show</h2>"
    yield f"<table><tr><th></th>{''.join(f'<th class=n>{escape(name)}</th>' for name in head)}</tr>"
    for line in lines:
        figures = [
            *(line[key] for key in named),
            *(line[kind][number]["share"] for kind, number in shares.values()),
        ]
        cells = [f"<td class=n>{value:.3f}</td>" for value in (*figures, line["cold"]["share"])]
        yield f"<tr><td>{escape(str(line['name']))}</td>{''.join(cells)}</tr>"
    yield "</table>"
    yield "<p>Tenths: the share of all places that goes to titles of that popularity; cold: never taken.</p>"


def _figure(line: Mapping[str, Any], key: str) -> str:
    value, _, interval = with_interval(line, key).partition(" ")
    return f"{value} <small>{interval}</small>"


def _figures(run: Run) -> Iterator[str]:
    candidates = run.record.params.get("num_candidates") if run.record else None
    wanted = figures.available(run.journals, run.report["contestants"], run.metric, candidates)
    if wanted:
        yield "<h2>Curves</h2>"
    for name, _, draw in wanted:
        drawn = io.BytesIO()
        draw().savefig(drawn, format="png")
        data = base64.b64encode(drawn.getvalue()).decode()
        yield f'<img alt="{escape(name.replace("_", " "))}" src="data:image/png;base64,{data}">'


def _segments(report: Mapping[str, Any]) -> Iterator[str]:
    found = report.get("segments", {})
    if found:
        yield "<h2>Segments</h2>"
    for among, parts in found.items():
        view = VIEWS[among]
        rate = f"hr_at_{view.hits}"
        for part in parts:
            yield f"<details><summary>{escape(view.among)}: {escape(str(part['segment']))}, "
            yield f"{int(part['rows'])} rows</summary><table>"
            yield f"<tr><th></th><th class=n>HR@{view.hits}</th><th class=n>nats gained over counts</th></tr>"
            best = winners(part["contestants"], rate)
            for line in part["contestants"]:
                mark = " best" if line["name"] in best else ""
                gained = ""
                if "nats_gained" in line:
                    ends = f"[{line['nats_gained_low']:+.3f}, {line['nats_gained_high']:+.3f}]"
                    gained = f"{line['nats_gained']:+.3f} <small>{ends}</small>"
                yield f"<tr><td>{escape(str(line['name']))}</td>"
                yield f'<td class="n{mark}">{_figure(line, rate)}</td><td class=n>{gained}</td></tr>'
            yield "</table></details>"


def _provenance(run: Run) -> Iterator[str]:
    yield "<h2>Where it comes from</h2>"
    seconds = {f"seconds of {name}": f"{spent:.0f}" for name, spent in run.report.get("seconds", {}).items()}
    record = run.record
    if record is None:
        yield from _pairs({"folder": run.folder.resolve().name, **seconds})
        return
    named = {"model": record.model, "data set": record.dataset, "seed": record.seed}
    digests = {"SHA-256 of the data": record.data.get("digest"), "hash of the settings": record.config_hash}
    rows = {f"{phase} rows": count for phase, count in record.data.get("rows", {}).items()}
    yield from _pairs({**named, **rows, **digests, **record.tags, **seconds})


def _settings(run: Run) -> Iterator[str]:
    ours, theirs = run.settings()
    if ours:
        yield "<h2>Settings</h2>"
        yield from _pairs(run.changed(), "not as the defaults", opened=True)
        yield from _pairs(ours, "all of this package's")
        yield from _pairs(theirs, "RecBole's")


def _pairs(values: Mapping[str, Any], summary: str = "", *, opened: bool = False) -> Iterable[str]:
    lines = [
        f"<tr><td>{escape(name)}</td><td><code>{escape(_text(value))}</code></td></tr>"
        for name, value in values.items()
    ]
    table = f"<table>{''.join(lines)}</table>"
    if not summary:
        return [table]
    return [f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{table}</details>"]


def _text(value: Any) -> str:
    return without_password(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
