"""The token budget: how batches are split, and what happens where memory runs out."""

from __future__ import annotations

import logging
import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_dynamicpo.dataset.columns import ROW_ID, TOKENS
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.host.config import plain_config
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.language_model.logps import separate_logps
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring import token_budget as memory
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.training.checkpoint import load_progress
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.rows import step_batches
from recbole_dynamicpo.training.trainer import DynamicPOTrainer

from ..conftest import make_tokenizer
from ..helpers.architectures import build


def test_groups_are_as_large_as_the_budget_allows() -> None:
    # 3 rows of at most 30 tokens fill 90 of 100; a fourth of 30 would make it 120.
    assert TokenBudget(100).split([10, 20, 30, 30, 50, 120, 5]) == [[0, 1, 2], [3, 4], [5], [6]]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 500))
def test_every_row_is_in_one_group_that_fits(sizes: list[int], tokens: int) -> None:
    groups = TokenBudget(tokens).split(sizes)
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    assert all(len(group) == 1 or len(group) * max(sizes[i] for i in group) <= tokens for group in groups)


def _cost(sizes: list[int], groups: list[list[int]], beside: int) -> int:
    return sum(len(group) * max(sizes[i] for i in group) + beside for group in groups)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200), st.integers(0, 80))
def test_groups_cost_least_of_all_that_fit(sizes: list[int], tokens: int, beside: int) -> None:
    found = TokenBudget(tokens, beside=beside).split(sizes)
    costs = []
    for cuts in range(2 ** (len(sizes) - 1)):
        groups = [[0]]
        for row in range(1, len(sizes)):
            if cuts >> (row - 1) & 1:
                groups.append([])
            groups[-1].append(row)
        if all(len(group) == 1 or len(group) * max(sizes[i] for i in group) <= tokens for group in groups):
            costs.append(_cost(sizes, groups, beside))
    assert _cost(sizes, found, beside) == min(costs)


def test_rows_of_other_sizes_are_not_padded_where_a_pass_costs_little() -> None:
    sizes = [20, 22, 190, 200]
    assert TokenBudget(4096).split(sizes) == [[0, 1, 2, 3]]  # 800 tokens in one pass
    assert TokenBudget(4096, beside=64).split(sizes) == [[0, 1], [2, 3]]  # 444 in two


def test_shrinking_ends_at_one_row(caplog: pytest.LogCaptureFixture) -> None:
    budget = TokenBudget(4096)
    with caplog.at_level(logging.WARNING):
        assert budget.shrink(8, 800, "out of memory")
    assert budget.tokens == 400
    assert "out of memory with 8 rows in one pass: now at most 400 tokens" in caplog.text
    assert not budget.shrink(1, 400, "out of memory")
    assert budget.tokens == 400


def test_a_memory_limit_halves_the_budget_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peaks = iter([0.5, 2.0, 2.0, 2.0])
    monkeypatch.setattr(memory, "_peak_gib", lambda: next(peaks))
    budget = TokenBudget(1000, max_memory=1.0)
    budget.check(4, 1000)
    assert budget.tokens == 1000
    with caplog.at_level(logging.WARNING):
        budget.check(4, 1000)
        assert budget.tokens == 500
        budget.check(1, 250)
        budget.check(1, 250)
    assert budget.tokens == 500
    assert caplog.text.count("2.00 GiB in use, max_memory is 1") == 2  # the single row only once


