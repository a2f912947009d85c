"""Run any RecBole model, ours or a stock one, from settings that are never evaluated as code."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data.dataloader import NegSampleEvalDataLoader

from ..dataset.data_files import check_splits
from ..errors import DataError, PeerError, SettingsError, StoppedError
from ..evaluation.report import VIEWS, figures_text
from ..names import MODEL_NAMES
from ..parallel import here, is_one_of_several
from ..settings import read_settings
from ..storage import check_can_be_made, locked
from ..tracking.run_folder import check_identity
from ..training.checkpoint import CHECKPOINT, load_progress
from ..training.evaluating import rows_to_rank
from ..training.plan import check_rows
from ..training.recording import gather
from .config import checked_config
from .defaults import lineage
from .registration import MLflowTracking


def run(
    model: str | type,
    dataset: str,
    config_files: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and test a model as RecBole's ``run_recbole`` does, and return its result.

    Args:
        model: name of one of our models or of a stock RecBole model, or a class.
        dataset: name of the data set.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        saved: keep the best model and test that one.

    Raises:
        DynamicPOError: anything wrong with settings, data, backbone or adapters.
    """
    try:
        config, loaded, trainer = _made_ready(model, dataset, config_files, overrides or {})
    except (StoppedError, PeerError) as error:
        raise type(error)(f"{error}, before anything was trained; the same command starts again") from error
    ours = bool(lineage(config.model_class))
    show, logger = {"saved": saved, "show_progress": config["show_progress"]}, logging.getLogger()
    # Our trainer records itself, and says last what became of its model.
    if ours:
        best_score, best_result = trainer.fit(loaded.train, loaded.valid, **show)
        among = VIEWS["candidates"].among
        logger.info("best validation among %s: %s", among, figures_text(best_result))
        test_result = trainer.evaluate(
            loaded.test, load_best_model=saved, show_progress=config["show_progress"]
        )
    else:
        best_score, best_result, test_result = _run_stock(config, loaded, trainer, show)
        logger.info("best valid: %s", figures_text(best_result))
        logger.info("test result: %s", figures_text(test_result))
    found = {"run_folder": str(trainer.run_folder)} if ours else {}
    if ours and trainer.recorder.published:
        found["published"] = trainer.recorder.published
    return {
        **found,
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_result,
        "test_result": test_result,
    }


