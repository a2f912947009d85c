"""The paper's evaluation: judging by hand, and decoding with a model whose every answer is known."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.evaluation.protocols import (
    ANSWER_TOKENS,
    compare_protocols,
    hides_target,
    judge,
    overlapping,
)
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.scoring.answers import write_answers
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.scoring.token_budget import TokenBudget

from ..conftest import make_model, make_tokenizer

HIDDEN = 264  # at least one dimension per letter of the 257-word vocabulary, divisible by the heads


@pytest.mark.parametrize(
    ("answer", "named", "valid", "hit"),
    [
        (" Ash", (1,), True, True),
        (" Ash\nNext movie: Ash", (1,), True, True),  # named twice is still one candidate
        (" I think Ash, because", (1,), True, True),
        (" Ash Wednesday", (1, 2), False, False),  # names the shorter title as well
        (" Owl", (0,), True, False),
        (" Ash or Owl", (0, 1), False, False),
        (" ash", (), False, False),
        ("", (), False, False),
    ],
)
def test_an_answer_is_valid_if_it_names_one_candidate(
    answer: str, named: tuple[int, ...], valid: bool, hit: bool
) -> None:
    found = judge(answer, ["Owl", "Ash", "Ash Wednesday"], "Ash")
    assert (found.named, found.valid, found.hit) == (named, valid, hit)


def test_two_candidates_of_one_title_are_named_together() -> None:
    found = judge(" Ash", ["Ash", "Owl", "Ash"], "Ash")
    assert (found.named, found.valid, found.hit) == ((0, 2), False, False)
    assert overlapping(["Ash", "Owl", "Ash"])


def test_containment() -> None:
    assert overlapping(["Owl", "Ash Wednesday", "Ash"])
    assert not overlapping(["Owl", "Ash"])
    assert hides_target(["Owl", "Ash Wednesday", "Ash"], "Ash Wednesday")
    assert not hides_target(["Owl", "Ash Wednesday", "Ash"], "Ash")


def chain_model(chain: str) -> Any:
    """Return a Llama that writes ``chain`` and ends, whatever stood before its first letter.

    The layer adds nothing to the embedding, embeddings are unit vectors, and the head scores the letter
    that follows in the chain sqrt(HIDDEN) and all others 0; after any other letter all are equally likely.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=257,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-12,
        eos_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    ids = [*make_tokenizer()(chain).input_ids, 0]
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(257, HIDDEN))
        model.lm_head.weight.zero_()
        for before, after in pairwise(ids):
            model.lm_head.weight[after, before] = 1.0
    return model


def make_scorer(model: Any, texts: list[str]) -> Scorer:
    backbone = Backbone(model, make_tokenizer(), "hand-made", "0" * 64, shares_prompt=True)
    policy = Policy(backbone, LoraShape(2, 4, 0.0, ("q_proj",), 0), seed=0)
    collator = Collator(backbone.tokenizer, Templates(texts), max_length=400, max_history=3)
    return Scorer(policy, collator, TokenBudget(2048))