def test_the_peak_is_that_since_the_last_reset() -> None:
    TokenBudget(1, max_memory=1.0)
    before = memory._peak_gib()
    with mmap.mmap(-1, 64 << 20) as block:  # new pages, whatever the allocator keeps for later
        block.write(b"x" * (64 << 20))
        assert memory._peak_gib() - before > 0.05
    memory._reset_peak()
    assert memory._peak_gib() - before < 0.05


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Let the policy run out of memory with more than ``rows`` rows; return the sizes that it was given."""
    logps, sizes = Policy.logps, []

    def scarce(self: Policy, batch: TokenBatch, *more: Any) -> torch.Tensor:
        sizes.append(len(batch.prompt))
        if len(batch.prompt) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logps(self, batch, *more)

    monkeypatch.setattr(Policy, "logps", scarce)
    return sizes


def losses(folder: Path) -> list[float]:
    entries = Journal(folder / "metrics.jsonl").entries()
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def test_training_goes_on_in_smaller_parts(
    toy_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = {**toy_settings, "eval_rows": 4, "compare_stages": False}
    expected = run("DynamicPO", "toy", overrides={**small, "checkpoint_dir": str(tmp_path / "a")})
    sizes = out_of_memory_above(monkeypatch, rows=2)
    with caplog.at_level(logging.WARNING):
        found = run("DynamicPO", "toy", overrides={**small, "checkpoint_dir": str(tmp_path / "b")})
    assert max(sizes) == 4
    assert sizes.count(4) + sizes.count(3) <= 3  # once the budget is small enough, it stays so
    assert "out of memory with 4 rows" in caplog.text
    first, second = (losses(next((tmp_path / name).iterdir())) for name in "ab")
    np.testing.assert_allclose(first, second, rtol=1e-4)
    assert dict(found["test_result"]) == dict(expected["test_result"])


def test_a_single_row_that_does_not_fit_is_an_error(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(monkeypatch, rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        run("SFTRec", "toy", overrides=toy_settings)


def test_padding_stays_below_a_tenth(toy_settings: dict[str, Any]) -> None:
    """On the ml-100k that RecBole brings along, with one token a byte, in both stages."""
    more = {key: value for key, value in toy_settings.items() if key not in ("data_path", "load_col")}
    config = plain_config("DynamicPO", "ml-100k", [], {**more, "sft_rows": 400, "preference_rows": 400})
    model: DynamicPO = load(config).model
    dataset: DynamicPODataset = model.dataset
    for plan in plan_stages(model.settings):
        rows = dataset.stage_rows(plan.rows, plan.skip)
        seen, tokens, padded = [], 0, 0
        for batches in step_batches(model, plan, rows, epoch=0, done=0):
            for batch in batches:
                seen += batch[ROW_ID].tolist()
                packed = packed_lengths(model, batch, plan.name)
                tokens += packed.sum()
                padded += packed.max() * len(packed)
                offset = packed - batch[TOKENS].numpy()
                assert offset.max() - offset.min() <= 25 * 8  # separators and ends of the lists
        assert sorted(seen) == sorted(rows[ROW_ID].tolist())
        assert 1 - tokens / padded < 0.1


def packed_lengths(model: DynamicPO, batch: Interaction, stage: str) -> np.ndarray[Any, Any]:
    """Return (B,) tokens of each row's prompt and completions, from the collator itself."""
    if stage == "sft":
        items = batch[model.ITEM_ID].numpy()[:, None]
    else:
        items = batch["candidate_ids"].gather(1, batch["scored_columns"]).numpy()
    tokens = model.collator(model.dataset.prompt_rows(batch, items))
    return (tokens.prompt_length + tokens.completion_length.sum(dim=1)).numpy()


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, short: bool) -> None:
    def work() -> int:
        raise error

    if short:
        found = memory.if_memory_allows(work)
        assert isinstance(found, memory.Shortage)
        assert isinstance(found.error(), torch.OutOfMemoryError)
        assert found.reason == str(error)
    else:
        with pytest.raises(type(error)):
            memory.if_memory_allows(work)
    assert memory.if_memory_allows(lambda: 3) == 3


