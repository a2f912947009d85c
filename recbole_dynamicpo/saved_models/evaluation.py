"""Evaluation of a saved model on a data set's test rows, by likelihood or by the paper's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..dataset.columns import ROW_ID
from ..evaluation.exposure import KEY, beyond_accuracy, beyond_lines
from ..evaluation.protocols import ANSWER_TOKENS, Protocols, compare_protocols
from ..evaluation.ranks import ALL_RANKS_FILE, POPULARITY, RANKS_FILE, write_ranks
from ..evaluation.report import REPORT_FILE, VIEWS, Contestant, render, summarize
from ..evaluation.side_by_side import Share, side_by_side
from ..parallel import join
from ..scoring.answers import write_answers
from ..serving.folder import default_device, is_plain_adapter
from ..serving.mlflow_store import opened_model
from ..serving.recommender import Recommender, load_recommender
from ..storage import atomic_file, write_json
from ..training.contestants import rank_by_counting, rank_by_retrieving
from ..training.evaluating import Ranked, rank_by_popularity, rank_candidates, row_names, settled
from ..training.reporting import segments_of
from .plain_adapter import plain_recommender, settings_files
from .rows import EvaluationRows, check_lists, read_test_rows, settings_of, with_lists
from .scores import SavedScores, rank_others_among_all

ANSWERS_FILE = "answers.jsonl"
_HR_AT_1 = {"rate": "hr_at_1", "low": "hr_at_1_low", "high": "hr_at_1_high", "rows": "rows"}


@dataclass(frozen=True)
class Asked:
    """How rows are ranked.

    Attributes:
        name: of the model, in tables.
        protocol: ``likelihood`` or ``generate``.
        batch_size: rows per batch of generation.
        progress: show bars, where there is a terminal.
    """

    name: str
    protocol: str
    batch_size: int
    progress: bool


def evaluate_saved(
    source: str | Path,
    dataset: str,
    protocol: str,
    *,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    lists: Sequence[str] = (),
    batch_size: int = 16,
    out: Path | None = None,
    progress: bool = True,
) -> str:
    """Evaluate a saved model on a data set's test rows and return the figures as text.

    What the user does not say is as in the run that made the model, so that its test figures come out again,
    to the last bit on the same machine. A plain adapter has the paper's settings instead.

    Args:
        source: folder of a run, a recommender folder in it, a ``models:/`` or ``runs:/`` URI, the folder of a
            plain adapter, or an id of the hub.
        dataset: name of the data set.
        protocol: ``likelihood``: rank the candidates by log-probability. ``generate``: the paper's, with
            the likelihood figures of the same rows beside it.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        lists: ``published``, ``fresh`` or both: the candidate lists of the rows, see ``with_lists``; with
            several the figures stand side by side at the end. None: as the settings say.
        batch_size: rows per batch of generation.
        out: folder for the ranks of every row, the figures and the answers, of each of several lists one in
            it; None writes nothing.
        progress: show bars, where there is a terminal.

    Raises:
        DynamicPOError: anything wrong with the model, the settings or the data.
    """
    writes, said = join().first, dict(overrides or {})
    with opened_model(source) as folder:
        plain = is_plain_adapter(folder)
        made_with = {} if plain else settings_of(folder)
        files = settings_files(config_files) if plain else config_files
        recommender = None if plain else load_recommender(folder, device=default_device())
        rows = {}
        for name in lists or [""]:
            given = with_lists(name, dataset, said) if name else said
            rows[name] = read_test_rows(dataset, files, given, made_with)
            check_lists(name, rows[name])
        about: list[str] = []
        if recommender is None:
            whole = next(iter(rows.values())).whole
            recommender, about = plain_recommender(folder, str(source), whole, said.get("backbone"))
    asked, texts, found = Asked(str(source), protocol, batch_size, progress), [], {}
    for name, some in rows.items():
        place = out / name if out and len(rows) > 1 else out
        text, found[name] = _evaluate(recommender, some, asked, about, place if writes else None)
        texts.append(f"lists: {name}\n{text}\n" if len(rows) > 1 else text)
    if len(rows) > 1:
        texts += side_by_side({name: _lines(figures, asked) for name, figures in found.items()})
    return "\n".join(texts)


def _evaluate(
    recommender: Recommender, rows: EvaluationRows, asked: Asked, about: Sequence[str], out: Path | None
) -> tuple[str, dict[str, Any]]:
    """Return the figures of some rows as text and as numbers, and write them where ``out`` says."""
    saved = SavedScores(recommender, rows, asked.progress)
    scores = saved.scores()
    ranked = rank_candidates(rows.data, scores)
    contestant = Contestant(asked.name, ranked.ranks, ranked.users, saved.logps)
    figures: dict[str, Any] = {"likelihood": summarize(contestant)}
    notes = [*about, *rows.notes, *saved.notes]
    if asked.protocol == "likelihood":
        lines = _among_candidates(saved, contestant, figures, ranked)
        text = render(lines, chance=ranked.chance, seconds={}, notes=[] if saved.ranks_all else notes)
        if saved.ranks_all:
            everything, more = _among_all(saved, rows, asked, figures, ranked)
            view, chance = VIEWS["all"], 1 / saved.titles.count
            table = render(everything, chance=chance, seconds={}, notes=notes, view=view, more=more)
            text = f"among {VIEWS['candidates'].among}\n{text}\namong {view.among}\n{table}"
    else:
        answers, found = _generate(recommender, rows, scores, asked)
        figures["generate"] = asdict(found)
        text = "\n".join([found.table(), *notes])
        if out:
            _write_answers(out / ANSWERS_FILE, rows, answers)
    if out:
        names = row_names(rows.data, ranked)
        write_ranks(out / RANKS_FILE, *names, ranked.ranks, ranked.rows)
        if saved.ranks_all:
            digests = saved.titles.digests(ranked.rows)
            write_ranks(out / ALL_RANKS_FILE, *names, np.array(saved.ranks_all), digests)
        write_json(out / REPORT_FILE, {"seconds": {}, "notes": notes, **figures})
    return text, figures


def _among_candidates(
    saved: SavedScores, contestant: Contestant, figures: dict[str, Any], ranked: Ranked
) -> list[Contestant]:
    """Return who ranked the candidates, the model last, and add their figures."""
    rows = saved.rows
    counted = {POPULARITY: rank_by_popularity(rows.data), **rank_by_counting(rows.whole, rows.data)}
    counted |= rank_by_retrieving(saved.retrieving(), rows.data)
    view = VIEWS["candidates"]
    lines = [Contestant(name, found.ranks, found.users) for name, found in counted.items()]
    lines.append(contestant)
    figures["contestants"] = [summarize(line) for line in lines]
    figures["segments"] = {"candidates": segments_of(rows.whole, ranked.row_ids, lines, view)}
    return lines


def _among_all(
    saved: SavedScores, rows: EvaluationRows, asked: Asked, figures: dict[str, Any], ranked: Ranked
) -> tuple[list[Contestant], list[str]]:
    """Return who ranked among all titles, and a table of what the first of them show; add their figures."""
    counted, view = rank_others_among_all(rows, saved.titles, saved.retrieving()), VIEWS["all"]
    lines = [Contestant(name, found.ranks, found.users) for name, found in counted.items()]
    lines.append(Contestant(asked.name, np.array(saved.ranks_all), ranked.users))
    shown = {**{name: found.shown for name, found in counted.items()}, asked.name: saved.shown}
    taken = saved.titles.taken()
    figures[view.key] = [summarize(line, view) for line in lines]
    figures[KEY] = [beyond_accuracy(name, found, taken) for name, found in shown.items()]
    figures["segments"]["all"] = segments_of(rows.whole, ranked.row_ids, lines, view)
    return lines, list(beyond_lines(figures[KEY]))


def _lines(figures: Mapping[str, Any], asked: Asked) -> dict[str, Share]:
    """Return the hit rate at the first place of each contestant, the model last."""
    lines = figures.get("contestants", [figures["likelihood"]])
    found = {line["name"]: Share(**{key: line[name] for key, name in _HR_AT_1.items()}) for line in lines}
    if "generate" in figures:
        answers = figures["generate"]
        (low, high), rows = answers["generated_interval"], answers["rows"]
        found[f"{asked.name}, generated"] = Share(answers["generated_hits"] / rows, low, high, rows)
    return found


def _generate(
    recommender: Recommender, rows: EvaluationRows, scores: Tensor, asked: Asked
) -> tuple[list[str], Protocols]:
    scorer, titles = recommender.scorer, rows.titles()
    final = settled(rows.data, rows.data.inter_feat, scores).numpy()
    answers = write_answers(
        scorer, rows.prompts, ANSWER_TOKENS, batch_size=asked.batch_size, progress=asked.progress
    )
    tokens = [len(scorer.collator.title_ids(title)) - 1 for title in titles]
    candidates = [row.candidates for row in rows.prompts]
    whose = rows.data.inter_feat[rows.data.uid_field].numpy()
    return answers, compare_protocols(candidates, titles, answers, final, tokens, whose)


def _write_answers(path: Path, rows: EvaluationRows, answers: Sequence[str]) -> None:
    """Write one JSON object a row, so that a reader can see what the model wrote."""
    with atomic_file(path) as handle:
        row_ids = rows.data.inter_feat[ROW_ID].tolist()
        for row_id, target, answer in zip(row_ids, rows.titles(), answers, strict=True):
            line = {"row_id": str(row_id), "target": target, "answer": answer}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
