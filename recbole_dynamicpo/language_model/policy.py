"""The policy: a frozen backbone with a trainable LoRA adapter and a frozen copy of it as reference.

Both adapters sit on one backbone, so the reference costs no second model. The reference is the SFT
adapter, never the bare backbone. A saved adapter is an ordinary PEFT folder (safetensors and JSON).
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AdapterError, BackboneError
from .adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraShape,
    read_adapter,
    read_lora_shape,
    read_scalars,
    write_adapter,
    write_scalars,
)
from .adapters import Adapters
from .backbone import Backbone
from .decoder import decoder_of, lower_layers_once, recompute_layers
from .logps import own_child_logits, separate_logps, shared_logps
from .packed import PackedBatch, TokenBatch, on_device, pack
from .targets import choose_targets, describe, lowest_layer
from .tokenizer import check_tokenizer_beside
from .tree import KeptKeys, TreeBatch, TreeStates, separate_states, shared_states

logger = logging.getLogger(__name__)

POLICY, REFERENCE = "policy", "reference"


class Policy(nn.Module):
    """A backbone that speaks with the adapter ``policy``, ``reference`` or none.

    Args:
        backbone: the frozen language model.
        shape: size and place of the adapter.
        seed: of the adapter's initial weights.

    Raises:
        BackboneError: the backbone has no layer of the wanted names.
    """

    def __init__(self, backbone: Backbone, shape: LoraShape, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.backbone = backbone
        chosen = choose_targets(backbone.model, backbone.name, shape.targets, shape.layers)
        self.bare_layers = lowest_layer(backbone.model, chosen)
        if backbone.recomputes:
            recompute_layers(backbone.model, self.bare_layers)
        with torch.random.fork_rng(devices=[]), _old_name_of_peft():
            torch.manual_seed(seed)
            try:
                config = LoraConfig(
                    r=shape.rank,
                    lora_alpha=shape.alpha,
                    lora_dropout=shape.dropout,
                    target_modules=list(chosen),
                    fan_in_fan_out=not any(isinstance(part, nn.Linear) for part in chosen.values()),
                    task_type="CAUSAL_LM",
                )
                self.peft = get_peft_model(backbone.model, config, adapter_name=POLICY)
            except (ValueError, TypeError, NotImplementedError) as error:
                there = f"backbone '{backbone.name}' cannot carry LoRA on {describe(chosen)}"
                raise BackboneError(f"lora_targets: {there}: {error}") from error
        self.peft.eval()
        self.adapters = Adapters(self.peft, POLICY, decoder_of(self.peft.get_base_model()))
        self.beside = nn.ModuleDict()
        self.targets = sorted(chosen)
        trained = sum(parameter.numel() for parameter in self.trainable())
        logger.info("LoRA on %s: %s parameters", describe(chosen), f"{trained:,}")

    def pack(self, batch: TokenBatch) -> PackedBatch | None:
        """Return the rows as they pass the model; None where each completion is a sequence of its own."""
        return pack(batch) if self.backbone.shares_prompt else None

    def logps(
        self, batch: TokenBatch, most_tokens: int | None = None, packed: PackedBatch | None = None
    ) -> Tensor:
        """Return (B, C) summed log-probabilities of the completions, nats, at least float32.

        Args:
            batch: prompts and completions.
            most_tokens: of a pass where each completion is a sequence of its own; see ``separate_logps``.
            packed: the same rows by ``pack``, where that was done already.
        """
        model, plain = self.peft.get_base_model(), self.backbone.plain_head
        if self.backbone.shares_prompt:
            form = self.backbone.mask_forms[0]
            return shared_logps(model, batch, plain_head=plain, form=form, packed=packed)
        return separate_logps(model, batch, plain_head=plain, most_tokens=most_tokens)

    def tree_states(self, batch: TreeBatch, most_tokens: int | None = None) -> TreeStates:
        """Return the hidden states at the places that a batch of token trees wants read.

        Args:
            batch: on the CPU.
            most_tokens: of a pass where each leaf is a sequence of its own; see ``separate_states``.
        """
        model = self.peft.get_base_model()
        if self.backbone.shares_prompt:
            return shared_states(model, batch, form=self.backbone.mask_forms[0])
        return separate_states(model, batch, most_tokens)

    @property
    def output_layer(self) -> Tensor | None:
        """Return (V, D) the plain output layer; None where the model has another head."""
        weight: Tensor = self.peft.get_base_model().get_output_embeddings().weight
        return weight if self.backbone.plain_head else None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.peft.get_base_model().get_output_embeddings().weight.device
        return found

    def own_logits(self, found: TreeStates, start: Sequence[int], source: Tensor, token: Tensor) -> Tensor:
        """Return (E,) logits of tokens by the model's own head; see ``own_child_logits``."""
        return own_child_logits(self.peft.get_base_model(), found.kind, found.states, start, source, token)

    def keeps(self) -> KeptKeys | None:
        """Return a place for one history's keys and values; None where a backbone cannot share a prompt."""
        if not self.backbone.shares_prompt:
            return None
        return KeptKeys(self.peft.get_base_model(), form=self.backbone.mask_forms[0])

    def pass_size(self, batch: TokenBatch) -> tuple[int, int]:
        """Return into how many parts a pass over ``batch`` could be split, and its padded tokens."""
        if self.backbone.shares_prompt:
            return len(batch.prompt), batch.padded_tokens()
        count = int((batch.completion_length > 0).sum())
        longest = (batch.prompt_length + batch.completion_length.amax(dim=1)).max()
        return count, count * int(longest)

    def train(self, mode: bool = True) -> Policy:
        """Let the adapter's own dropout act, or not; the frozen backbone always is as in evaluation."""
        self.training = mode
        self.beside.train(mode)
        self.adapters.train(mode)
        return self

    def seed_dropout(self, seed: int) -> None:
        """Decide what the dropout of the next step leaves out of each row; see ``RowDropout``."""
        self.adapters.rows.seed = seed
        torch.manual_seed(seed)  # of torch's own, where a model hands tokens on in other groups

    @torch.no_grad()
    def write(self, batch: TokenBatch, max_tokens: int) -> Tensor:
        """Return (B, N) tokens that are written greedily behind the prompts, N at most ``max_tokens``.

        A row that ends earlier is padded. ``batch`` lies on the CPU, as the collator makes it, padded on
        the right; each prompt is turned until its last token stands at the end.
        """
        from transformers import GenerationConfig

        tokenizer = self.backbone.tokenizer
        width = int(batch.prompt_length.max())
        place = (torch.arange(width) - (width - batch.prompt_length)[:, None]) % width
        mask = torch.arange(width) >= (width - batch.prompt_length)[:, None]
        end = tokenizer.eos_token_id
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=end,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        ids, mask = on_device((batch.prompt[:, :width].gather(1, place), mask.long()), self.device)
        written: Tensor = self.peft.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return written[:, width:]

    def train_beside(self, scalars: nn.Module) -> None:
        """Let a few numbers be trained, frozen as reference, saved and loaded with the adapter."""
        self.beside[POLICY] = scalars.to(self.device, self.adapters.parameters[0].dtype)

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of the adapter ``policy``, and those beside it."""
        beside = self.beside[POLICY].parameters() if POLICY in self.beside else ()
        return [*self.adapters.parameters, *beside]

    @property
    def has_reference(self) -> bool:
        """Whether a frozen reference adapter is present."""
        return REFERENCE in self.peft.peft_config

    @contextmanager
    def speaking_as(self, voice: str) -> Iterator[None]:
        """Score as ``policy``, ``reference`` or ``backbone`` (no adapter) inside the block."""
        with self.adapters.speaking_as(None if voice == "backbone" else voice):
            yield

    @contextmanager
    def same_batch(self) -> Iterator[None]:
        """Score one batch in several voices inside the block; layers without an adapter run once."""
        count = self.bare_layers if self.backbone.replays else 0
        with lower_layers_once(self.peft.get_base_model(), count):
            yield

    def freeze_reference(self) -> None:
        """Make the present policy the reference; an older reference is replaced."""
        self._put(REFERENCE, self._weights(POLICY))
        if POLICY in self.beside:
            self.beside[REFERENCE] = deepcopy(self.beside[POLICY]).requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the policy adapter into ``folder``, which exists."""
        config = {
            **self.peft.peft_config[POLICY].to_dict(),
            "base_model_name_or_path": self.backbone.name,
            "target_modules": self.targets,  # peft may have shortened the names
        }
        write_adapter(folder, self._weights(POLICY), config)
        if POLICY in self.beside:
            write_scalars(folder, self.beside[POLICY].state_dict())

    def digest(self, adapter: str = POLICY) -> str:
        """Return the SHA-256 of an adapter's weights and scale, and of what stands beside it."""
        digest = hashlib.sha256(repr(self.peft.peft_config[POLICY].lora_alpha).encode())
        beside = self.beside[adapter].state_dict() if adapter in self.beside else {}
        for name, value in sorted({**self._weights(adapter), **beside}.items()):
            digest.update(name.encode())
            digest.update(value.cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def load(self, folder: Path, adapter: str = POLICY) -> None:
        """Read ``folder`` into ``adapter``.

        Raises:
            AdapterError: files are missing or damaged, or shapes or a tokenizer do not fit this backbone.
            NumericsError: a weight is not finite.
        """
        path = folder / CONFIG_FILE
        if path.is_file():
            scale, ours = read_lora_shape(folder).alpha, self.peft.peft_config[POLICY].lora_alpha
            if scale != ours:
                raise AdapterError(
                    f"{path}: lora_alpha is {scale:g}, but this run's is {ours:g} (setting lora_alpha)"
                )
        self._put(adapter, read_adapter(folder), str(folder / WEIGHTS_FILE))
        check_tokenizer_beside(folder, self.backbone.tokenizer, self.backbone.name)
        if adapter in self.beside:
            self.beside[adapter].load_state_dict(read_scalars(folder, self.beside[adapter].state_dict()))

    def _parameters_of(self, adapter: str) -> dict[str, nn.Parameter]:
        """Return an adapter's parameters by their names in a PEFT folder, where no adapter has a name."""
        mark = f".{adapter}."
        named = self.peft.named_parameters()
        return {".".join(name.rsplit(mark, 1)): value for name, value in named if mark in name}

    def _weights(self, adapter: str) -> dict[str, Tensor]:
        return {name: p.detach().contiguous() for name, p in self._parameters_of(adapter).items()}

    @torch.no_grad()
    def _put(self, adapter: str, weights: dict[str, Tensor], source: str = "weights") -> None:
        """Copy weights into an adapter, each under its very name.

        Peft would first translate names as those of old checkpoints of the architecture, and pass over what
        it then does not find: layers called ``shared_experts`` kept weights that nobody trained.
        """
        wanted = {name: tuple(value.shape) for name, value in self._weights(POLICY).items()}
        got = {name: tuple(value.shape) for name, value in weights.items()}
        if wanted != got:
            different = sorted(n for n in {*wanted, *got} if wanted.get(n) != got.get(n))
            name = different[0]
            raise AdapterError(
                f"{source}: not an adapter for backbone '{self.backbone.name}' with these lora_* "
                f"settings: {len(different)} of {len(wanted)} tensors differ, first {name}: "
                f"got {got.get(name)}, wanted {wanted.get(name)}"
            )
        if adapter not in self.peft.peft_config:
            with _old_name_of_peft():
                self.peft.add_adapter(adapter, self.peft.peft_config[POLICY])
            self.adapters.see()
            self.adapters.train(self.training)
        for name, parameter in self._parameters_of(adapter).items():
            parameter.copy_(weights[name])


@contextmanager
def _old_name_of_peft() -> Iterator[None]:
    """Keep peft's question to transformers by an old name from becoming a warning to the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