def test_the_processors_own_allocator_is_known() -> None:
    found = memory.if_memory_allows(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert isinstance(found, memory.Shortage)


@pytest.mark.parametrize("stage", ["training", "scoring"])
def test_nothing_of_the_failed_pass_is_alive_when_it_is_tried_again(
    stage: str, toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activations hung on the error's traceback as long as that was being handled."""
    logps, held, alive = Policy.logps, [], []

    def scarce(self: Policy, batch: TokenBatch, *more: Any) -> torch.Tensor:
        alive.append(sum(ref() is not None for ref in held))
        activation = torch.zeros(1000)
        held.append(weakref.ref(activation))
        if len(batch.prompt) > 2 and self.training == (stage == "training"):
            raise torch.OutOfMemoryError(f"CUDA out of memory with {activation.shape}")
        return logps(self, batch, *more)

    monkeypatch.setattr(Policy, "logps", scarce)
    run("SFTRec", "toy", overrides={**toy_settings, "eval_rows": 4, "compare_stages": False})
    assert len(alive) > 4
    assert set(alive) == {0}


def bloom(folder: Path, vocabulary: int = 257) -> str:
    """Write a model that scores each candidate in a sequence of its own."""
    build("bloom", vocab_size=vocabulary).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def decoder_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the padded tokens of each pass of a Bloom's decoder from now on."""
    from transformers.models.bloom.modeling_bloom import BloomModel

    forward, sizes = BloomModel.forward, []

    def noted(self: BloomModel, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        sizes.append(input_ids.numel())
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(BloomModel, "forward", noted)
    return sizes


@pytest.mark.parametrize("tokens", [400, 1])
def test_a_sequence_a_candidate_is_bounded_too(
    tokens: int, toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all voices and stages; a single sequence may exceed the bound. The losses are the same."""
    own = {**toy_settings, "backbone": bloom(tmp_path / "bloom"), "lora_targets": ["all-linear"]}
    own |= {"sft_rows": 2, "preference_rows": 2, "eval_rows": 2}
    run("DynamicPO", "toy", overrides={**own, "checkpoint_dir": str(tmp_path / "a")})
    sizes = decoder_passes(monkeypatch)
    small = {**own, "tokens_per_batch": tokens, "checkpoint_dir": str(tmp_path / "b")}
    run("DynamicPO", "toy", overrides=small)
    assert max(sizes) <= max(tokens, 256)
    first, second = (losses(next((tmp_path / name).iterdir())) for name in "ab")
    np.testing.assert_allclose(first, second, rtol=1e-3)


def test_a_sequence_a_candidate_goes_on_in_smaller_parts(
    toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single row can be split there: between its candidates."""
    model: DynamicPO = load(
        plain_config("DynamicPO", "toy", [], {
            **toy_settings, "backbone": bloom(tmp_path / "bloom"), "lora_targets": ["all-linear"],
        })
    ).model  # fmt: skip
    rows = model.dataset.stage_rows(1)
    expected = model.candidate_logps(rows)
    from transformers.models.bloom.modeling_bloom import BloomModel

    forward = BloomModel.forward

    def scarce(self: BloomModel, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if len(input_ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(BloomModel, "forward", scarce)
    torch.testing.assert_close(model.candidate_logps(rows), expected, rtol=0, atol=1e-4)
    assert model.budget.tokens < 4096


def test_a_large_vocabulary_needs_no_memory_for_every_token(tmp_path: Path) -> None:
    """250,880 entries and some 1,500 tokens were 1.5 GB of logits in one tensor alone."""
    model = build("bloom", vocab_size=250_880)
    batch = TokenBatch(
        torch.randint(1, 257, (2, 90)), torch.tensor([90, 80]),
        torch.randint(1, 257, (2, 8, 10)), torch.full((2, 8), 10),
    )  # fmt: skip
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch(), torch.no_grad():
        separate_logps(model, batch, most_tokens=4096)
        separate_logps(model, batch, plain_head=False, most_tokens=4096)
    assert largest <= 1 << 24


@pytest.mark.parametrize("saved", [0, 300, 10_000])
def test_a_resumed_run_begins_with_what_memory_allowed(saved: int) -> None:
    budget = TokenBudget(4096)
    budget.lower(saved)
    assert budget.tokens == {0: 4096, 300: 300, 10_000: 4096}[saved]


def test_the_budget_is_in_the_checkpoint(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out once, the run dies, and the resumed one is not slowed by running out again."""
    sizes = out_of_memory_above(monkeypatch, rows=2)

    def die(self: Any, plan: Any, batches: Any, total: int) -> Any:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        return step(self, plan, batches, total)

    step = DynamicPOTrainer._step
    own = {**toy_settings, "eval_rows": 2, "compare_stages": False, "checkpoint_every": 1}
    monkeypatch.setattr(DynamicPOTrainer, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        run("SFTRec", "toy", overrides=own)
    monkeypatch.setattr(DynamicPOTrainer, "_step", step)
    folder = next(Path(own["checkpoint_dir"]).iterdir())
    kept = load_progress(folder / "checkpoint").tokens_per_batch
    assert 0 < kept < 4096
    sizes.clear()
    run("SFTRec", "toy", overrides={**own, "resume": str(folder)})
    assert max(sizes) <= 2
