"""Every setting that this package reads, typed and checked; RecBole's own names where it has one.

``Settings.from_mapping`` takes the final configuration of a run and reports all problems at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from .errors import SettingsError, nearest
from .names import AUTO
from .setting_types import (
    Automatic,
    CandidateSource,
    Distribution,
    Dtype,
    Flag,
    HistoryOrder,
    Likelihood,
    NegativeSource,
    Number,
    Objective,
    Perhaps,
    PerhapsMapped,
    PerhapsNumber,
    PerhapsPaths,
    PerhapsWhole,
    Positions,
    Priors,
    RankedAmong,
    Redraw,
    Text,
    Texts,
    TimeTies,
    Whole,
    contradictions,
    problem_of,
    setting,
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """The settings of a run. Rows are (user, position) pairs; 0 rows means all of them."""

    # the method
    objective: Objective = setting("dmpo", "preference objective", decides="preference")
    dynamic: Flag = setting(
        True, "boundary negatives with dual-margin beta; false: the plain objective", decides="preference"
    )
    beta: Number = setting(1.0, "base strength beta0", decides="preference", gt=0)
    margin: Number = setting(6.0, "gamma of the dual margin, nats", decides="preference")
    num_clusters: Whole = setting(3, "groups that the negatives are cut into", decides="preference", ge=1)
    num_negatives: Whole = setting(15, "K: negatives that enter the objective", decides="preference", ge=1)
    sft_weight: Number = setting(0.0, "of the SFT loss beside the objective", decides="preference", ge=0)
    rating_margin: Number = setting(1.0, "lambda of objective recpo", decides="preference", ge=0)
    target_margin: Number = setting(1.0, "gamma of objective simpo, nats", decides="preference")

    # what a title's log-probability is
    likelihood: Likelihood = setting(
        "vocabulary", "normalised over the vocabulary, or over the catalogue's titles", decides="sft"
    )
    catalogue_prior: Priors = setting(
        (), "below the catalogue likelihood: models that count, RecBole's as recbole:<model>", decides="sft"
    )
    lm_scale: Number = setting(1.0, "the language model's weight to begin with", decides="sft")
    prior_weight: PerhapsNumber = setting(None, "each prior's, to begin with; none: fitted", decides="sft")
    retriever_epochs: Whole = setting(10, "of RecBole's models among the priors", decides="sft", ge=1)
    retriever_folds: Whole = setting(
        2, "of users: a training row's prior is a retriever that saw none of its fold", decides="sft", ge=2
    )
    retriever_settings: PerhapsMapped = setting(None, "RecBole's own settings of them", decides="sft")
    retriever_checkpoints: PerhapsPaths = setting(None, "files of some of them, by model", decides="sft")
    centre: Flag = setting(False, "take the untrained model's mean opinion of every title out", decides="sft")

    # dense rows
    positions: Positions = setting(
        "last", "supervised: a row's last title, or all titles of windows of sequences", decides="sft"
    )
    window: Whole = setting(40, "titles of a window, at most", decides="sft", ge=2)
    negatives: NegativeSource = setting(
        "uniform",
        "of windows: from all titles, from what fitted counts (prior) or the policy (moving) find likely, or "
        "the policy's top (own)",
        decides="preference",
    )
    hard_pool: Whole = setting(100, "likely titles to draw from", decides="preference", ge=1)
    reference_negatives: Whole = setting(
        0, "negatives of windows that the reference scores, if more than K", decides="preference", ge=0
    )
    redraw: Redraw = setting("epoch", "negatives of windows: anew each epoch, or never", decides="preference")

    # data and prompt
    num_candidates: Whole = setting(20, "candidates of a row, the positive included", decides="prepare", ge=0)
    max_history: Whole = setting(10, "most history titles in a prompt", decides="sft", ge=1)
    max_length: Whole = setting(512, "most tokens of prompt and longest title together", decides="sft", ge=16)
    prompt: Text = setting(
        "neutral", "template of properties/prompts, or the path of a template file", decides="sft"
    )
    item_title_field: Perhaps = setting(None, "title column of the .item file", decides="prepare")
    item_file_id_field: Perhaps = setting(
        None, "id column of the .item file, where it differs", decides="prepare"
    )
    data_note: Perhaps = setting(None, "what readers of figures have to know", decides="evaluate")
    data_source: Perhaps = setting(
        None,
        "folder, file or hub that the flows prepare a data set from where it is not there yet",
        decides="nothing",
    )
    candidate_field: Text = setting(
        "candidate_id_list", "column of the .inter files with fixed candidates", decides="prepare"
    )
    candidate_source: CandidateSource = setting(
        "published", "of rows that carry candidates: theirs, or drawn by (row, seed)", decides="prepare"
    )
    candidate_distribution: Distribution = setting(
        "uniform", "of drawn negatives, over items or by their training interactions", decides="prepare"
    )
    candidate_seed: PerhapsWhole = setting(
        None, "of the candidates of evaluation rows; none: seed", decides="prepare", ge=0, le=2**32 - 1
    )
    hidden_items: Number = setting(0.0, "share of items kept from training", decides="prepare", ge=0, le=0.5)
    history_order: HistoryOrder = setting(
        "time",
        "of a user's titles: by time (as published, where rows are split already), as the file has them, or "
        "pooled and shuffled by (user, seed), for data without time",
        decides="prepare",
    )
    time_ties: TimeTies = setting(
        "hash", "equal times of a user: by a hash of user, item and seed, or in file order", decides="prepare"
    )
    sft_rows: Whole = setting(0, "training rows of the SFT stage", decides="sft", ge=0)
    preference_rows: Whole = setting(0, "training rows of the preference stage", decides="preference", ge=0)
    valid_rows: Whole = setting(0, "validation rows", decides="prepare", ge=0)
    eval_rows: Whole = setting(0, "test rows", decides="evaluate", ge=0)

    # backbone and adapter
    backbone: Text = setting("smollm2-135m", "embedded name, local folder or hub id", decides="sft")
    dtype: Dtype = setting("auto", "of the frozen weights", decides="sft")
    load_in_4bit: Flag = setting(False, "nf4 backbone; needs CUDA and bitsandbytes", decides="sft")
    gradient_checkpointing: Automatic = setting(
        AUTO,
        "compute activations again in the backward pass; auto: once a GPU's memory is short",
        decides="sft",
    )
    compile_layers: Flag = setting(False, "one compiled call a layer (GPU hosts)", decides="sft")
    lora_rank: Whole = setting(8, "r", decides="sft", ge=1)
    lora_alpha: Number = setting(32, "scale numerator", decides="sft", gt=0)
    lora_dropout: Number = setting(0.0, "on the adapter's input while training", decides="sft", ge=0, le=0.99)
    lora_targets: Texts = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "linear layers that carry LoRA; all-linear for any architecture",
        decides="sft",
    )
    lora_layers: Whole = setting(0, "so many layers, the topmost, carry LoRA; 0: all", decides="sft", ge=0)

    # stages; RecBole's epochs, learning_rate and train_batch_size are the preference stage's
    sft_adapter: Perhaps = setting(
        None, "adapter folder or hub id to start from instead of the SFT stage", decides="sft"
    )
    sft_epochs: Whole = setting(1, "epochs of the SFT stage", decides="sft", ge=0)
    sft_learning_rate: Number = setting(0.0001, "peak learning rate of the SFT stage", decides="sft", gt=0)
    sft_batch_size: Whole = setting(8, "rows per forward pass of the SFT stage", decides="sft", ge=1)
    sft_accumulation_steps: Whole = setting(
        1, "forward passes per optimizer step, SFT stage", decides="sft", ge=1
    )
    epochs: Whole = setting(1, "epochs of the preference stage", decides="preference", ge=0)
    learning_rate: Number = setting(
        1e-05, "peak learning rate of the preference stage", decides="preference", gt=0
    )
    train_batch_size: Whole = setting(
        8, "rows per forward pass of the preference stage", decides="preference", ge=1
    )
    accumulation_steps: Whole = setting(
        1, "forward passes per optimizer step, preference stage", decides="preference", ge=1
    )
    warmup_ratio: Number = setting(
        0.05, "share of a stage's steps with rising learning rate", decides="sft", ge=0, le=1
    )
    weight_decay: Number = setting(0.0, "of AdamW", decides="sft", ge=0)
    validate_every: Whole = setting(
        0, "validate each n steps; 0: at the end of each epoch", decides="sft", ge=0
    )
    stopping_step: Whole = setting(
        10, "stop a stage after so many validations without a better one", decides="sft", ge=0
    )
    checkpoint_every: Whole = setting(25, "write a resume checkpoint each n steps", decides="nothing", ge=1)
    resume: Perhaps = setting(None, "run folder to go on with, by its own settings", decides="nothing")

    # evaluation
    rank_among: RankedAmong = setting(
        ("candidates",),
        "what is ranked: a row's candidates, all titles of the catalogue, or both",
        decides="evaluate",
    )
    first_stage: Whole = setting(
        0, "titles that priors choose of the catalogue to be ranked; 0: all", decides="preference", ge=0
    )
    exclude_history: Flag = setting(
        True, "leave the history out of all titles, but for the item chosen", decides="evaluate"
    )
    eval_batch_size: Whole = setting(64, "rows that RecBole hands over at once", decides="evaluate", ge=1)
    tokens_per_batch: Whole = setting(4096, "most padded tokens of a forward pass", decides="sft", ge=1)
    fill_passes: Automatic = setting(
        AUTO, "a step's rows in passes as large as tokens_per_batch allows; auto: on a GPU", decides="sft"
    )
    threads: Whole = setting(
        0, "of one operation on a CPU; 0: torch's own choice, one per core", decides="nothing", ge=0
    )
    max_memory: Number = setting(
        0.0, "GiB of process memory above which passes get smaller; 0: no limit", decides="nothing", ge=0
    )
    popular_candidates: Whole = setting(
        100, "popular titles that are ranked where a request names none", decides="preference", ge=1
    )
    compare_stages: Flag = setting(
        True, "evaluate popularity, backbone and SFT beside the final model", decides="evaluate"
    )

    # record
    mlflow_tracking_uri: Perhaps = setting(
        "auto",
        "MLflow server; auto: MLFLOW_TRACKING_URI, else mlflow.db in the present folder; none: off",
        decides="nothing",
    )
    register: Flag = setting(True, "register the final adapter as dynamicpo-<dataset>", decides="nothing")
    require_improvement: Flag = setting(
        True, "champion only where no worse than the present champion on the same rows", decides="nothing"
    )
    seed: Whole = setting(2020, "of everything that is drawn", decides="prepare", ge=0, le=2**32 - 1)

    @classmethod
    def from_mapping(
        cls,
        values: Mapping[str, Any],
        *,
        given: Iterable[str] = (),
        known: Iterable[str] = (),
        problems: Iterable[str] = (),
    ) -> Settings:
        """Check ``values`` and return the settings in it.

        Args:
            values: the final configuration; keys of others are passed over.
            given: the keys that the user wrote, in a file, a dictionary or on the command line.
            known: keys that others (RecBole) read.
            problems: what was found to be wrong already, a line each.

        Raises:
            SettingsError: naming every unknown key and every value of wrong type or range.
        """
        fields = fields_of_settings()
        every = {*fields, *known}
        unknown = [f"{key}: unknown setting{nearest(key, every)}" for key in given if key not in every]
        problems = [*problems, *unknown]
        try:
            settings = cls(**{name: values[name] for name in fields if name in values})
        except ValidationError as error:
            problems += [problem_of(found, values) for found in error.errors()]
        if not problems:
            problems = contradictions(settings)
        if problems:
            raise SettingsError("wrong settings:\n  " + "\n  ".join(problems))
        return settings


def fields_of_settings() -> dict[str, FieldInfo]:
    """Return name -> default, meaning and limits of every setting."""
    fields: dict[str, FieldInfo] = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def package_folder() -> Path:
    """Return the folder of this package's modules."""
    return Path(__file__).parent


def properties_folder() -> Path:
    """Return the folder of shipped settings and templates, in an installed package as in a checkout."""
    inside = package_folder() / "properties"
    return inside if inside.is_dir() else package_folder().parent / "properties"


def read_settings(config: Any) -> Settings:
    """Return the settings of a RecBole configuration, whose keys were checked when it was made.

    Args:
        config: RecBole's configuration, or one with the same ``final_config_dict``.

    Raises:
        SettingsError: naming every wrong value.
    """
    return Settings.from_mapping(config.final_config_dict)
