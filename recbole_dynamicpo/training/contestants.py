"""Contestants that learn by counting: rules of lists, popularity, co-occurrence, transitions, EASE.

They rank the very rows that a model ranks, from training rows alone, and so say what a figure is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction

from ..data.counting import CoOccurrence, Counting, Ease, Popularity, Sequences, Transitions, next_item
from ..data.rules import CompanyRule, FloatArray, OrderRule, PlaceRule, Rows
from ..dataset.columns import CANDIDATE_IDS
from ..dataset.dataset import DynamicPODataset
from ..evaluation.ranks import POPULARITY
from ..likelihoods.catalogue import CatalogueLikelihood
from ..names import RETRIEVER
from ..parallel import here
from .evaluating import Ranked, RankingTrainer, rank_candidates
from .whole_catalogue import Scores, WholeCatalogue, as_scores

# Share of popularity in a counting model's guess.
POPULARITY_SHARE = 0.05
# Items up to which EASE's matrix is inverted: some seconds and 8 bytes a pair.
MOST_FOR_EASE = 6000
# Rows that a retriever is asked about together.
AT_ONCE = 256
# Scores of all titles that are kept to rank the candidates by too: 1 GB.
MOST_KEPT = 1 << 28


def rank_all(
    trainer: RankingTrainer, rows: FullSortEvalDataLoader, show_progress: bool
) -> dict[str, dict[str, Ranked]]:
    """Return what setting ``rank_among`` asks for -> name -> what is found, the final model last.

    The first process of a run ranks; the others score for it, and return nothing.

    Args:
        trainer: whose model speaks in every voice.
        rows: of ``rows_to_rank``.
        show_progress: show RecBole's progress bar.
    """
    model = trainer.model
    spoken = [voice for voice in model.voices() if voice != POPULARITY]
    among = model.settings.rank_among
    scores = len(rows._dataset.inter_feat) * len(spoken) * model.dataset.item_num
    ways = {"candidates": _among_candidates, "all": _among_all}
    keeps = len(among) > 1 and scores <= MOST_KEPT and not model.settings.first_stage
    with model.answers.together(spoken, _batches(rows), whole=keeps):
        if here().first:
            return {name: dict(ways[name](trainer, rows, show_progress)) for name in among}
        model.answers.help_out(among)
    return {}


def rank_in_voices(
    trainer: RankingTrainer, rows: FullSortEvalDataLoader, voices: Mapping[str, str]
) -> dict[str, Ranked]:
    """Return name -> what the model in some of its voices is found to rank among candidates.

    The first process of a run ranks; the others score for it, and return nothing.

    Args:
        trainer: whose model speaks.
        rows: of ``rows_to_rank``.
        voices: voice -> name.
    """
    model, found = trainer.model, {}
    with model.answers.together(list(voices), _batches(rows)):
        if not here().first:
            model.answers.help_out(["candidates"])
            return {}
        for voice, name in voices.items():
            with model.speaking_as(voice):
                found[name] = trainer.rank_rows(rows)
    return found


def _batches(rows: FullSortEvalDataLoader) -> list[Interaction]:
    """Return the batches of rows, which several processes deal among them."""
    return [] if here().alone else [batch[0] for batch in rows]


def _among_candidates(
    trainer: RankingTrainer, rows: FullSortEvalDataLoader, show_progress: bool
) -> Iterator[tuple[str, Ranked]]:
    model = trainer.model
    asked = next(voice for voice in model.voices() if voice != POPULARITY)  # all are then answered at once
    for voice, name in model.voices().items():
        with model.speaking_as(voice):
            yield name, trainer.rank_rows(rows, show_progress and voice == asked)
        if voice == POPULARITY:
            yield from rank_by_counting(model.dataset, rows._dataset).items()
            yield from rank_by_retrieving(retrieving(model.likelihood), rows._dataset).items()


def _among_all(
    trainer: RankingTrainer, rows: FullSortEvalDataLoader, show_progress: bool
) -> Iterator[tuple[str, Ranked]]:
    model = trainer.model
    catalogue = WholeCatalogue(model.dataset)
    for voice, name in model.voices().items():
        if voice != POPULARITY:
            with model.speaking_as(voice):
                yield name, trainer.rank_among_all(rows, catalogue, model.title_scores)
            continue
        for counted, scores in [*all_by_counting(catalogue), *retrieving(model.likelihood).items()]:
            yield counted, trainer.rank_among_all(rows, catalogue, scores)


def all_by_counting(catalogue: WholeCatalogue) -> Iterator[tuple[str, Scores]]:
    """Yield each counting model and what it gives all titles; popularity first."""
    counted = train_sequences(catalogue.data)
    popularity = Popularity(counted)
    yield POPULARITY, as_scores(popularity.scores, catalogue)
    for name, count in counting_models(catalogue.data.item_num):
        model = count(counted)
        yield name, as_scores(partial(next_item, model, popularity, share=POPULARITY_SHARE), catalogue)


def rank_by_counting(whole: DynamicPODataset, data: DynamicPODataset) -> dict[str, Ranked]:
    """Return name -> ranks that counting gives to the rows of ``data``.

    The rules of lists come first, where the lists are published ones.

    Args:
        whole: the built data set, whose training rows are counted.
        data: n rows with their candidates.
    """
    rows = rows_of(data)
    ranked = {}
    for name, scores in _scores(whole, rows):
        table = torch.from_numpy(np.where(rows.candidates > 0, scores, -np.inf))
        ranked[name] = rank_candidates(data, table)
    return ranked


def retrieving(likelihood: object) -> dict[str, Scores]:
    """Return name -> what a retriever below a likelihood gives all distinct titles."""
    if not isinstance(likelihood, CatalogueLikelihood):
        return {}
    return {
        name_of_retriever(name): partial(likelihood.retrieved, name) for name in likelihood.priors.retrievers
    }


def name_of_retriever(prior: str) -> str:
    """Return what tables call a retriever; ``prior`` as the setting calls it."""
    return f"retriever {prior.removeprefix(RETRIEVER)}"


def rank_by_retrieving(retrieving: Mapping[str, Scores], data: DynamicPODataset) -> dict[str, Ranked]:
    """Return name -> ranks that retrievers give to the rows of ``data`` by themselves.

    Args:
        retrieving: what each gives all distinct titles.
        data: n rows with their candidates.
    """
    if not retrieving:
        return {}
    rows, ranked = data.inter_feat, {}
    numbers = WholeCatalogue(data).number[rows[CANDIDATE_IDS]]
    for name, scores in retrieving.items():
        parts = [scores(rows[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE)]
        found = torch.cat(parts).gather(1, numbers.clamp(min=0)).masked_fill(numbers < 0, -torch.inf)
        ranked[name] = rank_candidates(data, found)
    return ranked


def _scores(whole: DynamicPODataset, rows: Rows) -> Iterator[tuple[str, FloatArray]]:
    """Yield name and (N, C) scores of each contestant."""
    items = whole.item_num
    rules: tuple[tuple[str, Callable[[Rows, int], PlaceRule | CompanyRule | OrderRule]], ...] = (
        ("rule: place", PlaceRule), ("rule: company", CompanyRule), ("rule: order", OrderRule),
    )  # fmt: skip
    if whole.lists_published:
        train = train_rows(whole)
        for name, learn in rules:
            yield name, learn(train, items).scores(rows)
    counted = train_sequences(whole)
    popularity = Popularity(counted)
    for name, count in counting_models(items):
        model = count(counted)
        found = [next_item(model, popularity, history, POPULARITY_SHARE) for history in rows.histories]
        chosen = [guess[ids] for guess, ids in zip(found, rows.candidates, strict=True)]
        yield name, np.stack(chosen) if chosen else np.zeros(rows.candidates.shape)


def counting_models(items: int) -> list[tuple[str, Callable[[Sequences], Counting]]]:
    """Return the counting models beside popularity that a catalogue of so many items allows."""
    models: list[tuple[str, Callable[[Sequences], Counting]]] = [
        ("co-occurrence", CoOccurrence),
        ("transitions", Transitions),
    ]
    return [*models, ("EASE", Ease)] if items <= MOST_FOR_EASE else models


def rows_of(data: DynamicPODataset) -> Rows:
    """Return the rows of one split, with the candidates that they are ranked among."""
    return _rows(data, data.inter_feat)


def train_rows(data: DynamicPODataset) -> Rows:
    """Return all training rows of a built data set, with the candidates that training would show."""
    return _rows(data, data.stage_rows(0))


def _rows(data: DynamicPODataset, rows: Interaction) -> Rows:
    columns = (rows[name].numpy() for name in (CANDIDATE_IDS, data.iid_field, data.uid_field))
    return Rows(data.history(rows), *columns)


def train_sequences(data: DynamicPODataset) -> Sequences:
    """Return what each user took in training, in order: the first history, then every target.

    Pre-split rows that continue one another are one sequence, so that no title counts more than once.
    """
    rows = data.built["train"].inter_feat
    users, targets = rows[data.uid_field].numpy(), rows[data.iid_field].numpy()
    histories = data.history(rows)
    order = np.argsort(users, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(users[order])) + 1) if len(order) else []
    of_user = {int(users[group[0]]): np.append(histories[group[0]], targets[group]) for group in groups}
    return Sequences(data.item_num, of_user)
