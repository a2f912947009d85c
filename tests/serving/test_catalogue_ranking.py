"""A saved recommender of catalogue likelihood ranks everything, and says over what its scores sum to 1."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import AdapterError, BackboneError, DataError
from recbole_dynamicpo.language_model.backbone import quantized_fingerprint
from recbole_dynamicpo.serving import catalogue_ranking
from recbole_dynamicpo.serving.recommender import Recommender
from recbole_dynamicpo.serving.requests import answer, answer_rows

from ..helpers.saved_recommender import POPULARITY, TITLES, write_recommender

DISTINCT = ["Bear", "Canyon", "Amber", "Delta", "Ember", "Forest"]


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recommender(tmp_path_factory.mktemp("kept") / "it", tiny_backbone, priors=["popularity"])


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return load_recommender(folder)


def test_every_distinct_title_has_its_share(recommender: Recommender) -> None:
    assert list(recommender.catalogue.distinct_titles) == DISTINCT
    for history in ([], ["Bear"], ["nobody knows it", "Delta"]):
        found = recommender.catalogue_logps(history)
        assert found.shape == (6,)
        assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)
    assert not np.allclose(recommender.catalogue_logps([]), recommender.catalogue_logps(["Bear"]))


@pytest.mark.parametrize("read_whole", [0, 2_000])
def test_without_candidates_the_catalogue_is_ranked(
    folder: Path, read_whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pass over all of it, or by a search: the same titles with the same scores."""
    monkeypatch.setattr(catalogue_ranking, "READ_WHOLE", read_whole)
    recommender = load_recommender(folder)
    shares = dict(zip(DISTINCT, recommender.catalogue_logps(["Bear"]).tolist(), strict=True))
    order = sorted(DISTINCT, key=lambda title: -shares[title])
    kept = recommender.ranking(["Bear"], k=3, exclude_history=False)
    assert [item.title for item in kept.ranked] == order[:3]
    assert (kept.source, kept.num_candidates, kept.likelihood) == ("catalogue", 6, "catalogue")
    found = recommender.ranking(["Bear"], k=99)
    assert [item.title for item in found.ranked] == [title for title in order if title != "Bear"]
    assert [item.score for item in found.ranked] == pytest.approx(
        [shares[item.title] for item in found.ranked], abs=1e-5
    )
    assert found.num_candidates == 5
    assert next(item.ids for item in found.ranked if item.title == "Amber") == ("3", "5")


def test_candidates_of_the_catalogue_have_their_shares_of_all(recommender: Recommender) -> None:
    shares = dict(zip(DISTINCT, recommender.catalogue_logps(["Bear"]).tolist(), strict=True))
    found = recommender.ranking(["Bear"], ["Forest", "Delta", "Bear"])
    assert {item.title for item in found.ranked} == {"Forest", "Delta", "Bear"}
    assert (found.source, found.likelihood) == ("given", "catalogue")
    for item in found.ranked:
        assert item.score == pytest.approx(shares[item.title], abs=1e-5)


def test_a_foreign_title_sends_the_whole_list_to_the_vocabulary(recommender: Recommender) -> None:
    """A share of the catalogue and a probability of words are no numbers to be compared."""
    found = recommender.ranking(["Bear"], ["Forest", "Nowhere"])
    assert found.likelihood == "vocabulary"
    shares = dict(zip(DISTINCT, recommender.catalogue_logps(["Bear"]).tolist(), strict=True))
    forest = next(item for item in found.ranked if item.title == "Forest")
    assert forest.score < shares["Forest"] - 1


def test_all_of_the_catalogue_in_the_history(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="every title of the catalogue"):
        recommender.rank(list(TITLES))
    assert len(recommender.rank(list(TITLES), exclude_history=False)) == 6


def test_requests_for_the_catalogue(recommender: Recommender) -> None:
    first, second, third = answer(
        recommender,
        [
            {"history": []},
            {"history": ["Bear"], "k": 9, "exclude_history": False},
            {"history": [2], "candidates": ["Bear", "Nowhere"]},
        ],
    )
    assert (first.candidates, first.num_candidates, first.likelihood) == ("catalogue", 6, "catalogue")
    assert sum(math.exp(item.score) for item in second.ranked) == pytest.approx(1.0, abs=1e-5)
    assert (third.candidates, third.likelihood) == ("given", "vocabulary")
    with pytest.raises(DataError, match="exclude_history: got 'no', wanted true or false"):
        answer(recommender, [{"history": [], "exclude_history": "no"}])


