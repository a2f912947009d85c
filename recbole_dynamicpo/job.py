"""What is asked of the four stages, and which settings each of them depends on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .host.config import PlainConfig, plain_config, refuse_pickles
from .language_model.adapter_folder import adapter_digest
from .language_model.backbone import check_backbone
from .settings import Settings, read_settings
from .tracking.record import PLACES, RECORDED, flat_settings
from .training.data_files import can_be_fetched, require_data
from .training.stage_results import StageResult, stage_folder, stage_key

# Settings that only a later stage depends on.
_EVALUATE_ONLY = {"eval_rows", "compare_stages"}
_PREFERENCE_ONLY = {
    *("objective", "dynamic", "beta", "margin", "num_clusters", "num_negatives", "popular_candidates"),
    *("preference_rows", "epochs", "learning_rate", "train_batch_size", "accumulation_steps"),
}
_LATER = {
    "prepare": _PREFERENCE_ONLY | _EVALUATE_ONLY,
    "sft": _PREFERENCE_ONLY | _EVALUATE_ONLY,
    "preference": _EVALUATE_ONLY,
    "evaluate": set[str](),
}


@dataclass(frozen=True)
class Job:
    """What is to be run, as JSON values.

    Attributes:
        model: DynamicPO or one of its baselines.
        dataset: name of the data set.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        store: folder of stage results and of the records of runs.
    """

    model: str = "DynamicPO"
    dataset: str = "ml-100k"
    config_files: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    store: str = "saved"

    def settings_of(self, more: Mapping[str, Any] | None = None) -> PlainConfig:
        """Return the configuration with its settings checked; ``more`` wins over everything."""
        overrides = {**self.overrides, "checkpoint_dir": self.store, **(more or {})}
        return plain_config(self.model, self.dataset, self.config_files, overrides)


def check(job: Job) -> None:
    """See whether a job can start, without computing anything.

    Raises:
        DynamicPOError: a wrong setting, a data set, adapter or backbone that is not there.
    """
    config = job.settings_of()
    settings = read_settings(config)
    if Path(config["data_path"]).is_dir() or not (settings.data_source or can_be_fetched(job.dataset)):
        require_data(config)
    if settings.sft_adapter:
        adapter_digest(Path(settings.sft_adapter))
    check_backbone(settings.backbone)


def stage_folders(job: Job, prepared: StageResult) -> dict[str, tuple[str, Path]]:
    """Return stage -> key and folder; a key holds the one before and the stage's own settings."""
    config = job.settings_of({"dtype": prepared.outputs["dtype"]})
    keys = {"prepare": prepared.key}
    for before, stage in itertools.pairwise(RECORDED):
        keys[stage] = stage_key(stage, before=keys[before], decided_by=decisive(config, stage))
    return {stage: (key, stage_folder(Path(job.store), stage, key)) for stage, key in keys.items()}


def decisive(config: PlainConfig, stage: str) -> dict[str, Any]:
    """Return the settings that decide the result of a stage."""
    flat = flat_settings(config.final_config_dict)
    later = _LATER[stage] | ({"seed", "dtype"} if stage == "prepare" else set())
    kept = {key: value for key, value in flat.items() if key not in PLACES | later}
    if stage == "prepare":
        kept["dtype asked for"] = flat["dtype"]
    if kept.get("sft_adapter"):
        kept["sft_adapter"] = adapter_digest(Path(kept["sft_adapter"]))
    return kept


def stage_config(
    job: Job, stage: str, prepared: StageResult, folders: Mapping[str, tuple[str, Path]]
) -> PlainConfig:
    """Return the configuration of one stage: what belongs to later stages only is at its default."""
    defaults = Settings(num_negatives=1, epochs=0)
    more: dict[str, Any] = {key: getattr(defaults, key) for key in _LATER[stage]}
    more["dtype"] = prepared.outputs["dtype"]
    if stage != "sft":
        more["sft_adapter"] = str((folders["sft"][1] / "sft").resolve())
    config = job.settings_of(more)
    require_data(config)
    refuse_pickles(config)
    return config
