"""The test rows that a saved model ranks, with the candidate lists and the order that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.data import data_preparation

from ..dataset.columns import CANDIDATE_IDS
from ..dataset.dataset import DynamicPODataset
from ..errors import AdapterError, SettingsError
from ..host.config import PlainConfig, read_settings_files, refuse_pickles
from ..ingredients import decides, nested_settings
from ..names import CANDIDATE_SOURCES
from ..scoring.batches import PromptRow
from ..serving.packaging import SETTINGS_FILE
from ..settings import Settings, fields_of_settings, properties_folder
from ..storage import load_json
from ..tracking.record import RECORD_FILE
from ..training.evaluating import rows_to_rank

PUBLISHED, FRESH = CANDIDATE_SOURCES
# As the authors order a user's titles.
_PUBLISHED_ORDER = {"history_order": "time", "time_ties": "file"}


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
    return EvaluationRows(
        whole=whole,
        data=data,
        prompts=data.prompt_rows(data.inter_feat, data.inter_feat[CANDIDATE_IDS].numpy()),
        notes=[*whole.notes, f"test rows: {used} of {total}"],
        rows_at_once=data.settings.eval_batch_size,
    )


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


def with_lists(lists: str, dataset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides that ask for rows with certain candidate lists.

    Args:
        lists: ``published``, in the published order; or ``fresh``, drawn anew, in the order that our file of
            the data set has, which is shuffled where the published order gives targets away.
        dataset: its name.
        overrides: of the user, whose own word on the order holds.
    """
    order: dict[str, Any] = _PUBLISHED_ORDER
    if lists == FRESH:
        path = properties_folder() / "dataset" / f"{dataset}.yaml"
        own = read_settings_files([str(path)] if path.is_file() else [])
        order = {name: own.get(name, getattr(Settings(), name)) for name in _PUBLISHED_ORDER}
    return {**order, **overrides, "candidate_source": lists}


def check_lists(lists: str, rows: EvaluationRows) -> None:
    """Refuse rows that were to keep published lists and have none.

    Raises:
        SettingsError: they have none.
    """
    if lists == PUBLISHED and not rows.whole.lists_published:
        data = rows.whole.dataset_name
        raise SettingsError(f"lists: got {PUBLISHED}, but the rows of data set '{data}' carry no candidates")