def test_each_request_says_how_many_the_priors_choose(recommender: Recommender) -> None:
    asked = [{"history": ["Bear"], "first_stage": count} for count in (2, 0, 3, 2)]
    found = answer(recommender, [*asked, {"history": ["Bear"]}])
    assert [one.num_candidates for one in found] == [2, 5, 3, 2, 5]
    exact = {item.title: item.score for item in found[-1].ranked}
    for one in found:
        assert {item.title: item.score for item in one.ranked} == pytest.approx(
            {item.title: exact[item.title] for item in one.ranked}, abs=1e-5
        )
    # The likeliest by popularity of those outside the history.
    left = sorted(exact, key=lambda title: -sum(POPULARITY[at] for at, t in enumerate(TITLES) if t == title))
    assert {item.title for item in found[0].ranked} == set(left[:2])
    assert found[0] == found[3]
    with pytest.raises(
        DataError, match=r"inputs\[0\]: first_stage: got -1, wanted a whole number of at least"
    ):
        answer(recommender, [{"history": [], "first_stage": -1}])


def test_a_request_counts_as_the_whole_catalogue_whatever_the_priors_choose(recommender: Recommender) -> None:
    """They look at all titles first; and a choice is never more work than everything is."""
    assert answer(recommender, [{"history": [], "first_stage": 10**18}])[0].num_candidates == 6
    rows = pd.DataFrame({"history": [["Bear"]] * 51, "first_stage": [2000] * 51})
    assert [one.num_candidates for one in answer_rows(recommender, rows)] == [5] * 51
    with pytest.raises(DataError, match="inputs: got 10100 titles to rank, wanted at most 10000"):
        answer(recommender, [{"history": [], "first_stage": 1}] * 101)


