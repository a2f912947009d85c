"""Which stage's adapter is the run's model, and what its validation says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import calculate_valid_score, dict2str, early_stopping

from ..dataset.dataset import DynamicPODataset
from ..evaluation.ranks import COUNTING, POPULARITY, read_ranks, valid_ranks_file, write_ranks
from ..evaluation.report import REPORT_FILE, VIEWS
from ..evaluation.statistics import mrr_gain, paired_ranks, reciprocal_rank
from ..names import STAGES
from ..parallel import here
from ..serving.folder import FINAL_FILE
from ..serving.model_card import write_model_card
from ..storage import load_json, write_json
from .contestants import rank_by_counting, rank_in_voices
from .evaluating import Ranked, rank_by_popularity, row_names, rows_to_rank
from .reporting import Tables, card_results, where_to_go_on, write_report

logger = logging.getLogger(__name__)


def validate(trainer: Any, stage: str, epoch: int) -> bool:
    """Rank the validation rows, keep the adapter if it is its stage's best, and return whether to stop.

    Args:
        trainer: of the run.
        stage: that is being trained.
        epoch: told to RecBole's callback.
    """
    progress, rows = trainer.progress, rows_to_rank(trainer.valid_data, trainer.settings.seed)
    with progress.timed("validation"):
        found = rank_in_voices(trainer, rows, trainer.model.judged())
    result: dict[str, float] = here().decide(lambda: [*found.values()][-1].result)
    score = float(calculate_valid_score(result, trainer.valid_metric))
    best, bigger = progress.best_score, trainer.valid_metric_bigger
    worst = -np.inf if bigger else np.inf
    trainer.best_valid_score, progress.worse, stop, better = early_stopping(
        score, worst if best is None else best, progress.worse,
        max_step=trainer.settings.stopping_step, bigger=bigger,
    )  # fmt: skip
    if better:
        progress.best_score, progress.best_result = score, result
        trainer._save_adapter(stage)
        if here().first:
            keep_valid_ranks(trainer.run_folder, stage, trainer.model.dataset, rows._dataset, found)
    trainer.recorder.note(stage, progress.step, "valid", result)
    among = VIEWS["candidates"].among
    logger.info("%s step %d: validated among %s: %s", stage, progress.step, among, dict2str(result))
    if trainer.callback:
        trainer.callback(epoch, score)
    return bool(stop)


def keep_valid_ranks(
    folder: Path, stage: str, whole: DynamicPODataset, rows: DynamicPODataset, ranked: Mapping[str, Ranked]
) -> None:
    """Write the ranks by which a stage's adapter was chosen, and on the same rows those of counting.

    Args:
        folder: where the stage's adapter lies.
        stage: that was validated.
        whole: the built data set.
        rows: what was ranked.
        ranked: what the validation found of the model, and of priors with fitted weights where there are any;
            the model last.
    """
    *fitted, model = ranked.values()
    counted = [*rank_by_counting(whole, rows).values(), *fitted]
    best = max(counted, key=lambda found: float(reciprocal_rank(found.ranks).mean()))
    for name, found in ((stage, model), (POPULARITY, rank_by_popularity(rows)), (COUNTING, best)):
        names = row_names(whole, found)
        write_ranks(folder / valid_ranks_file(name), *names, found.ranks, found.rows)


def choose_final(adapters: Mapping[str, Path], last: str) -> str:
    """Return the stage whose model ranks best by MRR on its validation rows; ``last``, where none can tell.

    Args:
        adapters: of each stage, beside the ranks of its validation.
        last: the stage that was trained last.
    """
    found = {}
    for stage in STAGES[: STAGES.index(last) + 1]:
        path = adapters[stage].parent / valid_ranks_file(stage)
        if path.is_file():
            found[stage] = float(reciprocal_rank(read_ranks(path).ranks).mean())
    if last not in found:
        return last
    return max(found, key=lambda stage: (found[stage], stage == last))


def said_of(adapter: Path, stage: str, name: str) -> list[str]:
    """Return what validation says of the run's model against the best that only counts, in one line.

    Args:
        adapter: of the stage.
        stage: that was chosen.
        name: of the model.
    """
    ours, theirs = (adapter.parent / valid_ranks_file(who) for who in (stage, COUNTING))
    if not ours.is_file() or not theirs.is_file():
        return [f"the run's model: {name}"]
    pair = paired_ranks(read_ranks(ours), read_ranks(theirs), name, COUNTING)
    if len(set(pair[2].tolist())) < 2:
        return [f"the run's model: {name}"]
    gain: Any = mrr_gain(*pair)
    text = f"MRR {gain.mrr:.4f} against {gain.other:.4f} of the best that counts, on {gain.n} validation rows"
    if gain.better:
        verdict = f"better, p = {gain.p_better:.2g}"
    elif gain.worse:
        verdict = f"worse, p = {gain.p_worse:.2g}"
    else:
        verdict = (
            f"the language model adds no rank here that could be told from chance, p = {gain.p_better:.2g}"
        )
    return [f"the run's model: {name}; {text}: {verdict}"]


def report(trainer: Any, found: Tables) -> None:
    """Show and write what a run's evaluation found, and which stage's adapter is its model.

    Args:
        trainer: of the run, its stage chosen.
        found: of every contestant.
    """
    model, adapters, chosen = trainer.model, trainer.adapters, trainer.chosen
    notes = where_to_go_on(adapters["sft"], adapters[chosen])
    notes += said_of(adapters[chosen], chosen, model.voices()[model.final_voice])
    write_report(trainer.recorder.journal, model, found, trainer.progress.seconds, notes)
    write_json(trainer.run_folder / FINAL_FILE, {"stage": chosen})
    _tell_cards(trainer)


def _tell_cards(trainer: Any) -> None:
    """Write what the run's report says into the model cards of its adapters."""
    model, settings = trainer.model, trainer.settings
    rows = {phase: len(part.inter_feat) for phase, part in model.dataset.built.items()}
    about = (
        f"Run {trainer.run_folder.name}, seed {settings.seed}, on {model.dataset.dataset_name} (SHA-256 "
        f"`{trainer.ingredients.values['fact.data']}`): "
        + ", ".join(f"{count} {phase} rows" for phase, count in rows.items())
        + "."
    )
    written = load_json(trainer.run_folder / REPORT_FILE)
    for stage in STAGES[: STAGES.index(trainer.final_stage) + 1]:
        voice = "reference" if stage == "sft" and model.policy.has_reference else "policy"
        name = model.voices().get(voice)  # none where only the run's model was evaluated
        this = f"This adapter is the line *{name}*;" if name else "This adapter has no line of its own;"
        said = [about, this, f"the run's model is that of stage {trainer.chosen}."]
        write_model_card(trainer.adapters[stage], card_results(written, said))
