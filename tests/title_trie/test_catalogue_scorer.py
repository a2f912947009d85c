"""The catalogue likelihood by a language model: one pass, chunks, search, and an oracle a title at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.language_model.probe import find_abilities
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.token_budget import TokenBudget
from recbole_dynamicpo.title_trie.catalogue_likelihood import Mixture
from recbole_dynamicpo.title_trie.catalogue_scorer import CatalogueScorer
from recbole_dynamicpo.title_trie.catalogue_search import CatalogueSearch
from recbole_dynamicpo.title_trie.prior import Histories, Prior, PriorSource, edge_masses
from recbole_dynamicpo.title_trie.trie import Trie
from tests.helpers import trie_oracle as oracle

from ..conftest import make_model, make_tokenizer
from ..helpers.architectures import build

# Two items of one title, titles that begin others, one letter, other scripts, a separator inside.
TITLES = ["Heat", "Heat 2", "He", "Alien", "東京物語", "東京", "X", "Heat", "A; B", "Ёлки", "Aliens"]
DISTINCT = list(dict.fromkeys(TITLES))
SEQUENCE, LISTED = "Seen:{history:\\n}", "Seen {history:; }, of {candidates:; } next:"
ROWS = [
    PromptRow(["Heat", "X"], ["Alien", "He"], []),
    PromptRow([], ["Alien", "He"], []),
    PromptRow(["東京", "Ёлки", "Aliens"], ["X", "A; B"], []),
]
# Plain, a scaled head, soft caps and some windows, windows alone, chunks, absolute positions, recurrent.
# These round inside to float32, in whatever type they compute.
ROUNDED = {"gemma2": 1e-5, "llama4_text": 1e-5, "mamba": 1e-5}
ARCHITECTURES = ["llama", "cohere", "gemma2", "mistral", "llama4_text", "gpt2", "mamba"]


def popularity(trie: Trie) -> list[PriorSource]:
    masses = edge_masses(trie, np.arange(1.0, trie.num_titles + 1))
    none = np.zeros(0, np.int64)

    def said(histories: Histories) -> Prior:
        return Prior(masses, np.ones(len(histories.users)), none, np.zeros(0))

    return [said]


def scorer_of(
    model: Any,
    *,
    template: str = SEQUENCE,
    priors: Any = lambda trie: [],
    tokens: int = 4096,
    scale: float = 1.0,
) -> CatalogueScorer:
    """Return a scorer whose adapter is no zero."""
    tokenizer = make_tokenizer()
    model = model.requires_grad_(False)
    backbone = Backbone(model, tokenizer, "tiny", "0" * 64, **find_abilities(model, "tiny")._asdict())
    policy = Policy(backbone, LoraShape(2, 4.0, 0.0, ("all-linear",), 0), 0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.trainable():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    collator = Collator(tokenizer, Templates([template]), max_length=256, max_history=4)
    mixtures = {
        "policy": Mixture(scale, [0.5] if priors is popularity else []),
        "backbone": Mixture(1.0, [0.0]),
    }
    return CatalogueScorer(
        policy, collator, TITLES, priors=priors, mixtures=mixtures, budget=TokenBudget(tokens)
    )


def by_oracle(scorer: CatalogueScorer, row: PromptRow, prior: float = 0.0) -> list[float]:
    """Return each distinct title's log-probability, from a sequence of its own for every prefix."""
    model = scorer.policy.peft
    collator = scorer.collator
    (prompt,) = scorer.prompts([row])
    sequences = [tuple(collator.title_ids(title)) for title in DISTINCT]
    known: dict[oracle.Prefix, list[float]] = {}

    def logit(node: oracle.Prefix, token: int) -> float:
        if node not in known:
            with torch.no_grad():
                output = model(input_ids=torch.tensor([[*prompt, *node]]), use_cache=False)
            known[node] = output.logits[0, -1].double().tolist()
        return known[node][token]

    p0 = {"popularity": [float(number) for number in range(1, len(DISTINCT) + 1)]}
    scale = scorer.mixtures["policy"].scale.item()
    return [
        oracle.logp(sequences, title, logit, scale=scale, priors=p0, weights={"popularity": prior})
        for title in sequences
    ]


