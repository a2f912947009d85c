"""The token budget: how batches are split, and what happens where memory runs out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_dynamicpo.host.config import plain_config
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring import token_budget as memory
from recbole_dynamicpo.scoring.batches import TokenBatch
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.training.columns import ROW_ID, TOKENS
from recbole_dynamicpo.training.dataset import DynamicPODataset
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.rows import step_batches


def test_groups_are_as_large_as_the_budget_allows() -> None:
    # 3 rows of at most 30 tokens fill 90 of 100; a fourth of 30 would make it 120.
    assert TokenBudget(100).split([10, 20, 30, 30, 50, 120, 5]) == [[0, 1, 2], [3, 4], [5], [6]]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 500))
def test_every_row_is_in_one_group_that_fits(sizes: list[int], tokens: int) -> None:
    groups = TokenBudget(tokens).split(sizes)
    assert [index for group in groups for index in group] == list(range(len(sizes)))
    assert all(len(group) == 1 or len(group) * max(sizes[i] for i in group) <= tokens for group in groups)


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
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert memory._peak_gib() - before > 0.05
    del block
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
