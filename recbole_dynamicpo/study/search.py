"""A search for beta, margin and learning rate of the preference stage, by its validation rows alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import pipeline
from ..errors import DynamicPOError, NumericsError, SettingsError
from ..evaluation.report import metric_name
from ..ingredients import Ingredients, differing
from ..job import Job, check, place_of
from ..settings import read_settings
from ..storage import locked, write_json
from ..tracking.journal import Journal
from ..tracking.record import JOURNAL_FILE

# Searched on a logarithmic scale where so said: least, most.
SPACE: Mapping[str, tuple[float, float, bool]] = {
    "beta": (0.1, 10.0, True),
    "margin": (0.0, 12.0, False),
    "learning_rate": (1e-5, 3e-3, True),
}
DATABASE, BEST_FILE = "search.db", "search.json"
# Validations of a trial: a bad one is given up early, by what the median of the others had there.
VALIDATIONS, FULL_TRIALS = 4, 4


def search(
    job: Job, home: Path, trials: int, hours: float | None, tell: Callable[[str], object]
) -> dict[str, Any]:
    """Run trials until there are so many, and return the best one's settings, validation score and number.

    Trials are kept in a database in ``home``, so that a search that was killed goes on: the trial at hand
    from its checkpoint. No test row is ranked.

    Args:
        job: what all trials have in common.
        home: folder of the search.
        trials: in all, those of earlier calls included.
        hours: begin no further trial after so many; None: no limit.
        tell: is told of each trial.

    Raises:
        DynamicPOError: optuna is missing, the folder is that of another search, or no trial was finished.
    """
    optuna = _optuna()
    job = _validating(job)
    check(job)
    ended = None if hours is None else time.monotonic() + 3600 * hours
    with locked(home, wait=False):
        home.mkdir(parents=True, exist_ok=True)
        study = _open(optuna, job, home)
        counted = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        for _ in range(trials - len(study.get_trials(deepcopy=False, states=counted))):
            if ended is not None and time.monotonic() >= ended:
                break
            study.optimize(lambda trial: _score(optuna, trial, job), n_trials=1, catch=NumericsError)
            tell(_told(study.trials[-1]))
        return _best(optuna, study, home)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SettingsError(
            f"--search wants optuna ({error}): pip install 'recbole-dynamicpo[study]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _validating(job: Job) -> Job:
    """Return the job with validations within the stage, if its steps are known and nothing else is said."""
    settings = read_settings(job.settings_of())
    if settings.validate_every or not settings.preference_rows:
        return job
    per_epoch = math.ceil(
        settings.preference_rows / (settings.train_batch_size * settings.accumulation_steps)
    )
    every = max(1, settings.epochs * per_epoch // VALIDATIONS)
    return replace(job, overrides={**job.overrides, "validate_every": every})


def _open(optuna: Any, job: Job, home: Path) -> Any:
    """Return the study in ``home``; a trial that was killed is to be run again.

    Raises:
        SettingsError: it is one of other settings.
    """
    config = job.settings_of()
    study = optuna.create_study(
        storage=f"sqlite:///{(home / DATABASE).resolve()}",
        study_name="search",
        load_if_exists=True,
        direction="maximize" if config["valid_metric_bigger"] else "minimize",
        sampler=optuna.samplers.TPESampler(seed=read_settings(config).seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FULL_TRIALS),
    )
    ingredients = Ingredients(pipeline.prepare(job).outputs["ingredients"]).upto("preference")
    decided = {name: value for name, value in ingredients.items() if name not in SPACE}
    other = differing(study.user_attrs.get("decided", decided), decided)
    if other:
        raise SettingsError(
            f"{home}: holds a search with other {', '.join(other)}; wanted the same settings, or another "
            "--out"
        )
    study.set_user_attr("decided", decided)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _score(optuna: Any, trial: Any, job: Job) -> float:
    """Return the best validation score of a trial's preference stage, unless it is given up."""
    chosen = {name: trial.suggest_float(name, low, high, log=log) for name, (low, high, log) in SPACE.items()}
    own = replace(job, overrides={**job.overrides, **chosen})
    prepared = pipeline.prepare(own)
    pipeline.train(own, "sft", prepared)
    settings = own.settings_of()
    metric = metric_name(settings["valid_metric"])
    journal = Journal(place_of(prepared, "preference")[1] / JOURNAL_FILE)
    told: set[int] = set()

    def follow(stage: str, done: int, total: int) -> None:
        for entry in journal.entries(quiet=True):
            if entry["kind"] == "valid" and entry["step"] not in told:
                told.add(entry["step"])
                trial.report(entry[metric], entry["step"])
        if trial.should_prune():
            raise optuna.TrialPruned

    return float(pipeline.train(own, "preference", prepared, progress=follow).outputs["valid_score"])


def _told(trial: Any) -> str:
    chosen = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items())
    complete = trial.state.name == "COMPLETE"
    ended = (
        f"{trial.value:.4f}" if complete else str(trial.state.name).lower()
    )  # a pruned one has a value too
    return f"trial {trial.number}: {chosen}: {ended}"


def _best(optuna: Any, study: Any, home: Path) -> dict[str, Any]:
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        raise DynamicPOError(f"{home}: no trial was finished")
    best = study.best_trial
    found = {
        "settings": best.params,
        "valid_score": best.value,
        "trial": best.number,
        "trials": len(study.trials),
    }
    write_json(home / BEST_FILE, found)
    return found