def made(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    return build(architecture).to(dtype).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("template", [SEQUENCE, LISTED])
def test_all_titles_as_by_the_oracle(architecture: str, template: str) -> None:
    scorer = scorer_of(made(architecture), template=template)
    found = scorer.all_in_voices(ROWS, ["policy"])["policy"]
    for row, logps in zip(ROWS, found.tolist(), strict=True):
        assert logps == pytest.approx(by_oracle(scorer, row), abs=ROUNDED.get(architecture, 1e-9))
    assert found.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_float32(architecture: str) -> None:
    found, wide = (
        scorer_of(made(architecture, dtype), priors=popularity).all_in_voices(ROWS, ["policy"])["policy"]
        for dtype in (torch.float32, torch.float64)
    )
    assert found.dtype == torch.float32
    assert found.double().numpy() == pytest.approx(wide.numpy(), abs=1e-4)
    assert found.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_some_titles_and_their_gradients_are_those_of_all(architecture: str) -> None:
    """Chosen titles, in any order and number, against the same numbers picked from a pass over all."""
    scorer = scorer_of(made(architecture), priors=popularity, scale=0.7)
    titles = np.array([[4, 0, 1], [9, -1, -1], [3, 5, -1]])
    parameters = [*scorer.policy.trainable(), *scorer.mixtures["policy"].parameters()]

    def gradient(logps: Tensor) -> list[Tensor]:
        weights = torch.tensor([[1.0, -0.5, 2.0], [1.5, 0.0, 0.0], [0.3, -1.0, 0.0]], dtype=torch.float64)
        return list(torch.autograd.grad((logps * weights).sum(), parameters))

    some = scorer.logps(scorer.of_rows(ROWS, titles))
    whole = [scorer.of_rows([row], np.arange(len(DISTINCT))[None]) for row in ROWS]
    every = torch.stack([scorer.logps(asked)[0] for asked in whole]).gather(
        1, torch.from_numpy(titles).clamp(min=0)
    )
    present = torch.from_numpy(titles >= 0)
    assert some[present].tolist() == pytest.approx(
        every[present].tolist(), abs=ROUNDED.get(architecture, 1e-9)
    )
    assert some[~present].tolist() == [0.0] * 3
    for ours, theirs in zip(gradient(some), gradient(every), strict=True):
        assert ours.double().numpy() == pytest.approx(
            theirs.double().numpy(), abs=ROUNDED.get(architecture, 1e-6)
        )
    voiced = scorer.in_voices(ROWS, titles, ["policy"])["policy"]
    assert voiced[present].tolist() == pytest.approx(
        some[present].tolist(), abs=ROUNDED.get(architecture, 1e-9)
    )
    assert torch.isinf(voiced[~present]).all()


def test_with_a_prior_as_by_the_oracle() -> None:
    scorer = scorer_of(make_model(torch.float64), priors=popularity, scale=0.7)
    found = scorer.all_in_voices(ROWS, ["policy"])["policy"]
    for row, logps in zip(ROWS, found.tolist(), strict=True):
        assert logps == pytest.approx(by_oracle(scorer, row, prior=0.5), abs=1e-7)


def test_a_prior_alone_is_that_prior() -> None:
    """With s = 0 and a = 1 a title's share is its number over 1 + 2 + ... + 10 = 55."""
    scorer = scorer_of(make_model(torch.float64), priors=popularity, scale=0.0)
    with torch.no_grad():
        scorer.mixtures["policy"].weights.fill_(1.0)
    found = scorer.all_in_voices(ROWS[:1], ["policy"])["policy"]
    assert found.exp().tolist() == [pytest.approx([number / 55 for number in range(1, 11)], abs=1e-12)]


@pytest.mark.parametrize("tokens", [1, 20, 27])
def test_chunks_are_one_pass(tokens: int) -> None:
    """A budget below the nodes behind a prompt takes several passes on the prompt's keys and values."""
    whole, parts = (
        scorer_of(make_model(torch.float64), priors=popularity, tokens=budget) for budget in (4096, tokens)
    )
    assert len(whole.whole.nodes.node) > 15
    expected = whole.all_in_voices(ROWS, ["policy", "backbone"])
    found = parts.all_in_voices(ROWS, ["policy", "backbone"])
    for voice, logps in expected.items():
        assert found[voice].numpy() == pytest.approx(logps.numpy(), abs=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("at_once", [1, 3])
def test_searches_find_what_the_whole_pass_finds(architecture: str, at_once: int) -> None:
    scorer = scorer_of(made(architecture), priors=popularity)
    search = CatalogueSearch(scorer)
    every = scorer.all_in_voices(ROWS, ["policy"])["policy"]
    for row, logps in zip(ROWS, every, strict=True):
        order = logps.argsort(descending=True).tolist()
        left_out = {order[0], order[3]}
        found = search.top(row, 4, left_out=left_out, at_once=at_once)
        assert found.titles.tolist() == [title for title in order if title not in left_out][:4]
        assert found.logps.tolist() == pytest.approx(
            logps[found.titles].tolist(), abs=ROUNDED.get(architecture, 1e-9)
        )
        for place in (1, 6, len(order) - 1):
            ranked = search.rank(row, order[place], left_out=left_out - {order[place]}, at_once=at_once)
            assert ranked.rank == place + 1 - sum(order.index(title) < place for title in left_out)


def test_no_token_passes_the_model_twice() -> None:
    """A ranking forwards the prompt and the nodes visited; one of all titles the prompt and every node."""
    scorer = scorer_of(make_model())
    decoder = scorer.policy.peft.get_base_model().get_decoder()
    seen: list[int] = []
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    (prompt,) = scorer.prompts(ROWS[:1])
    found = CatalogueSearch(scorer).top(ROWS[0], 2, at_once=1)
    assert sum(seen) == len(prompt) + found.nodes < len(prompt) + len(scorer.trie.forward_nodes())
    seen.clear()
    scorer.all_in_voices(ROWS[:1], ["policy"])
    assert seen == [len(prompt) + len(scorer.trie.forward_nodes())]


def test_a_bound_on_nodes_is_never_silent() -> None:
    search = CatalogueSearch(scorer_of(make_model()))
    with pytest.raises(SettingsError, match="max_nodes"):
        search.top(ROWS[0], 5, max_nodes=1)
    assert not search.top(ROWS[0], 5, max_nodes=1, exact=False).exact


def test_the_separator_ends_titles_where_none_holds_it() -> None:
    scorer = scorer_of(make_model())
    (line_break,) = scorer.collator.tokenizer("\n").input_ids
    assert scorer.collator.terminator == line_break
    clash = scorer_of(make_model(), template="Seen:{history:;}")  # one title has a semicolon
    assert clash.collator.terminator == clash.collator.tokenizer.eos_token_id
    (prompt,) = clash.prompts([PromptRow(["X"], [], [])])
    assert prompt == [*clash.collator.tokenizer("Seen: X").input_ids, clash.collator.terminator]


def test_a_prompt_leaves_room_for_any_title() -> None:
    scorer = scorer_of(make_model())
    deepest = int(scorer.trie.depth[scorer.trie.branching].max())
    (prompt,) = scorer.prompts([PromptRow(["x" * 80] * 4, [], [])])
    assert 256 - deepest - 82 < len(prompt) <= 256 - deepest
    with pytest.raises(DataError, match="tokens without any history"):
        scorer_of(make_model(), template=LISTED).prompts([PromptRow([], ["x" * 300], [])])


def test_what_the_untrained_model_thinks_of_all_is_taken_out() -> None:
    """At the very history whose logits are the centre, the language model says nothing at all."""
    scorer = scorer_of(make_model(torch.float64), priors=popularity)
    centre = scorer.mean_logits(ROWS[:1])
    assert centre.shape == (len(scorer.trie.edge_node),)
    mixtures: Any = scorer.mixtures
    mixtures["backbone"] = Mixture(1.0, [1.0], centre)
    found = scorer.all_in_voices(ROWS[:2], ["backbone"])["backbone"].exp()
    assert found[0].tolist() == pytest.approx([number / 55 for number in range(1, 11)], rel=1e-4)
    assert found[1].tolist() != pytest.approx([number / 55 for number in range(1, 11)], rel=1e-2)
