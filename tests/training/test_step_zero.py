"""The first preference step: the policy is the reference, to the last digits that the dtype holds.

A row's loss is then log 2 for DMPO, whatever its titles: the log-ratios are 0.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS, REFERENCE_LOGPS, SCORED
from recbole_dynamicpo.host.config import plain_config
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.rows import scored_columns

from ..conftest import make_tokenizer
from ..helpers.architectures import build

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def prepared(settings: dict[str, Any], **more: Any) -> tuple[DynamicPO, Interaction]:
    """Return a model whose adapter has moved and whose reference is frozen, and rows of the second stage."""
    model: DynamicPO = load(plain_config("DynamicPO", "toy", [], {**settings, **more})).model
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw).to(parameter))
    model.policy.freeze_reference()
    rows = model.dataset.stage_rows(8)
    with model.speaking_as("reference"):
        rows.update(Interaction({REFERENCE_LOGPS: model.candidate_logps(rows)}))
    columns = scored_columns(
        rows, model.ITEM_ID, model.dataset.title_numbers.numpy(), model.settings.num_negatives, 1, 0
    )
    rows.update(Interaction({SCORED: columns}))
    return model, rows


def gaps(model: DynamicPO, rows: Interaction) -> torch.Tensor:
    """Return (n, 1 + K) policy minus reference, as a training step sees them."""
    model.train()
    ids = rows[CANDIDATE_IDS].gather(1, rows[SCORED])
    batch = model.collator(model.dataset.prompt_rows(rows, ids.numpy()))
    logps = model.policy.logps(batch, model.budget.tokens).detach()
    return logps - rows[REFERENCE_LOGPS].to(logps).gather(1, rows[SCORED])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_length", [512, 190, 170])
def test_the_policy_is_the_reference(dtype: str, max_length: int, toy_settings: dict[str, Any]) -> None:
    """Also where some prompts lose history, though the longest candidate is not scored."""
    model, rows = prepared(toy_settings, dtype=dtype, max_length=max_length)
    assert gaps(model, rows).abs().max() <= TOLERANCE[dtype]
    assert bool(model.collator.truncated_rows) == (max_length < 512)


@pytest.mark.parametrize("objective", ["dmpo", "sdpo"])
@pytest.mark.parametrize("negatives", [1, 2, 4])
def test_the_first_loss_by_hand(objective: str, negatives: int, toy_settings: dict[str, Any]) -> None:
    """DMPO: log 2. S-DPO, plain: log(1 + K)."""
    model, rows = prepared(toy_settings, objective=objective, dynamic=False, num_negatives=negatives)
    wanted = math.log(2) if objective == "dmpo" else math.log(1 + negatives)
    torch.testing.assert_close(model.row_losses(rows).detach(), torch.full((8,), wanted), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5}),
        ("gpt_neox", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
        ("phimoe", {"attention_dropout": 0.5, "router_jitter_noise": 0.5}),
    ],
)
def test_the_backbones_own_dropout_rests(
    name: str, more: dict[str, float], toy_settings: dict[str, Any], tmp_path: Path
) -> None:
    build(name, **more).save_pretrained(tmp_path / "own")
    make_tokenizer().save_pretrained(tmp_path / "own")
    model, rows = prepared(toy_settings, backbone=str(tmp_path / "own"), lora_targets=["all-linear"])
    assert gaps(model, rows).abs().max() <= 1e-4
    assert model.row_losses(rows).tolist() == pytest.approx([math.log(2)] * 8, abs=1e-4)


def test_the_adapters_dropout_acts_in_training_alone(toy_settings: dict[str, Any]) -> None:
    model, rows = prepared(toy_settings, lora_dropout=0.5)
    assert gaps(model, rows).abs().min() > 1e-4
    with torch.no_grad():
        model.eval()
        assert torch.equal(model.candidate_logps(rows), rows[REFERENCE_LOGPS])


RAGGED = [([3, 5, 4, 2], "dmpo"), ([3, 3, 3, 3], "sdpo"), ([2, 2, 2, 2], "mppo"), ([6, 5, 4, 3], "dmpo")]


@pytest.mark.parametrize(("sizes", "objective"), RAGGED)
def test_ragged_rows_are_what_each_is_alone(
    sizes: list[int], objective: str, toy_settings: dict[str, Any]
) -> None:
    """No row of the batch has all the candidates that K asks for, or some have."""
    model, rows = prepared(toy_settings, objective=objective)
    batch = rows[torch.arange(4)]
    ids = batch[CANDIDATE_IDS].clone()
    for row, size in enumerate(sizes):
        place = int((ids[row] == batch[model.ITEM_ID][row]).nonzero())
        ids[row, [0, place]] = ids[row, [place, 0]]
        ids[row, size:] = 0
    batch.update(Interaction({CANDIDATE_IDS: ids}))
    with model.speaking_as("reference"):
        batch.update(Interaction({REFERENCE_LOGPS: model.candidate_logps(batch)}))
    titles = model.dataset.title_numbers.numpy()
    batch.update(Interaction({SCORED: scored_columns(batch, model.ITEM_ID, titles, 4, seed=1, epoch=0)}))
    with torch.no_grad():
        for parameter in model.policy.trainable():
            parameter.mul_(1.5)
    model.eval()
    together = model.row_losses(batch)
    together.sum().backward()
    found = [p.grad.clone() for p in model.policy.trainable() if p.grad is not None]
    model.zero_grad()
    alone = [model.row_losses(batch[torch.tensor([row])]) for row in range(4)]
    torch.stack(alone).sum().backward()
    torch.testing.assert_close(together.detach(), torch.cat(alone).detach(), rtol=1e-5, atol=1e-5)
    wanted = [p.grad for p in model.policy.trainable() if p.grad is not None]
    for got, right in zip(found, wanted, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-5)


def rename(settings: dict[str, Any], same: dict[str, str]) -> None:
    """Give items of the toy data the titles of others."""
    path = Path(settings["data_path"]) / "toy" / "toy.item"
    lines = dict(line.split("\t") for line in path.read_text().splitlines())
    for item, other in same.items():
        lines[item] = lines[other]
    path.write_text("".join(f"{item}\t{title}\n" for item, title in lines.items()))


def test_drawn_candidates_differ_by_their_titles(toy_settings: dict[str, Any]) -> None:
    """Items 21 to 40 bear the titles of 1 to 20: no row shows one twice, nor one of the user's history."""
    rename(toy_settings, {f"i{20 + n}": f"i{n}" for n in range(1, 21)})
    model: DynamicPO = load(plain_config("DynamicPO", "toy", [], toy_settings)).model
    rows = model.dataset.stage_rows(0)
    prompts = model.dataset.prompt_rows(rows, rows[CANDIDATE_IDS].numpy())
    for history, prompt in zip(model.dataset.history(rows), prompts, strict=True):
        assert len(set(prompt.candidates)) == len(prompt.candidates) == 6
        taken = set(prompt.candidates) & set(model.dataset.titles[history].tolist())
        assert len(taken) <= 1  # the item chosen may bear a title that was taken before


