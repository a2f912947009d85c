"""Numbers at and beyond their limits: what is not finite is stopped and named, what is extreme survives."""

from __future__ import annotations

import json
import math
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.data.catalogue import Catalogue
from recbole_dynamicpo.errors import AdapterError, BackboneError, DataError, NumericsError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.names import OBJECTIVES, REFERENCE_FREE
from recbole_dynamicpo.objectives.preference import preference_loss
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.serving.recommender import Recommender
from recbole_dynamicpo.training.model import DynamicPO

from ..conftest import write_dataset
from ..helpers.made_extras import made_extras, with_ratings
from .run_targets import write_recommender

# One or more letters of each plane that has any, and those that need care in text.
UNICODE = [
    "Amélie", "東京物語", "كتاب الليل", "שלום", "हिन्दी", "é", "Z͑͗a̴l̶g̵o̸", "ﬁlm", "İstanbul", "ǅ",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea",
    "\U00010348", "\U00020000",
    "\U0002f800", "\U00030000", "\U000e0041\U000e0100", "\U000f0000", "\U0010fffd", "\ufdd0", "\uffff",
    "a\u202eb", "a\u200bb", "a\u00a0b", "\ufeffx", "x\u2028y", "x\0y", "x\ty", "x\ny", "\x7f", "\u0085x",
    "A" * 300, "😀" * 60,
]  # fmt: skip


