"""Evaluation of a saved adapter on a data set's test rows, by likelihood or by the paper's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data import data_preparation
from torch import Tensor
from tqdm import tqdm

from ..dataset.columns import CANDIDATE_IDS, ROW_ID
from ..dataset.dataset import DynamicPODataset
from ..dataset.sampling import IntArray
from ..errors import AdapterError
from ..evaluation.protocols import ANSWER_TOKENS, Protocols, compare_protocols
from ..evaluation.ranks import ALL_RANKS_FILE, POPULARITY, RANKS_FILE, write_ranks
from ..evaluation.report import REPORT_FILE, VIEWS, Contestant, render, summarize
from ..ingredients import decides, nested_settings
from ..language_model.policy import POLICY
from ..parallel import here, join
from ..scoring.answers import write_answers
from ..scoring.batches import PromptRow
from ..serving.folder import default_device
from ..serving.mlflow_store import opened_recommender
from ..serving.packaging import SETTINGS_FILE
from ..serving.recommender import Recommender, load_recommender
from ..settings import fields_of_settings
from ..storage import atomic_file, load_json, write_json
from ..title_trie.two_stages import in_two_stages
from ..tracking.record import RECORD_FILE
from ..training.contestants import rank_by_counting
from ..training.evaluating import rank_by_popularity, rank_candidates, row_names, rows_to_rank, settled
from ..training.whole_catalogue import WholeCatalogue
from .config import PlainConfig, refuse_pickles

ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True)
class EvaluationRows:
    """The rows to evaluate, and what to say of them.

    Attributes:
        whole: the built data set.
        data: n rows with the candidates that they are ranked among.
        prompts: each with all of its candidates as completions.
        notes: what a reader of figures on these rows has to know.
        rows_at_once: RecBole's evaluation batch; the scorer batches within it, so scores depend on it in
            their last bits.
    """

    whole: DynamicPODataset
    data: DynamicPODataset
    prompts: list[PromptRow]
    notes: list[str]
    rows_at_once: int

    def titles(self) -> list[str]:
        """Return the true titles."""
        chosen: list[str] = self.data.titles[self.data.inter_feat[self.data.iid_field].numpy()].tolist()
        return chosen


def read_test_rows(
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> EvaluationRows:
    """Return the test rows of a data set with the candidates that a run gives them.

    Args:
        dataset: its name.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files: ``data_path``, ``eval_rows``, ``seed`` and others.
        made_with: the run's settings, for what the user does not say.

    Raises:
        DynamicPOError: anything wrong with settings or data.
    """
    # No training happens here, so K may not be what stops a small candidate list.
    given = {"num_negatives": 1, **(overrides or {})}
    files = list(config_files)
    base = PlainConfig("DynamicPO", dataset, files, given)
    said, known = base.external_config_dict, {*fields_of_settings(), *base.internal_config_dict}
    of_the_run = {
        key: value for key, value in (made_with or {}).items() if key in known and _shapes_rows(key)
    }
    config = PlainConfig("DynamicPO", dataset, files, {**of_the_run, **said})
    refuse_pickles(config)
    whole = DynamicPODataset(config)
    _, _, test = data_preparation(config, whole)
    data = rows_to_rank(test, whole.settings.seed)._dataset
    used, total = whole.subsampled()["test"]
    prompts = data.prompt_rows(data.inter_feat, data.inter_feat[CANDIDATE_IDS].numpy())
    notes = [*whole.notes, f"test rows: {used} of {total}"]
    return EvaluationRows(whole, data, prompts, notes, data.settings.eval_batch_size)


def _shapes_rows(name: str) -> bool:
    """Say whether the rows of an evaluation, or the batches that they are scored in, depend on a setting."""
    return decides(name) == "prepare" or name in ("eval_rows", "eval_batch_size", "first_stage")


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings that a recommender was made with; nothing where there is no such record.

    Args:
        folder: the recommender folder; the record lies in it (``settings.json``, if it comes from MLflow)
            or in the folder of the run around it (``record.json``).

    Raises:
        AdapterError: the record is damaged.
    """
    for path in (folder / SETTINGS_FILE, folder.parent / RECORD_FILE):
        if path.is_file():
            try:
                found = load_json(path)
                params = found if path.name == SETTINGS_FILE else found["params"]
                return nested_settings(params)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise AdapterError(f"{path}: not a readable record of a run ({error!r})") from error
    return {}