def test_figures_of_a_model_that_always_says_cats() -> None:
    """Every answer is " Cats". By hand, row by row (a step off the chain costs at least 5.5 nats):

    1. Cats is right. 2. "Cat" is named as well: not valid, though likelihood finds Cats. 3. "Cat" is named,
    Dog is right. 4. Nothing is named; the shortest title, Fox, is the most likely and right. 5. "at" is named
    by chance and right; it takes two costly steps (' ' to 'a', 't' to the end), Ox one and two of 5.5.
    6. Cats is named; the right title has 24 letters, so that no answer could hold it.
    """
    scorer = make_scorer(chain_model(": Cats"), ["{history:; } | {candidates:; } next:"])
    table = [
        (["Cats", "Dog", "Elk"], "Cats"),
        (["Cat", "Cats", "Dog"], "Cats"),
        (["Cat", "Dog", "Elk"], "Dog"),
        (["Doggo", "Elkhorn", "Fox"], "Fox"),
        (["at", "Ox", "Yak"], "at"),
        (["Cats", "A very long title indeed"], "A very long title indeed"),
    ]
    rows = [PromptRow(["Owl"] * (index + 1), shown, shown) for index, (shown, _) in enumerate(table)]
    targets = [target for _, target in table]
    answers = write_answers(scorer, rows, ANSWER_TOKENS, batch_size=4, progress=False)
    assert answers == [" Cats"] * 6
    scores = scorer(rows).numpy()
    step, guess = math.log1p(256 * math.exp(-math.sqrt(HIDDEN))), math.log(257)
    costly = math.sqrt(HIDDEN) + step
    assert scores[0, 0] == pytest.approx(-6 * step, abs=1e-4)
    assert scores[4, :2] == pytest.approx([-2 * step - 2 * costly, -step - costly - 2 * guess], abs=1e-3)

    tokens = [len(target) + 1 for target in targets]
    found = compare_protocols([shown for shown, _ in table], targets, answers, scores, tokens, np.arange(6))
    assert (found.rows, found.valid, found.generated_hits) == (6, 4, 2)
    assert (found.likelihood_hits, found.agreeing) == (3, 3)
    assert (found.overlapping, found.hidden, found.cut) == (1, 1, 1)
    lines = found.table().split("\n")
    assert lines[1].startswith("HR@1, generated     0.3333  95 % interval [0.0968, 0.7000]")
    assert lines[2].startswith("ValidRatio          0.6667")
    assert lines[3].startswith("HR@1, likelihood    0.5000")
    assert lines[4].startswith("agreement           3 of 4 valid answers")


def test_an_answer_ends_after_twenty_tokens() -> None:
    scorer = make_scorer(chain_model(": abcdefghijklmnopqrstuvwxyz"), ["{history:; } next:"])
    rows = [PromptRow(["Owl"], ["a", "b"], ["a", "b"])]
    assert write_answers(scorer, rows, ANSWER_TOKENS, progress=False) == [
        " abcdefghijklmnopqrstuvwxyz"[:ANSWER_TOKENS]
    ]


def test_batches_of_uneven_prompts_are_answered_as_single_rows() -> None:
    scorer = make_scorer(make_model(dtype=torch.float64), ["{history:; } | {candidates:; }:"])
    rows = [PromptRow(["x" * n] * (1 + n % 3), ["a", "b" * n], ["a", "b" * n]) for n in (1, 9, 4, 30, 2)]
    alone = [write_answers(scorer, [row], ANSWER_TOKENS, progress=False)[0] for row in rows]
    assert write_answers(scorer, rows, ANSWER_TOKENS, batch_size=5, progress=False) == alone
    assert write_answers(scorer, rows, ANSWER_TOKENS, batch_size=2, progress=False) == alone
    assert len(set(alone)) > 1


def test_prompts_are_those_that_likelihood_scores() -> None:
    """A history that does not fit is cut in the same way, its oldest titles first."""
    scorer = make_scorer(chain_model(": Cats"), ["{history:; } | {candidates:; } next:"])
    scorer.collator.max_length = 40
    seen: list[list[int]] = []
    generate = scorer.policy.peft.generate

    def spy(**inputs: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.append(ids[mask.bool()].tolist())
        return generate(**inputs)

    scorer.policy.peft.generate = spy
    rows = [PromptRow(["Old " * 5, "Owl"], ["Fox", "Elk"], ["Fox", "Elk"]), PromptRow(["Hen"], ["A"], ["A"])]
    write_answers(scorer, rows, ANSWER_TOKENS, progress=False)
    batch = scorer.collator(rows)
    assert seen == [ids[:n].tolist() for ids, n in zip(batch.prompt, batch.prompt_length, strict=True)]
    assert scorer.collator.tokenizer.decode(seen[0]) == "Owl | Fox; Elk next:"


def test_wrong_arguments(tmp_path: Path) -> None:
    scorer = make_scorer(chain_model(": Cats"), ["{history:; }:"])
    with pytest.raises(DataError, match="batch_size: got 0, wanted at least 1"):
        write_answers(scorer, [], ANSWER_TOKENS, batch_size=0)
    with pytest.raises(DataError, match="no rows"):
        compare_protocols([], [], [], np.zeros((0, 2)), [], np.zeros(0))
