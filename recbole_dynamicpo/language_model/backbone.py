"""Find and load the backbone: a causal language model and its tokenizer.

A backbone is named by ``smollm2-135m`` (the embedded default), by a local folder, or by a model id
of the Hugging Face hub. Code that a model repository carries is never run.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BackboneError, nearest, short
from ..storage import sha256_json
from .attention import use_short_attention
from .configuration import check_causal, check_weights, look_back, not_loadable, position_limits
from .decoder import ONE, compile_layers, recomputes
from .embedded import EMBEDDED, EMBEDDED_SHA256, embedded_folder
from .probe import find_abilities
from .tokenizer import check_tokenizer

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


NF4 = "nf4"  # what setting load_in_4bit makes of the weights
# A gain in speed that is worth a line in the log.
WORTH_SAYING = 1.2


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen causal language model.

    Attributes:
        model: the Hugging Face model, in evaluation mode, no parameter trainable.
        tokenizer: its tokenizer.
        name: what the user called it.
        fingerprint: SHA-256 of its weights as it computes with them; two with one fingerprint score alike.
        shares_prompt: whether all completions of a prompt can be scored in one pass.
        plain_head: whether its logits are its states times its output embedding, and nothing more.
        replays: whether voices can share what the layers below the lowest adapter return.
        mask_forms: in which its decoder can take the mask of that pass, simplest first.
        recomputes: whether activations are computed again in the backward pass, to save memory; None: once it
            is short.
        quantization: ``nf4`` where its weights were cut to 4 bits, else empty.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    shares_prompt: bool
    plain_head: bool = True
    replays: bool = True
    mask_forms: tuple[str, ...] = (ONE,)
    recomputes: bool | None = False
    quantization: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def max_length(self) -> int:
        """Most tokens that a row may have."""
        return self.limit[0]

    @property
    def limit(self) -> tuple[int, str]:
        """Most tokens that a row may have, and what says so: the positions that the model knows."""
        limits = position_limits(self.model.config)
        value, name = min((limit for limit in limits if limit[0] > 0), default=(1 << 30, ""))
        return value, f"the backbone's {name}"


def load_backbone(
    name: str,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    load_in_4bit: bool = False,
    gradient_checkpointing: bool | str = False,
    compiled: bool = False,
) -> Backbone:
    """Load ``name`` frozen onto ``device``.

    Args:
        name: embedded name, local folder, or hub model id.
        dtype: ``float32``, ``bfloat16``, ``float64`` or ``auto`` (bfloat16 on CUDA, float32 elsewhere).
        device: where the weights go.
        load_in_4bit: nf4 weights with bfloat16 compute; needs CUDA and bitsandbytes.
        gradient_checkpointing: compute activations again in the backward pass to save memory, or ``auto``.
        compiled: make one compiled call of each layer; see ``compile_layers``.

    Raises:
        BackboneError: not found, not a causal language model, a tokenizer that does not fit, or 4-bit where
            it cannot be had.
    """
    device = torch.device(device)
    place = resolve_backbone(name)
    check_causal(place, name)
    weight_dtype = resolve_dtype(dtype, device)
    advise_dtype(dtype, device)
    model, tokenizer = _from_pretrained(place, name, weight_dtype, device, load_in_4bit)
    check_tokenizer(tokenizer, name, model.get_input_embeddings().weight.shape[0])
    model.requires_grad_(False)
    model.eval()
    abilities = find_abilities(model, name)
    if not abilities.shares_prompt:
        logger.warning(
            "backbone '%s' cannot score all completions of a prompt in one pass; "
            "each candidate is scored in a sequence of its own, which is slower and equally right",
            name,
        )
    for kind, (size, entry) in look_back(model.config).items():
        logger.info("backbone '%s': layers of %s look back %d tokens (its %s)", name, kind, size, entry)
    if compiled:
        compile_layers(model)
    quantization = NF4 if load_in_4bit else ""
    return Backbone(
        model,
        tokenizer,
        name,
        quantized_fingerprint(backbone_fingerprint(place, name), quantization),
        **abilities._asdict(),
        recomputes=recomputes(gradient_checkpointing, device),
        quantization=quantization,
    )


def quantized_fingerprint(fingerprint: str, quantization: str) -> str:
    """Return the SHA-256 of weights of a fingerprint after quantization; empty leaves them as they are."""
    return sha256_json([fingerprint, quantization]) if quantization else fingerprint


def resolve_backbone(name: str) -> str:
    """Return the folder of an embedded or local backbone, or the hub id itself.

    Raises:
        BackboneError: neither a folder nor something that can be a hub id.
    """
    if name == EMBEDDED:
        return str(embedded_folder())
    if _is_folder(name):
        if not (Path(name) / "config.json").is_file():
            raise BackboneError(f"backbone '{name}': the folder has no config.json")
        return name
    if name.count("/") != 1 or any(not part.strip(".") for part in name.split("/")):
        hint = nearest(name, [EMBEDDED])
        raise BackboneError(
            f"backbone: got {short(name)}, which is no folder here; "
            f"wanted '{EMBEDDED}', a local folder or a hub id like 'owner/model'{hint}"
        )
    return name


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # such as a text that is too long for a path
        return False


def backbone_fingerprint(place: str, name: str) -> str:
    """Return the SHA-256 that identifies the weights at ``place``.

    The embedded backbone is known by the file that it comes from, a hub model by the commit that
    was loaded, a local folder by the bytes of its weight files.
    """
    if name == EMBEDDED:
        return EMBEDDED_SHA256
    folder = Path(place)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(place, local_files_only=True, allow_patterns=["config.json"]))
        return hashlib.sha256(f"{place}@{folder.name}".encode()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_backbone(name: str) -> None:
    """See whether ``name`` can be loaded, by its configuration alone; the embedded one always can.

    Raises:
        BackboneError: not found, or not a causal language model.
    """
    if name != EMBEDDED:
        check_causal(resolve_backbone(name), name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that setting ``dtype`` stands for; ``auto`` is bfloat16 on CUDA, float32 elsewhere.

    No measurement decides, so that one command gives one result.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def advise_dtype(name: str, device: torch.device) -> None:
    """Say in the log where another dtype than ``auto`` would be faster on this processor."""
    if name != "auto" or device.type != "cpu":
        return
    gain = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    if gain > WORTH_SAYING:
        logger.info("bfloat16 is %.1f times faster here in matrix products: --dtype=bfloat16", gain)


def _product_seconds(dtype: torch.dtype, repeats: int = 10) -> float:
    """Return the fastest of some products; the fastest, since other processes only ever slow it."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - start)
    return min(times)