def _made_ready(
    model: str | type, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[Config, Loaded, Any]:
    """Return configuration, data with the model, and the trainer of a run."""
    from recbole.utils import get_trainer, init_logger

    config = checked_config(model, dataset, config_files, overrides)
    ours = bool(lineage(config.model_class))
    if is_one_of_several() and not ours:
        raise SettingsError(
            f"model: got {config['model']} in processes of torchrun, wanted one of {', '.join(MODEL_NAMES)} "
            "(models of RecBole's own would each train alone; run_recbole --nproc is their way)"
        )
    if ours:
        _check_folders(config)
    if here().first:
        init_logger(config)
    logger = logging.getLogger()
    logger.info(config)
    loaded = load(config)
    logger.info(loaded.model)
    return config, loaded, get_trainer(config["MODEL_TYPE"], config["model"])(config, loaded.model)


def _check_folders(config: Config) -> None:
    """See before data and backbone are read that a run can be written, or gone on with.

    Raises:
        SettingsError: no folder can be made there.
        CheckpointError: nothing to go on with, or a run of other settings or data.
        LockedError: another process is at the run.
    """
    settings = read_settings(config)
    try:
        check_can_be_made(Path(config["checkpoint_dir"]))
    except SettingsError as error:
        raise SettingsError(f"checkpoint_dir: {error}") from error
    if settings.resume:
        folder = Path(settings.resume)
        load_progress(folder / CHECKPOINT)
        # Who is in there is said before the long loading; the folder is held from training on.
        with locked(folder, wait=False) if here().first else nullcontext():
            pass
        check_identity(folder, gather(config, settings).upto("preference"))


def _run_stock(config: Config, loaded: Loaded, trainer: Any, show: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Train and test a stock model; return the best score and the metrics on valid and test."""
    from .stock_record import recorded

    with recorded(config, loaded, MLflowTracking()) as record:
        # RecBole's trainers of decision trees take no callback.
        takes_callback = "callback_fn" in inspect.signature(trainer.fit).parameters
        more = {"callback_fn": record.epoch} if takes_callback else {}
        score, valid = trainer.fit(loaded.train, loaded.valid, **show, **more)
        test = trainer.evaluate(
            loaded.test, load_best_model=show["saved"], show_progress=show["show_progress"]
        )
        record.results(valid, test)
    return score, valid, test


@dataclass(frozen=True)
class Loaded:
    """RecBole's loaders of the three splits, and the model."""

    train: Any
    valid: Any
    test: Any
    model: Any


def load(config: Config) -> Loaded:
    """Load data and model of a configuration, seeded as RecBole does it."""
    from recbole.data import data_preparation
    from recbole.utils import init_seed

    from .stock_histories import create_dataset

    init_seed(config["seed"], config["reproducibility"])
    data = create_dataset(config)
    logging.getLogger().info(data)
    _check_labels(config, data)
    try:
        train, valid, test = data_preparation(config, data)
    except ValueError as error:  # torch, of a loader that is to shuffle no rows
        raise DataError(
            f"data set '{config['dataset']}': RecBole cannot make training rows with these settings "
            f"({error}); are there any users with two interactions?"
        ) from error
    check_splits(data, {"train": train._dataset, "valid": valid._dataset, "test": test._dataset})
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = config.model_class(config, train._dataset).to(config["device"])
    if lineage(config.model_class):
        _check_sampled_prompts(config, model, {"valid": valid, "test": test})
    return Loaded(train, valid, test, model)


def _check_sampled_prompts(config: Config, model: Any, loaders: Mapping[str, Any]) -> None:
    """See that prompts with the candidates of RecBole's sampled evaluation (uniN, popN) fit."""
    for phase, loader in loaders.items():
        if isinstance(loader, NegSampleEvalDataLoader):
            rows = rows_to_rank(loader, model.settings.seed)._dataset.inter_feat
            check_rows(model.dataset, model.collator, phase, rows)


def _check_labels(config: Config, data: Any) -> None:
    """See to it that rows have labels where they are evaluated by them."""
    asked = "labeled" in config["eval_args"]["mode"].values()
    if asked and data.label_field not in data.inter_feat.columns:
        raise DataError(
            f"eval_args: got mode labeled, but the rows of data set '{config['dataset']}' have no column "
            f"'{data.label_field}'; wanted it in load_col, or made by setting threshold"
        )


def run_distributed(
    model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Run a stock model in ``overrides["nproc"]`` processes, one a GPU, in RecBole's own way.

    RecBole 1.2.1 measures wrongly then: rows are doubled until they divide among the processes, each batch
    weighs the four parts of its tuple instead of its rows, and the name of the saved file has the second of
    the process that made it. A warning says so at the start.
    """
    import torch.multiprocessing

    logging.getLogger(__name__).warning(
        "%s in %s processes: RecBole 1.2.1's metrics are wrong then (rows are doubled until they divide, and "
        "every batch weighs the same whatever its rows), and the saved model may not be found, as its name "
        "holds the second at which each process started; --nproc=1 measures rightly",
        model, overrides["nproc"],
    )  # fmt: skip
    arguments = (model, dataset, list(config_files), dict(overrides))
    torch.multiprocessing.spawn(run_rank, args=arguments, nprocs=overrides["nproc"], join=True)


def run_rank(
    rank: int, model: str, dataset: str, config_files: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Run one process of ``run_distributed``; importing this module has registered our models."""
    run(model, dataset, config_files, {**overrides, "local_rank": rank})