def evaluate_saved(
    source: str | Path,
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

    What the user does not say is as in the run that made the adapter, so that its test figures come out
    again, to the last bit on the same machine.

    Args:
        source: folder of a run, a recommender folder in it, or a ``models:/`` or ``runs:/`` URI.
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
    writes = join().first
    with opened_recommender(source) as folder:
        recommender = load_recommender(folder, device=default_device())
        made_with = settings_of(folder)
    rows = read_test_rows(dataset, config_files, overrides, made_with)
    saved = _Saved(recommender, rows, progress)
    scores = saved.scores()
    ranked = rank_candidates(rows.data, scores)
    contestant = Contestant(str(source), ranked.ranks, saved.logps)
    figures: dict[str, Any] = {"likelihood": summarize(contestant)}
    notes = [*rows.notes, *saved.notes]
    if protocol == "likelihood":
        counted = {POPULARITY: rank_by_popularity(rows.data), **rank_by_counting(rows.whole, rows.data)}
        lines = [*(Contestant(name, found.ranks) for name, found in counted.items()), contestant]
        text = render(lines, chance=ranked.chance, seconds={}, notes=[] if saved.ranks_all else notes)
        figures["contestants"] = [summarize(line) for line in lines]
        if saved.ranks_all:
            view, everything = VIEWS["all"], Contestant(str(source), np.array(saved.ranks_all))
            figures[view.key] = [summarize(everything, view)]
            table = render([everything], chance=1 / saved.count, seconds={}, notes=notes, view=view)
            text = f"among {VIEWS['candidates'].among}\n{text}\namong {view.among}\n{table}"
    else:
        answers, found = _generate(recommender, rows, scores, batch_size, progress)
        figures["generate"] = asdict(found)
        text = "\n".join([found.table(), *notes])
        if out and writes:
            _write_answers(out / ANSWERS_FILE, rows, answers)
    if out and writes:
        names = row_names(rows.data, ranked.row_ids)
        write_ranks(out / RANKS_FILE, *names, ranked.ranks, ranked.rows)
        if saved.ranks_all:
            digests = WholeCatalogue(rows.whole).digests(ranked.rows)
            write_ranks(out / ALL_RANKS_FILE, *names, np.array(saved.ranks_all), digests)
        write_json(out / REPORT_FILE, figures)
    return text


class _Part(NamedTuple):
    """What is found of some rows."""

    scores: Tensor  # (n, C) of their candidates
    ranks: Sequence[int] = ()  # of the titles chosen among all titles, where asked for


class _Saved:
    """Scores rows as a saved recommender does: by its catalogue, where that knows all of their titles.

    Attributes:
        notes: what a reader has to know of the scores.
        logps: (n,) of the titles chosen among all titles, nats; None where the vocabulary scores.
        ranks_all: of the titles chosen among all titles, where settings ask for them.
        count: distinct titles.
    """

    def __init__(self, recommender: Recommender, rows: EvaluationRows, progress: bool) -> None:
        self.scorer, self.rows, self.progress = recommender.scorer, rows, progress
        self.notes: list[str] = []
        self.logps: np.ndarray[Any, Any] | None = None
        self.ranks_all: list[int] = []
        self.catalogue = recommender.ranker.scorer if recommender.ranker is not None else None
        titles = rows.whole.catalogue.distinct_titles
        self.count = len(titles)
        if self.catalogue is not None and list(self.catalogue.number) != list(titles):
            self.catalogue = None
            self.notes.append(
                "scored by the vocabulary: the model's catalogue is another one than the data set's"
            )

    def scores(self) -> Tensor:
        """Return (n, C) log-probabilities of the candidates in prompt order, -inf where a row has fewer."""
        prompts, step, processes = self.rows.prompts, self.rows.rows_at_once, here()
        score = self._by_vocabulary
        if self.catalogue is not None:
            everything = "all" in self.rows.data.settings.rank_among
            score = self._among_all if everything else self._by_catalogue
        scores = torch.full((len(prompts), max(len(row.completions) for row in prompts)), -torch.inf)
        starts, own, shows = range(0, len(prompts), step), {}, self.progress and processes.first
        quiet = None if shows else True
        with tqdm(total=len(prompts), desc="likelihood", unit=" rows", disable=quiet) as bar:
            for start in starts[processes.rank :: processes.world]:
                own[start] = score(slice(start, start + step))
                bar.update(len(prompts[start : start + step * processes.world]))
        found = processes.merge(own)
        for start in starts:
            part, ranks = found[start]
            scores[start : start + len(part), : part.shape[1]] = part
            self.ranks_all += ranks
        if self.catalogue is not None:
            interaction = self.rows.data.inter_feat
            chosen = interaction[CANDIDATE_IDS] == interaction[self.rows.data.iid_field][:, None]
            self.logps = scores.gather(1, chosen.int().argmax(dim=1)[:, None])[:, 0].numpy()
        return scores

    def _by_vocabulary(self, part: slice) -> _Part:
        return _Part(self.scorer(self.rows.prompts[part]))

    def _numbers(self, part: slice) -> IntArray:
        assert self.catalogue is not None
        return self.catalogue.numbers([row.completions for row in self.rows.prompts[part]])

    def _by_catalogue(self, part: slice) -> _Part:
        assert self.catalogue is not None
        return _Part(self.catalogue.in_voices(self.rows.prompts[part], self._numbers(part), [POLICY])[POLICY])

    def _among_all(self, part: slice) -> _Part:
        assert self.catalogue is not None
        prompts, rows = self.rows.prompts[part], self.rows.data.inter_feat[part]
        everything, count = WholeCatalogue(self.rows.whole), self.rows.whole.settings.first_stage
        if count:
            found = in_two_stages(self.catalogue, prompts, [POLICY], count, everything.left_out(rows))[POLICY]
            own = self._by_catalogue(part).scores
        else:
            found = self.catalogue.all_in_voices(prompts, [POLICY])[POLICY]
            numbers = torch.from_numpy(self._numbers(part))
            own = found.gather(1, numbers.clamp(min=0)).masked_fill(numbers < 0, -torch.inf)
        return _Part(own, everything.judge(rows, found, 1)[0].tolist())


def _generate(
    recommender: Recommender, rows: EvaluationRows, scores: Tensor, batch_size: int, progress: bool
) -> tuple[list[str], Protocols]:
    scorer, titles = recommender.scorer, rows.titles()
    final = settled(rows.data, rows.data.inter_feat, scores).numpy()
    answers = write_answers(scorer, rows.prompts, ANSWER_TOKENS, batch_size=batch_size, progress=progress)
    tokens = [len(scorer.collator.title_ids(title)) - 1 for title in titles]
    candidates = [row.candidates for row in rows.prompts]
    return answers, compare_protocols(candidates, titles, answers, final, tokens)


def _write_answers(path: Path, rows: EvaluationRows, answers: Sequence[str]) -> None:
    """Write one JSON object a row, so that a reader can see what the model wrote."""
    with atomic_file(path) as handle:
        row_ids = rows.data.inter_feat[ROW_ID].tolist()
        for row_id, target, answer in zip(row_ids, rows.titles(), answers, strict=True):
            line = {"row_id": str(row_id), "target": target, "answer": answer}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