def _from_pretrained(
    place: str, name: str, dtype: torch.dtype, device: torch.device, load_in_4bit: bool
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hub_logging

    extra: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    # Weights that are missing, or of another shape, would be drawn at random; they are named below instead.
    extra |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if load_in_4bit:
        extra.update(device_map={"": device}, quantization_config=_nf4(device))
    load: Any = AutoModelForCausalLM.from_pretrained
    shows_bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()  # a second's worth of "Loading weights" in every log
    try:
        try:
            model, info = load(place, attn_implementation="sdpa", **extra)
        except ValueError:  # an architecture without that attention brings its own
            model, info = load(place, **extra)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # what a damaged file raises there is not documented
        raise BackboneError(not_loadable(name, error)) from error
    finally:
        if shows_bars:
            hub_logging.enable_progress_bar()
    check_weights(model, info, name)
    if not load_in_4bit:
        model.to(device)
    if device.type == "cpu" and dtype == torch.bfloat16:
        use_short_attention(model)
    return model, tokenizer


def _nf4(device: torch.device) -> Any:
    """Return the quantization settings of the paper's recipe."""
    import importlib.util

    from transformers import BitsAndBytesConfig

    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"load_in_4bit: got device '{device.type}'; wanted CUDA and bitsandbytes "
            "(pip install 'recbole-dynamicpo[gpu]')"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