@pytest.fixture
def own(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {**toy_settings, "compare_stages": False, "eval_rows": 4, "sft_rows": 4, "preference_rows": 4}


def folder_of(own: dict[str, Any]) -> Path:
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    return folder


class BadGradient(torch.autograd.Function):
    """A loss that is finite and whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.full_like(gradient, ctx.value), None


# --- not finite ---


@pytest.mark.parametrize("stage", ["sft", "preference"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(
    stage: str, value: float, where: str, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = DynamicPO.losses_of

    def broken(self: DynamicPO, laid_out: Any) -> torch.Tensor:
        loss = losses(self, laid_out)
        if self.stage != stage:
            return loss
        return BadGradient.apply(loss, value) if where == "gradient" else loss + value

    monkeypatch.setattr(DynamicPO, "losses_of", broken)
    named = "gradient norm (nan|inf)" if where == "gradient" else f"loss {value}"
    with pytest.raises(NumericsError, match=rf"stage {stage}, step 1: .*{named}.* in rows \[\d+"):
        run("DynamicPO", "toy", overrides=own)
    checkpoint = folder_of(own) / "checkpoint"
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["stage"], state["step"]) == (stage, 0)
    assert all(
        torch.isfinite(value).all() for value in load_file(checkpoint / "adapter_model.safetensors").values()
    )


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_reference_log_probabilities_that_are_not_finite_are_not_cached(
    value: float, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_dynamicpo.language_model.policy import Policy

    logps = Policy.logps

    def broken(self: Policy, batch: Any, *more: Any) -> torch.Tensor:
        found = logps(self, batch, *more)
        speaking = self.peft.active_adapters
        return found * value if "reference" in speaking else found

    monkeypatch.setattr(Policy, "logps", broken)
    with pytest.raises(NumericsError, match="log-probabilities are not finite"):
        run("DynamicPO", "toy", overrides=own)
    assert not list((Path(own["checkpoint_dir"]).parent / "cache").rglob("*.json"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_of_an_adapter_that_are_not_finite_are_named(
    value: float, own: dict[str, Any], tmp_path: Path, tiny_backbone: Path
) -> None:
    folder = write_recommender(tmp_path / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[3] = value
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {**own, "sft_adapter": str(folder), "lora_rank": 2, "lora_alpha": 4, "lora_layers": 1}
    for call in (lambda: load_recommender(folder), lambda: run("DMPO", "toy", overrides=settings)):
        with pytest.raises(NumericsError, match=f"tensor {name} holds NaN or infinity"):
            call()
    whole = {key: torch.zeros_like(tensor, dtype=torch.int64) for key, tensor in weights.items()}
    save_file(whole, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"is torch\.int64, wanted"):
        load_recommender(folder)


def test_an_adapter_of_another_scale_is_refused(
    own: dict[str, Any], tmp_path: Path, tiny_backbone: Path
) -> None:
    """The same weights under another lora_alpha are another policy; so are those of rank-stabilized LoRA."""
    folder = write_recommender(tmp_path / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    small = {
        "sft_adapter": str(folder),
        "lora_rank": 2,
        "lora_layers": 1,
        "lora_targets": ["q_proj", "v_proj"],
    }
    with pytest.raises(AdapterError, match=r"adapter_config\.json: lora_alpha is 4, but this run's is 8"):
        run("DMPO", "toy", overrides={**own, **small, "lora_alpha": 8})
    run("DMPO", "toy", overrides={**own, **small, "lora_alpha": 4, "epochs": 1})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    with pytest.raises(AdapterError, match="use_rslora is True"):
        load_recommender(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_backbone_that_is_not_finite_stops_training_and_ranking(
    value: float, own: dict[str, Any], tmp_path: Path, tiny_backbone: Path
) -> None:
    sick = tmp_path / "sick"
    shutil.copytree(tiny_backbone, sick)
    weights = load_file(sick / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, sick / "model.safetensors", metadata={"format": "pt"})
    found = r"sick.*up_proj\.weight holds NaN or infinity"
    with pytest.raises(BackboneError, match=found):
        run("SFTRec", "toy", overrides={**own, "backbone": str(sick)})
    folder = write_recommender(tmp_path / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    card = json.loads((folder / "recommender.json").read_text())
    (folder / "recommender.json").write_text(json.dumps({**card, "backbone": str(sick)}))
    with pytest.raises(BackboneError, match=found):
        load_recommender(folder)


# --- large ---


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_row_of_huge_gaps_leaves_the_others_as_they_are(objective: str, dynamic: bool) -> None:
    """Losses and gradients of ordinary rows are, bit for bit, those without the rows of 1e4 nats."""
    ordinary = torch.tensor([[-3.0, -4.0, -2.5, -9.0], [-1.0, -1.5, -7.0, -7.5]], dtype=torch.float64)
    huge = torch.tensor(
        [[-1e4, -1.0, -1.0, -2.0], [-1.0, -1e4, -2e4, -1e4], [-1e4, -1e4, -1e4, -1e4]]
    ).double()
    results = []
    for rows in (ordinary, torch.cat([ordinary, huge])):
        policy = rows.clone().requires_grad_()
        reference = torch.full_like(rows, -4.0)
        extras = made_extras(policy)
        found = preference_loss(policy, reference, objective=objective, dynamic=dynamic, extras=extras)
        found.loss.sum().backward()
        assert torch.isfinite(found.loss).all()
        assert torch.isfinite(policy.grad).all()
        results.append((found.loss[:2].tolist(), policy.grad[:2].tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_training_survives_gaps_of_ten_thousand_nats(
    objective: str, dynamic: bool, own: dict[str, Any], tmp_path: Path, tiny_backbone: Path
) -> None:
    """A backbone whose output layer is so sharp that the titles of a row are that far apart."""
    sharp = tmp_path / "sharp"
    shutil.copytree(tiny_backbone, sharp)
    weights = load_file(sharp / "model.safetensors")
    weights["lm_head.weight"] *= 1000
    save_file(weights, sharp / "model.safetensors", metadata={"format": "pt"})
    own = with_ratings(own)
    settings = {**own, "backbone": str(sharp), "objective": objective, "dynamic": dynamic, "sft_epochs": 1}
    run("DynamicPO", "toy", overrides=settings)
    lines = [json.loads(line) for line in (folder_of(own) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train" and line["stage"] == "preference"]
    assert steps
    assert all(math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) for step in steps)
    cached = [json.loads(file.read_text()) for file in (tmp_path / "cache").rglob("*.json")]
    rows = [row for shard in cached for row in shard.values()]
    if objective not in REFERENCE_FREE:
        assert max(max(row) - min(row) for row in rows) > 1e4


# --- small and odd ---


@pytest.fixture
def recommender(tmp_path: Path, tiny_backbone: Path) -> Recommender:
    backbone = load_backbone(str(tiny_backbone), dtype="float32")
    return load_recommender(write_recommender(tmp_path / "adapter", backbone))


def test_one_candidate_one_title_of_history_and_titles_never_seen(recommender: Recommender) -> None:
    (only,) = recommender.rank(["never seen"], ["seen neither"])
    assert (only.title, only.ids) == ("seen neither", ())
    assert math.isfinite(only.score)
    assert [item.title for item in recommender.rank(["x"], ["never"] * 3, k=5)] == ["never"]


def test_a_score_does_not_depend_on_candidates_that_come_twice(recommender: Recommender) -> None:
    once, twice = (recommender.rank(["x"], names) for names in (["a", "b"], ["a", "b", "a", "a"]))
    assert once == twice


def test_a_hundred_candidates(recommender: Recommender) -> None:
    titles = [f"t{number}" for number in range(100)]
    ranked = recommender.rank(["Heat"], titles, k=100)
    assert sorted(item.title for item in ranked) == sorted(titles)
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)


def test_a_catalogue_of_one_title(recommender: Recommender) -> None:
    recommender.catalogue = Catalogue(("1", "2", "3"), ("Same", "Same", "Same"), (3, 2, 1))
    (only,) = recommender.rank(["Other"])
    assert (only.title, only.ids) == ("Same", ("1", "2", "3"))
    with pytest.raises(DataError, match="every title of the catalogue is in the history"):
        recommender.rank(["Same"])


@pytest.mark.parametrize("candidates", [2, 100])
def test_runs_of_two_and_of_a_hundred_candidates(
    candidates: int, own: dict[str, Any], tmp_path: Path
) -> None:
    write_dataset(tmp_path / "many", users=40, items=130)
    size = {
        "num_candidates": candidates,
        "num_negatives": candidates - 1,
        "max_length": 2048,
        "valid_rows": 2,
        "eval_rows": 2,
    }
    result = run("DynamicPO", "toy", overrides={**own, **size, "data_path": str(tmp_path / "many")})
    assert 0 <= result["test_result"]["hit@1"] <= 1


def test_users_of_a_single_title_of_history(own: dict[str, Any], tmp_path: Path) -> None:
    """Four interactions: one row to train on, whose history is one title, one to validate, one to test."""
    home = write_dataset(tmp_path / "short", users=9, items=20) / "toy" / "toy.inter"
    head, *lines = home.read_text().splitlines()
    kept: dict[str, list[str]] = {}
    for line in lines:
        kept.setdefault(line.split("\t")[0], []).append(line)
    home.write_text("\n".join([head, *(line for lines in kept.values() for line in lines[:4])]) + "\n")
    result = run("DynamicPO", "toy", overrides={**own, "data_path": str(tmp_path / "short")})
    assert 0 <= result["test_result"]["hit@1"] <= 1


# --- Unicode ---


@pytest.mark.parametrize("title", UNICODE, ids=lambda title: f"U+{ord(title[0]):04X}-{len(title)}")
def test_titles_of_all_planes_are_scored_as_they_are(title: str, recommender: Recommender) -> None:
    """Not normalized, not cut, not mixed up with a canonically equal one."""
    other = unicodedata.normalize("NFD", title)
    names = list(dict.fromkeys([title, other, "plain"]))
    ranked = recommender.rank([title, "b"], names, k=5)
    assert {item.title for item in ranked} == set(names)
    assert all(math.isfinite(item.score) for item in ranked)
    collator: Collator = recommender.scorer.collator
    ids = collator.title_ids(title)
    tokenizer = collator.tokenizer
    assert tokenizer.decode(ids[:-1]) == f" {title}"
    batch = collator([PromptRow([title], names, names)])
    prompt = tokenizer.decode(batch.prompt[0, : batch.prompt_length[0]])
    assert prompt == Templates(collator.templates.texts).render([title], names)


def test_unicode_outlives_the_files_of_a_recommender(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = write_recommender(tmp_path / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    known = Catalogue(tuple(map(str, range(len(UNICODE)))), tuple(UNICODE), (0,) * len(UNICODE))
    known.save(folder / "catalogue.json")
    loaded = load_recommender(folder)
    assert loaded.catalogue == known
    assert {item.title for item in loaded.rank(["x"], k=len(UNICODE))} == set(UNICODE)


def test_half_a_surrogate_pair_is_named(recommender: Recommender) -> None:
    with pytest.raises(DataError, match=r"history\[0\]"):
        recommender.rank(["\ud800"], ["b"])
