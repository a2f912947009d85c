"""An adapter folder as PEFT knows it: weights as safetensors, the configuration as JSON; no pickles."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import AdapterError, NumericsError
from ..storage import load_json, named, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from ..settings import Settings

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
SCALARS_FILE = "scalars.json"  # what is trained beside the adapter, where there is such a thing
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What transformers' Trainer leaves in the folder of an adapter; pickles, which nothing here opens.
_OF_THE_TRAINER = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HIGHEST_RANK = 1 << 14  # a damaged number must not ask for all of the memory
# Entries of a PEFT configuration that say nothing about what the weights mean, or that are read here.
_HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *(
        "layers_pattern",
        "fan_in_fan_out",
        "megatron_core",
        "runtime_config",
        "ensure_weight_tying",
        "eva_config",
    ),
    *("qalora_group_size", "corda_config", "loftq_config", "lora_ga_config"),
}
# First weights that leave the backbone as it is; others (pissa, olora, loftq, ...) take something off it.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_PLAIN = {"peft_type": ("LORA", None), "bias": ("none", None), "init_lora_weights": _PLAIN_STARTS}


@dataclass(frozen=True)
class LoraShape:
    """Where the adapter sits and how large it is.

    Attributes:
        rank: r.
        alpha: scale numerator; the update is multiplied by alpha / rank.
        dropout: on the adapter's input while training.
        targets: names of the linear layers that carry it, or ``("all-linear",)``.
        layers: only the topmost this many transformer layers; 0 means all. Layers below the lowest
            adapter need no backward pass.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    layers: int

    @classmethod
    def of(cls, settings: Settings) -> LoraShape:
        """Return the shape that the ``lora_*`` settings ask for."""
        return cls(
            settings.lora_rank,
            settings.lora_alpha,
            settings.lora_dropout,
            settings.lora_targets,
            settings.lora_layers,
        )