def with_twin(model: DynamicPO, rows: Interaction) -> tuple[Interaction, int]:
    """Return the first row, another of whose candidates now bears the positive's title, and that item."""
    batch = rows[torch.tensor([0])]
    positive = int(batch[model.ITEM_ID])
    twin = next(item for item in batch[CANDIDATE_IDS][0].tolist() if item != positive)
    numbers = model.dataset.title_numbers.clone()
    numbers[twin] = numbers[positive]
    model.dataset.title_numbers = numbers
    return batch, twin


@pytest.mark.parametrize("negatives", [1, 2, 4])
def test_another_item_of_the_positives_title_is_not_drawn(
    negatives: int, toy_settings: dict[str, Any]
) -> None:
    model, rows = prepared(toy_settings, num_negatives=negatives)
    batch, twin = with_twin(model, rows)
    titles = model.dataset.title_numbers.numpy()
    for epoch in range(20):
        columns = scored_columns(batch, model.ITEM_ID, titles, negatives, seed=1, epoch=epoch)
        assert twin not in batch[CANDIDATE_IDS].gather(1, columns)[0].tolist()


@pytest.mark.parametrize("objective", ["dmpo", "sdpo", "mppo"])
def test_where_all_negatives_are_needed_it_does_not_count(
    objective: str, toy_settings: dict[str, Any]
) -> None:
    """By hand, from the scores of the four other negatives; as a tie it would always violate."""
    model, rows = prepared(toy_settings, num_negatives=5, objective=objective, dynamic=False)
    batch, twin = with_twin(model, rows)
    titles = model.dataset.title_numbers.numpy()
    batch.update(Interaction({SCORED: scored_columns(batch, model.ITEM_ID, titles, 5, seed=1, epoch=0)}))
    with torch.no_grad():
        for parameter in model.policy.trainable():
            parameter.mul_(1.5)
        policy = model.candidate_logps(batch)[0].double()
    ratio = policy - batch[REFERENCE_LOGPS][0].double()
    items = batch[CANDIDATE_IDS][0].tolist()
    first = items.index(int(batch[model.ITEM_ID]))
    others = [place for place, item in enumerate(items) if place != first and item != twin]
    assert len(others) == 4
    margins = [float(ratio[first] - ratio[place]) for place in others]
    chances = [float(policy[first].exp() - policy[place].exp()) for place in others]
    wanted = {
        "dmpo": math.log1p(math.exp(-sum(margins) / 4)),
        "sdpo": math.log1p(sum(math.exp(-margin) for margin in margins)),
        "mppo": math.log1p(math.exp(-sum(chances))),
    }[objective]
    assert model.row_losses(batch).tolist() == pytest.approx([wanted], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "more", "wanted"),
    [
        (
            "gemma3_text",
            {"max_position_embeddings": 300},
            r"max_length: got 512, but the backbone's max_position_embeddings is 300",
        ),
        (
            "mistral",
            {"max_position_embeddings": 250},
            r"max_length: got 512, but the backbone's max_position_embeddings is 250",
        ),
        ("gpt2", {"max_position_embeddings": 400}, r"the backbone's max_position_embeddings is 400"),
        ("bloom", {}, None),
        ("mistral", {"sliding_window": 100}, None),  # its layers look less far, and its rows are as long
    ],
)
def test_a_limit_below_max_length_is_said_at_start(
    name: str,
    more: dict[str, int],
    wanted: str | None,
    toy_settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build(name, **more).save_pretrained(tmp_path / "own")
    make_tokenizer().save_pretrained(tmp_path / "own")
    own = {**toy_settings, "backbone": str(tmp_path / "own"), "lora_targets": ["all-linear"]}
    model: DynamicPO = load(plain_config("DynamicPO", "toy", [], own)).model
    said = [record.getMessage() for record in caplog.records if "max_length: got" in record.getMessage()]
    if wanted is None:
        assert not said
        assert (model.collator.max_length, model.collator.limited_by) == (512, "max_length")
    else:
        assert len(said) == 1
        assert re.search(wanted, said[0])
        assert model.collator.max_length == next(iter(more.values()))
