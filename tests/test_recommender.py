"""Ranking with a saved adapter folder, without RecBole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.errors import AdapterError, BackboneError, DataError
from recbole_dynamicpo.runner import run


@pytest.fixture
def saved(toy_settings: dict[str, Any]) -> Path:
    run("SDPO", "toy", overrides={**toy_settings, "compare_stages": False, "eval_rows": 4})
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    return folder / "preference"


def test_ranks_given_candidates_best_first(saved: Path) -> None:
    recommender = load_recommender(saved)
    titles = recommender.catalogue.titles
    ranked = recommender.rank([titles[0], "a title nobody knows"], [titles[3], titles[4], "Unheard Of"], k=2)
    assert len(ranked) == 2
    assert ranked[0].score >= ranked[1].score
    everything = recommender.rank([titles[0]], [titles[3], titles[4], "Unheard Of"], k=9)
    assert {item.title: item.ids for item in everything}["Unheard Of"] == ()
    assert {item.title: item.ids for item in everything}[titles[3]] == (recommender.catalogue.ids[3],)


def test_without_candidates_the_popular_titles_outside_the_history_are_ranked(saved: Path) -> None:
    recommender = load_recommender(saved)
    favourite = recommender.catalogue.popular(1)[0]
    ranked = recommender.rank([favourite], k=1000)
    assert favourite not in {item.title for item in ranked}
    assert len(ranked) == min(100, len(set(recommender.catalogue.titles)) - 1)


@pytest.mark.parametrize(
    ("history", "candidates", "k", "named"),
    [
        ([], ["a"], 1, "history"),
        (["a"], [], 1, "candidates"),
        (["a"], ["b"], 0, "k: got 0"),
        ([" "], ["b"], 1, "' '"),
    ],
)
def test_bad_requests_are_named(
    saved: Path, history: list[str], candidates: list[str], k: int, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        load_recommender(saved).rank(history, candidates, k)


def test_a_backbone_with_other_weights_is_refused(saved: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    from .conftest import make_model, make_tokenizer

    other = tmp_path / "other"
    make_model(seed=5).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    card = saved / "recommender.json"
    card.write_text(card.read_text().replace(str(tiny_backbone), str(other)))
    with pytest.raises(AdapterError, match="SHA-256"):
        load_recommender(saved)


def test_a_missing_backbone_is_named(saved: Path, tiny_backbone: Path) -> None:
    card = saved / "recommender.json"
    card.write_text(card.read_text().replace(str(tiny_backbone), "nowhere"))
    with pytest.raises(BackboneError, match="'nowhere'"):
        load_recommender(saved)


def test_a_folder_that_is_no_recommender_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"recommender\.json"):
        load_recommender(tmp_path)


def test_ranking_needs_no_recbole(saved: Path) -> None:
    script = (
        "import sys; from recbole_dynamicpo import load_recommender\n"
        f"r = load_recommender({str(saved)!r}); r.rank(['a'], ['b', 'c'])\n"
        "assert 'recbole' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", script],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_scores_do_not_depend_on_the_other_candidates_or_their_number(saved: Path) -> None:
    """Each completion sees the prompt and itself; the prompt shows all candidates, so keep those fixed."""
    from recbole_dynamicpo.batches import PromptRow

    scorer = load_recommender(saved).scorer
    shown = ["amber bear", "delta kite", "ocean"]
    together = scorer([PromptRow(["amber"], shown, shown)])[0]
    alone = [scorer([PromptRow(["amber"], shown, [title])])[0, 0] for title in shown]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
