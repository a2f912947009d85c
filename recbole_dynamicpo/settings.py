"""Every setting that this package reads, typed and checked; RecBole's own names where it has one.

``Settings.from_mapping`` takes the final configuration of a run and reports all problems at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import SettingsError, nearest
from .names import OBJECTIVES

# Read by RecBole although they stand in none of its lists or default files.
_RECBOLE_EXTRAS = {
    *("model", "dataset", "config_files", "local_rank", "world_size", "nproc", "offset", "ip", "port"),
    *("embedding_size", "numerical_features", "neg_sampling", "training_neg_sample_num", "single_spec"),
}


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting: default, meaning, and the values it may take."""
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "above": above, "choices": choices},
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Rows are (user, position) pairs; 0 rows means all of them."""

    # the method
    objective: str = setting("dmpo", "preference objective", choices=OBJECTIVES)
    dynamic: bool = setting(True, "boundary negatives with dual-margin beta; false: the plain objective")
    beta: float = setting(1.0, "base strength beta0", above=0)
    margin: float = setting(6.0, "gamma of the dual margin, nats")
    num_clusters: int = setting(3, "groups that the negatives are cut into", low=1)
    num_negatives: int = setting(15, "K: negatives that enter the objective", low=1)

    # data and prompt
    num_candidates: int = setting(20, "candidates of a row, the positive included", low=0)
    max_history: int = setting(10, "most history titles in a prompt", low=1)
    max_length: int = setting(512, "most tokens of prompt and longest title together", low=16)
    prompt: str = setting("neutral", "template of properties/prompts, or the path of a template file")
    item_title_field: str | None = setting(None, "title column of the .item file")
    item_file_id_field: str | None = setting(None, "id column of the .item file, where it differs")
    data_note: str | None = setting(None, "what a reader of figures on the data set has to know")
    data_source: str | None = setting(
        None, "folder, file or hub that the flows prepare a data set from where it is not there yet"
    )
    candidate_field: str = setting("candidate_id_list", "column of the .inter files with fixed candidates")
    sft_rows: int = setting(0, "training rows of the SFT stage", low=0)
    preference_rows: int = setting(0, "training rows of the preference stage", low=0)
    valid_rows: int = setting(0, "validation rows", low=0)
    eval_rows: int = setting(0, "test rows", low=0)

    # backbone and adapter
    backbone: str = setting("smollm2-135m", "embedded name, local folder or hub id")
    dtype: str = setting("auto", "of the frozen weights", choices=("auto", "float32", "bfloat16", "float64"))
    load_in_4bit: bool = setting(False, "nf4 backbone; needs CUDA and bitsandbytes")
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    lora_rank: int = setting(8, "r", low=1)
    lora_alpha: float = setting(32, "scale numerator", above=0)
    lora_dropout: float = setting(0.0, "on the adapter's input while training", low=0, high=0.99)
    lora_targets: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "linear layers that carry LoRA; all-linear for any architecture",
    )
    lora_layers: int = setting(0, "only the topmost this many layers carry LoRA; 0: all", low=0)

    # stages; RecBole's epochs, learning_rate and train_batch_size are the preference stage's
    sft_adapter: str | None = setting(None, "adapter folder to start from instead of the SFT stage")
    sft_epochs: int = setting(1, "epochs of the SFT stage", low=0)
    sft_learning_rate: float = setting(1e-4, "peak learning rate of the SFT stage", above=0)
    sft_batch_size: int = setting(8, "rows per forward pass of the SFT stage", low=1)
    sft_accumulation_steps: int = setting(1, "forward passes per optimizer step, SFT stage", low=1)
    epochs: int = setting(1, "epochs of the preference stage", low=0)
    learning_rate: float = setting(1e-5, "peak learning rate of the preference stage", above=0)
    train_batch_size: int = setting(8, "rows per forward pass of the preference stage", low=1)
    accumulation_steps: int = setting(1, "forward passes per optimizer step, preference stage", low=1)
    warmup_ratio: float = setting(0.05, "share of a stage's steps with rising learning rate", low=0, high=1)
    weight_decay: float = setting(0.0, "of AdamW", low=0)
    validate_every: int = setting(0, "validate each n steps; 0: at the end of each epoch", low=0)
    stopping_step: int = setting(10, "stop a stage after so many validations without a better one", low=0)
    checkpoint_every: int = setting(25, "write a resume checkpoint each n steps", low=1)
    resume: str | None = setting(None, "run folder to continue")

    # evaluation
    eval_batch_size: int = setting(64, "rows that RecBole hands over at once", low=1)
    tokens_per_batch: int = setting(4096, "most padded tokens of a forward pass", low=1)
    threads: int = setting(0, "of one operation on a CPU; 0: torch's own choice, one per core", low=0)
    max_memory: float = setting(
        0.0, "GiB of process memory above which forward passes get smaller; 0: no limit", low=0
    )
    popular_candidates: int = setting(100, "popular titles that are ranked where a request names none", low=1)
    compare_stages: bool = setting(True, "evaluate popularity, backbone and SFT beside the final model")

    # record
    mlflow_tracking_uri: str | None = setting(
        "auto", "MLflow server; auto: MLFLOW_TRACKING_URI, else mlflow.db in the present folder; none: off"
    )
    register: bool = setting(True, "register the final adapter as dynamicpo-<dataset>")
    require_improvement: bool = setting(
        True, "champion only where valid_metric is not worse than the present champion's"
    )
    seed: int = setting(2020, "of everything that is drawn", low=0, high=2**32 - 1)

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], *, given: Iterable[str] = (), known: Iterable[str] = ()
    ) -> Settings:
        """Check ``values`` and return the settings in it.

        Args:
            values: the final configuration; keys of others are passed over.
            given: the keys that the user wrote, in a file, a dictionary or on the command line.
            known: keys that others (RecBole) read.

        Raises:
            SettingsError: naming every unknown key and every value of wrong type or range.
        """
        fields = {item.name: item for item in dataclasses.fields(cls)}
        every = {*fields, *known}
        problems = [f"{key}: unknown setting{nearest(key, every)}" for key in given if key not in every]
        kept: dict[str, Any] = {}
        for name, item in fields.items():
            if name in values:
                try:
                    kept[name] = _coerce(values[name], str(item.type))
                    _check_range(kept[name], item.metadata)
                except (ValueError, OverflowError) as error:
                    problems.append(f"{name}: got {values[name]!r}, wanted {error}")
        if not problems:
            settings = cls(**kept)
            problems = settings._contradictions()
        if problems:
            raise SettingsError("wrong settings:\n  " + "\n  ".join(problems))
        return settings

    def _contradictions(self) -> list[str]:
        problems = []
        if self.num_candidates == 0:
            problems.append(
                "num_candidates: got 0; ranking the whole catalogue by a language model is not "
                "supported yet, wanted at least 2 (20 in the paper)"
            )
        elif self.num_negatives > self.num_candidates - 1:
            problems.append(
                f"num_negatives: got {self.num_negatives}, wanted at most num_candidates - 1 = "
                f"{self.num_candidates - 1}"
            )
        if self.epochs and not self.sft_epochs and not self.sft_adapter and self.objective != "mppo":
            problems.append(
                "sft_epochs: got 0 without sft_adapter; the reference must be an SFT policy, never the bare "
                "backbone, so wanted at least 1 or the folder of an SFT adapter"
            )
        return problems


def _coerce(value: Any, kind: str) -> Any:
    """Return ``value`` as the annotated type, accepting what YAML and command lines write for it."""
    if kind.endswith("| None"):
        if value is None or (isinstance(value, str) and value.lower() in ("", "none", "null")):
            return None
        kind = kind.removesuffix("| None").strip()
    if kind == "bool" and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int" and number and float(value).is_integer():
        return int(value)
    if kind == "float" and number and math.isfinite(value):
        return float(value)
    if kind == "str" and isinstance(value, str) and value:
        return value
    if kind.startswith("tuple"):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and items and all(isinstance(item, str) for item in items):
            return tuple(items)
    raise ValueError(_KINDS[kind.partition("[")[0]])


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a finite number",
    "str": "a non-empty text",
    "tuple": "a list of texts",
}


def _check_range(value: Any, limits: Mapping[str, Any]) -> None:
    if limits["choices"] and value not in limits["choices"]:
        hint = nearest(str(value), limits["choices"])
        raise ValueError(f"one of {', '.join(limits['choices'])}{hint}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < limits["low"]:
            raise ValueError(f"at least {limits['low']:g}")
        if value > limits["high"]:
            raise ValueError(f"at most {limits['high']:g}")
        if value <= limits["above"]:
            raise ValueError(f"more than {limits['above']:g}")


def package_folder() -> Path:
    """Return the folder of this package's modules."""
    return Path(__file__).parent


def properties_folder() -> Path:
    """Return the folder of shipped settings and templates, in an installed package as in a checkout."""
    inside = package_folder() / "properties"
    return inside if inside.is_dir() else package_folder().parent / "properties"


def read_dataset_defaults(config: Any, dataset: str) -> None:
    """Let a RecBole Config read our file of a data set, if there is one, behind what it has read so far."""
    path = properties_folder() / "dataset" / f"{dataset}.yaml"
    if path.is_file():
        config._update_internal_config_dict(str(path))


def read_settings(config: Any) -> Settings:
    """Return the checked settings of a RecBole configuration.

    Args:
        config: RecBole's configuration, or one with the same four attributes.

    Raises:
        SettingsError: naming every unknown key and every wrong value.
    """
    listed = [name for names in config.parameters.values() for name in names]
    known = [*listed, *config.internal_config_dict, *_RECBOLE_EXTRAS]
    return Settings.from_mapping(config.final_config_dict, given=config.external_config_dict, known=known)
