"""Evaluation of a saved adapter on a data set's test rows, by likelihood or by the paper's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .batches import PromptRow
from .dataset import CANDIDATE_IDS, ROW_ID, DynamicPODataset
from .errors import AdapterError
from .generate import Protocols, compare_protocols, write_answers
from .recommender import Recommender, load_recommender
from .report import Contestant, render, summarize
from .runner import PlainConfig, refuse_pickles
from .saved_folders import recommender_folder
from .scorer import Scorer
from .statistics import RANKS_FILE, write_ranks
from .storage import atomic_file, write_json

# Rows between two steps of the progress bar; the scorer batches within them.
_ROWS_AT_ONCE = 64
ANSWERS_FILE, REPORT_FILE = "answers.jsonl", "report.json"
# What a run's evaluation depends on, beside its adapter; taken from the run unless the user says otherwise.
_OF_THE_RUN = ("seed", "num_candidates", "candidate_field", "item_title_field")


@dataclass(frozen=True)
class EvaluationRows:
    """The rows to evaluate: lists of length n, and what to say of them.

    Attributes:
        prompts: each with all of its candidates as completions.
        targets: place of the item chosen among the candidates.
        row_ids: as in the run's own evaluation.
        users: their ids.
        notes: what a reader of figures on these rows has to know.
    """

    prompts: list[PromptRow]
    targets: list[int]
    row_ids: list[str]
    users: list[str]
    notes: list[str]

    def titles(self) -> list[str]:
        """Return the true titles."""
        return [row.candidates[place] for row, place in zip(self.prompts, self.targets, strict=True)]


def read_test_rows(
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    run: Path | None = None,
) -> EvaluationRows:
    """Return the test rows of a data set with the candidates that a run gives them.

    Args:
        dataset: its name.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files: ``data_path``, ``eval_rows``, ``seed`` and others.
        run: folder whose ``run.json`` tells the candidates' settings where the user does not.

    Raises:
        DynamicPOError: anything wrong with settings or data.
    """
    # No training happens here, so K may not be what stops a small candidate list.
    given = {"num_negatives": 1, **(overrides or {})}
    config = PlainConfig("DynamicPO", dataset, list(config_files), given)
    for key, value in _settings_of(run).items():
        if key in _OF_THE_RUN and key not in config.external_config_dict:
            config[key] = value
    refuse_pickles(config)
    data = DynamicPODataset(config)
    data.build()
    rows = data.built["test"].inter_feat
    candidates, chosen = rows[CANDIDATE_IDS].numpy(), rows[data.iid_field].numpy()
    used, total = data.subsampled()["test"]
    return EvaluationRows(
        prompts=data.prompt_rows(rows, candidates),
        targets=(candidates == chosen[:, None]).argmax(axis=1).tolist(),
        row_ids=[str(row) for row in rows[ROW_ID].tolist()],
        users=[str(user) for user in data.id2token(data.uid_field, rows[data.uid_field].numpy())],
        notes=[*data.notes, f"test rows: {used} of {total}"],
    )


def _settings_of(run: Path | None) -> dict[str, Any]:
    """Return what a run folder says of its settings; nothing where there is no such record."""
    path = run / "run.json" if run else None
    if path is None or not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: not a readable record of a run ({error})") from error


def evaluate_saved(
    path: Path,
    dataset: str,
    protocol: str,
    *,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    out: Path | None = None,
    progress: bool = True,
) -> str:
    """Evaluate a saved adapter on a data set's test rows and return the figures as text.

    Args:
        path: folder of a run, or a recommender folder in it.
        dataset: name of the data set.
        protocol: ``likelihood``: rank the candidates by log-probability. ``generate``: the paper's, with
            the likelihood figures of the same rows beside it.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        batch_size: rows per batch of generation.
        out: folder for the ranks of every row, the figures and the answers; None writes nothing.
        progress: show bars, where there is a terminal.

    Raises:
        DynamicPOError: anything wrong with the adapter, the settings or the data.
    """
    folder = recommender_folder(path)
    recommender = load_recommender(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    rows = read_test_rows(dataset, config_files, overrides, path if folder != path else path.parent)
    scores = _score(recommender.scorer, rows.prompts, progress)
    contestant = Contestant(str(folder), candidate_ranks(scores, rows.targets))
    figures: dict[str, Any] = {"likelihood": summarize(contestant)}
    if protocol == "likelihood":
        width = max(len(row.candidates) for row in rows.prompts)
        text = render([contestant], candidates=width, seconds={}, notes=rows.notes)
    else:
        answers, found = _generate(recommender, rows, scores, batch_size, progress)
        figures["generate"] = asdict(found)
        text = "\n".join([found.table(), *rows.notes])
        if out:
            _write_answers(out / ANSWERS_FILE, rows, answers)
    if out:
        write_ranks(out / RANKS_FILE, rows.row_ids, rows.users, contestant.ranks)
        write_json(out / REPORT_FILE, figures)
    return text


def _score(scorer: Scorer, rows: Sequence[PromptRow], progress: bool) -> NDArray[np.float32]:
    """Return (n, C) log-probabilities of the candidates in prompt order, -inf where a row has fewer."""
    width = max(len(row.completions) for row in rows)
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    with tqdm(total=len(rows), desc="likelihood", unit=" rows", disable=None if progress else True) as bar:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = scorer(rows[start : start + _ROWS_AT_ONCE]).numpy()
            scores[start : start + len(part), : part.shape[1]] = part
            bar.update(len(part))
    return scores


def candidate_ranks(scores: NDArray[Any], targets: Sequence[int]) -> NDArray[np.int64]:
    """Return (n,) 1 + candidates that score strictly higher than the target, as in a run's own evaluation.

    Args:
        scores: (n, C), -inf where a row has fewer candidates.
        targets: (n,) places of the targets.
    """
    chosen = np.take_along_axis(scores, np.array(targets)[:, None], axis=1)
    ranks: NDArray[np.int64] = 1 + (scores > chosen).sum(axis=1)
    return ranks


def _generate(
    recommender: Recommender,
    rows: EvaluationRows,
    scores: NDArray[np.floating],
    batch_size: int,
    progress: bool,
) -> tuple[list[str], Protocols]:
    scorer, titles = recommender.scorer, rows.titles()
    answers = write_answers(scorer, rows.prompts, batch_size=batch_size, progress=progress)
    tokens = [len(scorer.collator.title_ids(title)) - 1 for title in titles]
    return answers, compare_protocols(rows.prompts, titles, answers, scores, tokens)


def _write_answers(path: Path, rows: EvaluationRows, answers: Sequence[str]) -> None:
    """Write one JSON object a row, so that a reader can see what the model wrote."""
    with atomic_file(path) as handle:
        for row_id, target, answer in zip(rows.row_ids, rows.titles(), answers, strict=True):
            line = {"row_id": row_id, "target": target, "answer": answer}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