def test_named_candidates_are_ranked_whole(
    recommender: Recommender, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Also where no prior could choose."""
    without = load_recommender(write_recommender(tmp_path / "without", tiny_backbone))
    for asked in (recommender, without):
        (found,) = answer(asked, [{"history": ["Bear"], "candidates": ["Delta", "Amber"], "first_stage": 1}])
        assert (found.candidates, found.num_candidates) == ("given", 2)


def test_a_card_whose_stages_want_a_prior_is_refused(folder: Path) -> None:
    own = replace(load_recommender(folder).card, first_stage=3, priors=())
    with pytest.raises(DataError, match="first_stage: got 3, but this model has no prior"):
        catalogue_ranking.stage_size(own, None)
    assert catalogue_ranking.stage_size(own, 0) == 0


def test_a_trained_weight_counts(folder: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """With s = 0 and a = 1 what is ranked is the prior: interactions of the title's items, and one half."""
    other = write_recommender(tmp_path / "prior", tiny_backbone, priors=["popularity"])
    (other / "scalars.json").write_text(json.dumps({"scale": 0.0, "weights": [1.0], "centre": []}))
    counts = dict.fromkeys(DISTINCT, 0.5)
    for title, count in zip(TITLES, POPULARITY, strict=True):
        counts[title] += count
    total = sum(counts.values())
    found = np.exp(load_recommender(other).catalogue_logps(["Bear"]))
    assert found.tolist() == pytest.approx([counts[title] / total for title in DISTINCT], rel=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scalars.json", {"scale": 1.0}, "scalars.json: got numbers of the shapes .* wanted"),
        ("scalars.json", {"scale": 1.0, "weights": [math.nan], "centre": []}, "scalars.json"),
        ("scalars.json", {"scale": 1.0, "weights": [1.0], "centre": [0.5]}, "centre has 1 numbers, wanted"),
        ("scalars.json", [], "scalars.json: not readable numbers"),
        ("recommender.json", {"priors": ["taste"]}, "priors is"),
        ("recommender.json", {"likelihood": "none"}, "likelihood is 'none', wanted one of vocabulary, cata"),
        ("recommender.json", {"quantization": "int3"}, "quantization is 'int3', wanted nf4 or nothing"),
        ("recommender.json", {"trie_sha256": "e" * 64}, "trie_sha256 is eeeeeeeeeeee"),
    ],
)
def test_damage_is_named(
    file: str, content: object, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = write_recommender(tmp_path / "it", tiny_backbone, priors=["popularity"])
    old = json.loads((folder / file).read_text())
    new = {**old, **content} if file == "recommender.json" and isinstance(content, dict) else content
    (folder / file).write_text(json.dumps(new))
    with pytest.raises(AdapterError, match=message):
        load_recommender(folder)


def test_the_vocabulary_has_no_shares(tiny_backbone: Path, tmp_path: Path) -> None:
    plain = load_recommender(write_recommender(tmp_path / "plain", tiny_backbone))
    with pytest.raises(DataError, match="wanted a model with likelihood catalogue"):
        plain.catalogue_logps(["Bear"])


def test_weights_that_were_cut_in_training_are_cut_again_or_named(
    folder: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """4 bits take CUDA: elsewhere it says so, and only who asks by name gets the whole weights instead."""
    card = json.loads((folder / "recommender.json").read_text())
    cut = write_recommender(tmp_path / "cut", tiny_backbone, priors=["popularity"])
    fingerprint = quantized_fingerprint(card["fingerprint"], "nf4")
    changed = {**card, "quantization": "nf4", "fingerprint": fingerprint}
    (cut / "recommender.json").write_text(json.dumps(changed))
    with pytest.raises(BackboneError, match="load_in_4bit"):
        load_recommender(cut)
    whole = load_recommender(cut, load_in_4bit=False)
    assert whole.rank(["Bear"]) == load_recommender(folder).rank(["Bear"])
    (cut / "recommender.json").write_text(json.dumps({**changed, "fingerprint": card["fingerprint"]}))
    with pytest.raises(AdapterError, match="made for backbone"):
        load_recommender(cut, load_in_4bit=False)


def counts_alone(folder: Path) -> dict[str, float]:
    """Return log p0 by hand: one prior with its weight, in a trie whose titles part at their first letter."""
    (weight,) = json.loads((folder / "scalars.json").read_text())["weights"]
    counts = dict.fromkeys(DISTINCT, 0.5)
    for title, count in zip(TITLES, POPULARITY, strict=True):
        counts[title] += count
    powers = {title: count**weight for title, count in counts.items()}
    return {title: math.log(power / sum(powers.values())) for title, power in powers.items()}


@pytest.mark.parametrize("read_whole", [0, 2_000])
@pytest.mark.parametrize("candidates", [None, ["Forest", "Delta", "Bear"]])
def test_what_the_prior_and_what_the_language_model_say(
    folder: Path, read_whole: int, candidates: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit the score, in the order of before; the prior as by hand."""
    monkeypatch.setattr(catalogue_ranking, "READ_WHOLE", read_whole)
    recommender = load_recommender(folder)
    plain = recommender.rank(["Bear"], candidates, exclude_history=False)
    found = recommender.rank(["Bear"], candidates, exclude_history=False, explain=True)
    assert [replace(item, prior=None, language_model=None) for item in found] == plain
    known = counts_alone(folder)
    for item in found:
        assert item.prior is not None
        assert item.language_model is not None
        assert item.prior + item.language_model == item.score
        assert item.prior == pytest.approx(known[item.title], abs=1e-6)
    assert any(abs(item.language_model or 0) > 0.01 for item in found)
    assert all(item.prior is None for item in plain)


def test_a_silent_language_model_adds_nothing(tiny_backbone: Path, tmp_path: Path) -> None:
    other = write_recommender(tmp_path / "prior", tiny_backbone, priors=["popularity"])
    (other / "scalars.json").write_text(json.dumps({"scale": 0.0, "weights": [1.25], "centre": []}))
    for item in load_recommender(other).rank(["Bear"], explain=True):
        assert item.language_model == pytest.approx(0.0, abs=1e-6)


def test_scores_without_a_prior_are_not_explained(
    recommender: Recommender, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_recommender(tmp_path / "plain", tiny_backbone)
    with pytest.raises(DataError, match=r"explain: wanted .* has likelihood vocabulary, and no prior"):
        load_recommender(plain).rank(["Bear"], explain=True)
    bare = write_recommender(tmp_path / "bare", tiny_backbone, priors=[])
    with pytest.raises(DataError, match=r"explain: wanted .*; this one has no prior"):
        load_recommender(bare).rank(["Bear"], explain=True)
    with pytest.raises(DataError, match="explain: candidate 'Nowhere' is not in the catalogue"):
        recommender.rank(["Bear"], ["Forest", "Nowhere"], explain=True)
    assert main(["rank", "--model", str(plain), "--history", "Bear", "--explain"]) == 2
    assert "no prior" in capsys.readouterr().err


def test_the_command_shows_both_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--model", str(folder), "--history", "Bear", "--explain", "-k", "3"]) == 0
    _, head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["score,", "nats", "=", "prior", "+", "language"]
    for line in lines:
        _, score, prior, rest, *_ = line.split()
        assert float(prior) + float(rest) == pytest.approx(float(score), abs=0.0016)
    assert main(["rank", "--model", str(folder), "--input", "x.csv", "--out", "o", "--explain"]) == 2
    assert "neither --candidates nor --explain" in capsys.readouterr().err
