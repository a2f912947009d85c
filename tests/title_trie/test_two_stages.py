"""Two stages: the priors' choice by hand, scores that are the exact ones, and all titles chosen as in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_dynamicpo.title_trie.catalogue_scorer import CatalogueScorer
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.two_stages import first_stage, in_two_stages, prior_logps

from .test_catalogue_scorer import DISTINCT, ROWS, made, popularity, scorer_of

NOBODY = torch.zeros(len(ROWS), len(DISTINCT), dtype=torch.bool)


@pytest.fixture
def scorer() -> CatalogueScorer:
    """Popularity rises with the title's number, and has half the weight."""
    return scorer_of(made("llama"), priors=popularity, scale=0.7)


def test_the_priors_alone_sum_to_one_and_leave_the_language_model_out(scorer: CatalogueScorer) -> None:
    found = prior_logps(scorer, ROWS, scorer.whole)
    assert found.shape == (3, 10)
    assert found.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3)
    # A title of its own at the root has the root of its share there; that of Heat and Heat 2 is one node's.
    some = prior_logps(scorer, ROWS[:1], lay_out(scorer.trie, np.array([[6, 2]])))
    assert some[0].tolist() == pytest.approx(found[0, [6, 2]].tolist())


def test_the_first_stage_by_hand(scorer: CatalogueScorer) -> None:
    likeliest = prior_logps(scorer, ROWS, scorer.whole)[0].tolist()
    order = sorted(range(10), key=lambda title: -likeliest[title])
    assert first_stage(scorer, ROWS, 3, NOBODY).tolist() == [order[:3]] * 3
    left_out = NOBODY.clone()
    left_out[1, order[0]] = True
    left_out[2, order[1:]] = True
    found = first_stage(scorer, ROWS, 3, left_out)
    assert found.tolist() == [order[:3], order[1:4], [order[0], -1, -1]]


@pytest.mark.parametrize("count", [10, 25])
def test_all_titles_chosen_are_ranked_as_in_one_stage(count: int, scorer: CatalogueScorer) -> None:
    exact = scorer.all_in_voices(ROWS, ["policy"])["policy"]
    found = in_two_stages(scorer, ROWS, ["policy"], count, NOBODY)["policy"]
    assert found.numpy() == pytest.approx(exact.numpy(), abs=1e-9)


def test_what_is_chosen_has_its_exact_score_and_the_rest_follows_in_the_priors_order(
    scorer: CatalogueScorer,
) -> None:
    exact = scorer.all_in_voices(ROWS, ["policy"])["policy"]
    behind = prior_logps(scorer, ROWS, scorer.whole)
    left_out = NOBODY.clone()
    left_out[2, 4:] = True
    found = in_two_stages(scorer, ROWS, ["policy", "backbone"], 4, left_out)
    assert list(found) == ["policy", "backbone"]
    for row, chosen in enumerate(first_stage(scorer, ROWS, 4, left_out).tolist()):
        rest = [title for title in range(10) if title not in chosen]
        own = found["policy"][row]
        assert own[chosen].tolist() == pytest.approx(exact[row, chosen].tolist(), abs=1e-9)
        assert own[rest].max() < own[chosen].min()
        by_prior = sorted(rest, key=lambda title: -behind[row, title].item())
        assert sorted(rest, key=lambda title: -own[title].item()) == by_prior


def test_nothing_left_to_choose(scorer: CatalogueScorer) -> None:
    left_out = NOBODY.clone()
    left_out[0] = True
    found = in_two_stages(scorer, ROWS, ["policy"], 2, left_out)["policy"]
    assert found.isfinite().all()
