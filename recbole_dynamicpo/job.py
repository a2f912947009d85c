"""What is asked of the four stages, and where their results lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dataset.data_files import can_be_fetched, require_data
from .errors import SettingsError, nearest
from .host.config import PlainConfig, plain_config, read_settings_files, refuse_pickles
from .hub import find_adapter
from .ingredients import decides
from .language_model.adapter_folder import adapter_digest
from .language_model.backbone import check_backbone
from .names import MODEL_NAMES, RECORDED, STAGES
from .retrievers.checkpoint import checkpoints_digest
from .settings import Settings, fields_of_settings, read_settings
from .stage_results import StageResult

__all__ = ["Job", "check"]


@dataclass(frozen=True)
class Job:
    """What is to be run, as JSON values.

    Attributes:
        model: DynamicPO or one of its baselines; empty: that of the files, else DynamicPO.
        dataset: name of the data set; empty: that of the files, else ml-100k.
        config_files: YAML files, later ones win.
        overrides: settings that win over the files.
        store: folder of stage results and of the records of runs.
        nproc: processes of this machine that train and evaluate together; no result depends on it.

    Raises:
        SettingsError: a file that cannot be read, or a model that is not ours.
    """

    model: str = ""
    dataset: str = ""
    config_files: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    store: str = "saved"
    nproc: int = 1

    def __post_init__(self) -> None:
        said = {"model": MODEL_NAMES[0], "dataset": "ml-100k", **read_settings_files(self.config_files)}
        for name in ("model", "dataset"):
            object.__setattr__(self, name, getattr(self, name) or str(said[name]))
        if self.model not in MODEL_NAMES:
            raise SettingsError(
                f"model: got '{self.model}', wanted one of {', '.join(MODEL_NAMES)}"
                f"{nearest(self.model, MODEL_NAMES)}"
            )
        if self.nproc < 1:
            raise SettingsError(f"nproc: got {self.nproc}, wanted at least 1")

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
        adapter_digest(find_adapter(settings.sft_adapter))
    checkpoints_digest(settings.retriever_checkpoints or {})
    check_backbone(settings.backbone)


def place_of(prepared: StageResult, stage: str) -> tuple[str, Path]:
    """Return key and folder of a stage of the job that ``prepared`` belongs to."""
    key, folder = prepared.outputs["places"][stage]
    return str(key), Path(folder)


def stage_config(job: Job, stage: str, prepared: StageResult) -> PlainConfig:
    """Return the configuration of one stage: what only later stages depend on is at its default."""
    defaults = Settings(num_negatives=1, epochs=0)
    later = set(RECORDED[RECORDED.index(stage) + 1 :])
    more = {name: getattr(defaults, name) for name in fields_of_settings() if decides(name) in later}
    if "catalogue_prior" in more:
        more["retriever_checkpoints"] = None  # models of those
    if stage not in ("prepare", STAGES[0]):
        more["sft_adapter"] = str((place_of(prepared, STAGES[0])[1] / STAGES[0]).resolve())
    config = job.settings_of(more)
    require_data(config)
    refuse_pickles(config)
    return config
