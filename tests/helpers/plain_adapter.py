"""A folder as the method's authors' code leaves it: what peft and transformers save, nothing of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import make_tokenizer

# As their scripts have it.
LORA: dict[str, Any] = {
    "r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "inference_mode": False,
    "target_modules": ["k_proj", "v_proj", "q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
PROMPTS = "Heard: [HistoryHere]. One of these is next: [CansHere]. Answer: \n[HistoryHere]? [CansHere]:"


def write_plain_adapter(folder: Path, backbone: Path, *, seed: int = 5, **more: Any) -> Path:
    """Write a random adapter by peft itself, with a tokenizer that has a token to pad with, and return it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(backbone)
    model = get_peft_model(base, LoraConfig(**{**LORA, **more}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"a pickle that nothing opens")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    """Change entries of the adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Hub:
    """Stands for the hub: gives folders of repositories as its client does, into a cache of snapshots.

    Attributes:
        asked: repository and revision of each call.
    """

    def __init__(self, files: dict[str, Path], cache: Path) -> None:
        self.files, self.cache = files, cache
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self,
        repository: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None = None,
    ) -> str:
        """Copy what the patterns name, as huggingface_hub filters it."""
        from huggingface_hub.utils import filter_repo_objects

        self.asked.append((repository, revision))
        if repository not in self.files:
            raise OSError(f"404 Client Error: no repository {repository}\nmore lines")
        source, place = self.files[repository], self.cache / repository / "snapshots" / (revision or "c0ffee")
        place.mkdir(parents=True, exist_ok=True)
        names = [p.relative_to(source).as_posix() for p in sorted(source.rglob("*")) if p.is_file()]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place / name)
        return str(place)


def pretend_hub(files: dict[str, Path], cache: Path, patch: pytest.MonkeyPatch) -> Hub:
    """Let the hub's client be answered from folders, repository -> folder."""
    import huggingface_hub

    from recbole_dynamicpo import hub

    found = Hub(files, cache)
    patch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    hub._fetched.cache_clear()
    return found
