"""What an evaluation leaves: the tables, as text and as JSON, and the ranks of every row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset.columns import ROW_ID
from ..dataset.dataset import DynamicPODataset
from ..evaluation.exposure import KEY, beyond_accuracy, beyond_lines, recorded
from ..evaluation.ranks import FITTED_COUNTS, write_ranks
from ..evaluation.report import (
    REPORT_FILE,
    VIEWS,
    Contestant,
    View,
    columns,
    figures_text,
    markdown_lines,
    metric_name,
    render,
    summarize,
)
from ..evaluation.segments import by_segment, segments
from ..serving.model_card import Results
from ..storage import write_json
from ..tracking.journal import Journal
from .evaluating import Ranked, row_names
from .whole_catalogue import WholeCatalogue

logger = logging.getLogger(__name__)

# ``candidates`` and ``all``, as far as setting ``rank_among`` asks for them -> name -> what was found.
Tables = Mapping[str, Mapping[str, Ranked]]


def write_report(
    journal: Journal,
    model: Any,
    found: Tables,
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> None:
    """Show the final table, and write it, the final model's ranks and its figures beside the journal.

    Args:
        journal: of the run.
        model: that was evaluated, with its data set.
        found: what each contestant was found to rank, the final model last.
        seconds: time spent on each part of the run.
        notes: lines below the table.
    """
    folder, dataset, cut = journal.path.parent, model.dataset, model.collator.truncated_rows
    about = [*dataset.notes]
    about += [f"{phase} rows: {kept} of {total}" for phase, (kept, total) in dataset.subsampled().items()]
    about += [f"prompts that lost old history: {cut}"] if cut else []
    report: dict[str, Any] = {"seconds": dict(seconds), "segments": {}, "notes": [*about, *notes]}
    texts, figures = [], {}
    for place, (among, ranked) in enumerate(found.items()):
        view, last = VIEWS[among], place == len(found) - 1
        contestants = [Contestant(name, one.ranks, one.users, one.logps) for name, one in ranked.items()]
        *_, final = ranked.values()
        beyond = beyond_of(dataset, ranked)
        texts.append(f"among {view.among}" if len(found) > 1 else "")
        texts.append(render(
            contestants, chance=final.chance, seconds=seconds if last else {},
            notes=[*about, *notes] if last else [], view=view, more=list(beyond_lines(beyond)),
        ))  # fmt: skip
        report[view.key] = [summarize(contestant, view) for contestant in contestants]
        report["segments"][among] = segments_of(dataset, final.row_ids, contestants, view)
        if beyond:
            report[KEY] = beyond
        write_ranks(folder / view.file, *row_names(dataset, final), final.ranks, final.rows)
        found_here = {metric_name(name): float(value) for name, value in final.result.items()}
        # RecBole rounds its metrics to four digits; the same ones of our own are exact.
        found_here.update({key: value for key, value in report[view.key][-1].items() if key != "name"})
        figures.update({f"{view.prefix}{name}": value for name, value in found_here.items()})
        figures.update(recorded(beyond[-1]) if beyond else {})
    logger.info("final result\n%s", "\n".join(filter(None, texts)))
    logger.info("test result among %s: %s", view.among, figures_text(final.result))
    write_json(folder / REPORT_FILE, report)
    earlier = [e for e in journal.entries() if (e["stage"], e["kind"]) == ("evaluate", "test")]
    journal.write("evaluate", len(earlier), "test", figures)


def card_results(report: Mapping[str, Any], about: Sequence[str]) -> Results:
    """Return what a report says for a model card.

    Args:
        report: of ``read_report``.
        about: sentences before its tables.
    """
    lines, metrics = [" ".join(about)], []
    for view in VIEWS.values():
        if view.key in report:
            said = "with 95 % intervals; the largest of a column is bold, however close the others are"
            lines += ["", f"Among {view.among}, {said}:", ""]
            lines += markdown_lines(report[view.key], view)
            metrics += [title for title in columns(view).values() if title not in metrics]
    return Results(lines, metrics)


def beyond_of(dataset: DynamicPODataset, found: Mapping[str, Ranked]) -> list[dict[str, Any]]:
    """Return what each contestant shows of the catalogue; nothing where candidates were ranked.

    Args:
        dataset: as it was built.
        found: name -> what is found.
    """
    shown = {name: ranked.shown for name, ranked in found.items() if ranked.shown is not None}
    taken = WholeCatalogue(dataset).taken() if shown else np.zeros(0, dtype=np.int64)
    return [beyond_accuracy(name, one, taken) for name, one in shown.items()]


def segments_of(
    dataset: DynamicPODataset,
    row_ids: np.ndarray[Any, Any],
    contestants: Sequence[Contestant],
    view: View,
) -> list[dict[str, Any]]:
    """Return the figures of contestants in each segment of test rows; see ``by_segment``.

    Args:
        dataset: as it was built.
        row_ids: (n,) of the test rows, in the order of the contestants' ranks.
        contestants: who ranked them.
        view: what is shown of ranks.
    """
    rows = dataset.built["test"].inter_feat
    place = {row: number for number, row in enumerate(rows[ROW_ID].tolist())}
    order = [place[row] for row in row_ids.tolist()]
    counts, targets = dataset.popularity(), rows[dataset.iid_field].numpy()[order]
    lengths = rows[dataset.item_list_length_field].numpy()[order]
    return by_segment(contestants, segments(counts[1:], counts[targets], lengths), view, FITTED_COUNTS)


def where_to_go_on(reference: Path, final: Path) -> list[str]:
    """Return the lines of the final table that say where the adapters lie and how to rank with them."""
    return [
        f"adapters: {reference} (reference), {final} (final)",
        f'rank with it: recbole-dynamicpo rank --model {final} --history "TITLE|TITLE" '
        '--candidates "TITLE|TITLE"',
    ]