def _is_plain(name: str, value: Any) -> bool:
    """Say whether an entry of a PEFT configuration leaves an adapter plain LoRA."""
    if name in _PLAIN:
        return any(value is plain or value == plain for plain in _PLAIN[name])
    return name in _HARMLESS or not value


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file.

    Its own writer reports a full disk by an error that is none of the system's, so it only makes the bytes.
    """
    from safetensors.torch import save

    with named(path):
        path.write_bytes(save(tensors))


def write_adapter(folder: Path, weights: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an adapter into ``folder``, which exists.

    Args:
        folder: takes the two files.
        weights: of the adapter, by PEFT's names.
        config: PEFT's configuration of it, as ``PeftConfig.to_dict`` returns it.
    """
    write_tensors(folder / WEIGHTS_FILE, weights)
    # Sets come in any order, and peft leaves empty ones where there was nothing.
    plain = {key: sorted(value) or None if isinstance(value, set) else value for key, value in config.items()}
    kept = {**plain, "inference_mode": True}
    text = json.dumps(kept, indent=2, sort_keys=True, default=str)
    with named(folder / CONFIG_FILE):
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def base_of(folder: Path) -> str | None:
    """Return what an adapter's configuration calls its backbone; None where it does not say.

    Raises:
        AdapterError: the configuration is missing or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        base = load_json(path)["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise AdapterError(f"{path}: not a LoRA configuration ({error!r})") from error
    return base if isinstance(base, str) and base else None


def note_of_base(folder: Path, backbone: str) -> str | None:
    """Return a sentence where an adapter names another backbone than the one that carries it."""
    base = base_of(folder)
    if base is None or Path(base).name.lower() == Path(backbone).name.lower():
        return None
    return f"the adapter names backbone {base}, and speaks here with {backbone}"


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the weights of an adapter folder; nothing in it is unpickled.

    Raises:
        AdapterError: no such folder, no safetensors file, or a damaged one.
        NumericsError: a weight is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise AdapterError(
            f"{folder}: wanted an adapter folder with {WEIGHTS_FILE} (adapter_model.bin, a pickle, is not "
            f"read); found: {found}"
        )
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    pickles = [name for name in names if not _OF_THE_TRAINER.fullmatch(name)]
    if pickles:
        raise AdapterError(
            f"{folder}: holds {pickles[0]}, which may be a pickle and run code; wanted {WEIGHTS_FILE} alone"
        )
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterError(f"{path}: damaged safetensors file ({error})") from error
    for name, value in weights.items():
        if value.dtype not in _DTYPES:
            raise AdapterError(f"{path}: tensor {name} is {value.dtype}, wanted a real number type")
        if not torch.isfinite(value).all():
            raise NumericsError(f"{path}: tensor {name} holds NaN or infinity")
    return weights


def write_scalars(folder: Path, values: Mapping[str, Tensor]) -> None:
    """Write what is trained beside an adapter, a handful of numbers, into ``folder``, which exists."""
    write_json(folder / SCALARS_FILE, {name: value.tolist() for name, value in values.items()})


def stored_scalars(folder: Path) -> dict[str, Tensor]:
    """Return what ``write_scalars`` wrote.

    Raises:
        AdapterError: the file is missing or damaged, or a number is not finite.
    """
    path = folder / SCALARS_FILE
    try:
        values = load_json(path)
        # Wide enough for whatever reads them; what was written in float32 comes back as it was.
        found = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise AdapterError(f"{path}: not readable numbers ({error!r})") from error
    if not all(torch.isfinite(value.float()).all() for value in found.values()):
        raise AdapterError(f"{path}: a number is not finite")
    return found


def read_scalars(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what ``write_scalars`` wrote.

    Args:
        folder: of the adapter.
        wanted: tensors of the names and shapes that there must be.

    Raises:
        AdapterError: the file is missing or damaged, or holds others.
    """
    found = stored_scalars(folder)
    shapes, ours = ({name: tuple(v.shape) for name, v in group.items()} for group in (found, wanted))
    if shapes != ours:
        raise AdapterError(f"{folder / SCALARS_FILE}: got numbers of the shapes {shapes}, wanted {ours}")
    return found


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 of an adapter folder's weights file.

    Raises:
        AdapterError: there is none.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AdapterError(f"{folder}: wanted an adapter folder with {WEIGHTS_FILE}")
    return sha256_file(path)


def trained_digest(folder: Path) -> str:
    """Return the SHA-256 of all that was trained: an adapter's weights, and the numbers beside it if any.

    Raises:
        AdapterError: there are no weights.
    """
    weights, beside = adapter_digest(folder), folder / SCALARS_FILE
    return sha256_json([weights, sha256_file(beside)]) if beside.is_file() else weights


def read_lora_shape(folder: Path) -> LoraShape:
    """Return the shape that a saved adapter was made with.

    Raises:
        AdapterError: ``adapter_config.json`` is missing or not a LoRA configuration.
    """
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = load_json(path)
        targets = config["target_modules"]
        shape = LoraShape(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config["lora_dropout"]),
            targets=(targets,) if isinstance(targets, str) else tuple(targets),
            layers=len(config["layers_to_transform"] or []),
        )
        sized = 1 <= shape.rank <= _HIGHEST_RANK and 0 < shape.alpha < math.inf
        if not sized or not 0 <= shape.dropout < 1:
            raise ValueError(f"r {shape.rank}, lora_alpha {shape.alpha}, lora_dropout {shape.dropout}")
        if not shape.targets or not all(isinstance(name, str) and name for name in shape.targets):
            raise ValueError(f"target_modules {targets!r}")
        used = [name for name, value in config.items() if not _is_plain(name, value)]
        if used:
            raise ValueError(f"{used[0]} is {config[used[0]]!r}, which makes it more than plain LoRA")
        return shape
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise AdapterError(f"{path}: not a LoRA configuration ({error!r})") from error
