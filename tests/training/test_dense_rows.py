"""Dense rows: every position of a window scores as it would alone, and no user is seen by its own priors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_dynamicpo.dataset.columns import CHAIN, NEGATIVES, REFERENCE_LOGPS, START, STOP, TOKENS
from recbole_dynamicpo.dataset.sampling import row_generator
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.likelihoods.catalogue import FITTED_ROWS, CatalogueLikelihood, title_sequences
from recbole_dynamicpo.likelihoods.losses import lay_out_pairs, lay_out_positives, scored_pairs, sft_losses
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.serving.priors import Priors
from recbole_dynamicpo.title_trie.prior import Histories
from recbole_dynamicpo.tracking.journal import Journal
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.reference import Rows

DENSE = {
    "likelihood": "catalogue", "prompt": "sequence", "positions": "all", "window": 4,
    "catalogue_prior": ["popularity", "transitions", "cooccurrence"], "lm_scale": 0.7, "prior_weight": 0.8,
    "sft_rows": 0, "preference_rows": 0, "max_history": 8,
}  # fmt: skip


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {**toy_settings, **DENSE}


def model_of(settings: dict[str, Any], **more: Any) -> DynamicPO:
    own = {**settings, "dtype": "float64", **more}
    model: DynamicPO = load(PlainConfig("DynamicPO", "toy", [], own)).model
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.policy.trainable():
            if weight.dim() > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    return model


def windows_of(model: DynamicPO, stage: str, epoch: int = 0) -> Interaction:
    plan = next(plan for plan in plan_stages(model.settings) if plan.name == stage)
    parts = [part for step in DenseRows(model, plan).batches(epoch, 0) for part in step]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0].interaction}
    return Interaction(columns)


def spans_of(rows: Interaction) -> list[tuple[int, int, int]]:
    return list(zip(*(rows[name].tolist() for name in (CHAIN, START, STOP)), strict=True))


def alone(model: DynamicPO, rows: Interaction) -> Tensor:
    """Return (P, 1 + K) log-probabilities, each position as a row of its own behind its window's titles."""
    likelihood = model.likelihood
    assert isinstance(likelihood, CatalogueLikelihood)
    chains, scorer, found = model.dataset.chains, likelihood.scorer, []
    for number, (chain, start, stop) in enumerate(
        zip(*(rows[c].tolist() for c in (CHAIN, START, STOP)), strict=True)
    ):
        items = chains.items[chain]
        for position in range(start, stop):
            titles = [items[position]]
            if NEGATIVES in rows.interaction:
                titles += rows[NEGATIVES][number, position - start].tolist()
            numbers = likelihood.numbers[titles]
            row = PromptRow([model.titles[item] for item in items[start:position]], [], [])
            asked = Histories([likelihood.numbers[items[:position]]], np.array([int(chains.users[chain])]))
            scorer.histories = lambda rows, asked=asked: asked  # type: ignore[method-assign]
            found.append(scorer.logps(scorer.of_rows([row], numbers[None]))[0])
    return torch.stack(found)


def sft_of(model: DynamicPO, rows: Interaction) -> torch.Tensor:
    return sft_losses(model.likelihood, lay_out_positives(model.likelihood, rows, model.POS_ITEM_ID))


@pytest.mark.parametrize("stage", ["sft", "preference"])
def test_a_window_scores_as_each_position_alone(stage: str, settings: dict[str, Any]) -> None:
    """Values and gradients; negatives that begin like the title of their position share its tokens."""
    model = model_of(settings)
    rows = windows_of(model, stage)[torch.arange(6)]
    likelihood = model.likelihood
    assert isinstance(likelihood, CatalogueLikelihood)
    asked = likelihood.windows.lay_out(rows)
    dense, present = likelihood.logps(asked), asked.present
    single = alone(model, rows)
    assert dense.shape == single.shape == (int((rows[STOP] - rows[START]).sum()), 1 if stage == "sft" else 5)
    assert dense.detach().numpy() == pytest.approx(single.detach().numpy(), abs=1e-9)
    weights = torch.linspace(-1, 1, dense.numel(), dtype=torch.float64).view(dense.shape)
    parameters = model.policy.trainable()
    ours = torch.autograd.grad((dense * weights).sum(), parameters)
    theirs = torch.autograd.grad((single * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert one.double().numpy() == pytest.approx(other.double().numpy(), rel=1e-5, abs=1e-5)
    assert present[:, 0].all()


def test_any_split_of_windows_gives_the_same_sum(settings: dict[str, Any]) -> None:
    model = model_of(settings)
    rows = windows_of(model, "sft")
    whole = sft_of(model, rows)
    for size in (1, 5):
        parts = [
            sft_of(model, rows[torch.arange(at, min(at + size, len(rows)))])
            for at in range(0, len(rows), size)
        ]
        assert torch.cat(parts).tolist() == pytest.approx(whole.tolist(), abs=1e-9)


def test_every_training_title_once_an_epoch_and_no_other(settings: dict[str, Any]) -> None:
    """Borders move; the last two items of a user are for validation and test."""
    model = model_of(settings)
    borders = []
    for epoch in range(3):
        rows = windows_of(model, "sft", epoch)
        spans = spans_of(rows)
        covered = sorted((chain, at) for chain, start, stop in spans for at in range(start, stop))
        assert covered == [
            (c, at) for c, items in enumerate(model.dataset.chains.items) for at in range(len(items))
        ]
        assert max(stop - start for _, start, stop in spans) <= 4
        borders.append(sorted(spans))
    assert borders[0] != borders[1]
    assert [len(items) for items in model.dataset.chains.items] == [6] * 12


@pytest.mark.parametrize("source", ["uniform", "prior"])
def test_negatives_are_no_titles_of_the_user(source: str, settings: dict[str, Any]) -> None:
    model = model_of(settings, negatives=source, hard_pool=12)
    rows, dataset = windows_of(model, "preference"), model.dataset
    again = windows_of(model, "preference")
    assert (rows[NEGATIVES] == again[NEGATIVES]).all()
    other = windows_of(model, "preference", epoch=1)
    known: dict[tuple[int, int], list[int]] = {}
    for part in (rows, other):
        for number, (chain, start, stop) in enumerate(
            zip(*(part[c].tolist() for c in (CHAIN, START, STOP)), strict=True)
        ):
            taken = set(dataset.taken(int(dataset.chains.users[chain])).tolist())
            for at in range(start, stop):
                drawn = [item for item in part[NEGATIVES][number, at - start].tolist() if item]
                assert len(drawn) == len(set(drawn))
                assert not taken & set(drawn)
                if source == "uniform":
                    assert len(drawn) == 4
                known.setdefault((chain, at), []).append(drawn)
    assert any(first != second for first, second in known.values())


def ranked(model: DynamicPO, chain: int, at: int) -> list[int]:
    """Return a position's items by the policy's scores, each title scored by itself, the user's left out."""
    likelihood, dataset = model.likelihood, model.dataset
    assert isinstance(likelihood, CatalogueLikelihood)
    items, user = dataset.chains.items[chain][:at], int(dataset.chains.users[chain])
    row = PromptRow([model.titles[item] for item in items], [], [])
    asked = Histories([likelihood.numbers[items]], np.array([user]))
    scorer = likelihood.scorer
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(scorer, "histories", lambda rows: asked)
        scores = {
            item: scorer.logps(scorer.of_rows([row], likelihood.numbers[[[item]]])).item()
            for item in range(1, dataset.item_num)
        }
    taken = {model.titles[item] for item in dataset.taken(user)}
    left = [item for item in scores if model.titles[item] not in taken]
    return sorted(left, key=lambda item: -scores[item])


@pytest.mark.parametrize("source", ["moving", "own"])
def test_negatives_by_the_policys_scores(source: str, settings: dict[str, Any]) -> None:
    """Own: the K best, in order. Moving: K of the best ``hard_pool``, drawn anew each epoch."""
    model = model_of(settings, negatives=source, hard_pool=7)
    stage = DenseRows(model, plan_stages(model.settings)[1])
    draws, drawn = torch.get_rng_state(), []
    for epoch in (0, 1):
        assert stage.redraw(epoch, lambda: False)
        rows = stage._rows(epoch)[0]
        found = {
            (chain, at): rows[NEGATIVES][number, at - start].tolist()
            for number, (chain, start, stop) in enumerate(spans_of(rows))
            for at in range(start, stop)
        }
        for chain, at in [(0, 0), (0, 3), (5, 5), (11, 1)]:
            best = ranked(model, chain, at)
            if source == "own":
                assert found[chain, at] == best[:4]
            else:
                assert len(set(found[chain, at])) == 4
                assert set(found[chain, at]) <= set(best[:7])
        assert len(found) == stage.count
        drawn.append(found)
    assert (drawn[0] == drawn[1]) == (source == "own")  # the policy is as it was
    assert torch.equal(torch.get_rng_state(), draws)


def test_the_pool_moves_with_the_policy(settings: dict[str, Any]) -> None:
    """Anew each epoch by the policy as it is; ``redraw: never``: as it was when the stage began."""
    for redraw in ("epoch", "never"):
        model = model_of(settings, negatives="own", redraw=redraw)
        model.policy.freeze_reference()
        stage = DenseRows(model, plan_stages(model.settings)[1])
        before = ranked(model, 3, 4)[:4]
        with torch.no_grad():
            for weight in model.policy.trainable():
                weight.mul_(-1.0)
        after = ranked(model, 3, 4)[:4]
        assert after != before
        assert stage.redraw(1, lambda: False)
        rows = stage._rows(1)[0]
        ((number, start),) = [
            (number, start)
            for number, (chain, start, stop) in enumerate(spans_of(rows))
            if chain == 3 and start <= 4 < stop
        ]
        assert rows[NEGATIVES][number, 4 - start].tolist() == (after if redraw == "epoch" else before)


def test_what_was_drawn_is_found_again_for_its_epoch_alone(settings: dict[str, Any]) -> None:
    model = model_of(settings, negatives="moving", hard_pool=7)
    plan = plan_stages(model.settings)[1]
    first = DenseRows(model, plan)
    assert first.drawn() == {}
    first.redraw(1, lambda: False)
    wanted = first._rows(1)[0][NEGATIVES]
    with torch.no_grad():
        for weight in model.policy.trainable():
            weight.mul_(-1.0)
    again, anew = DenseRows(model, plan), DenseRows(model, plan)
    again.restore(first.drawn())
    again.redraw(1, lambda: False)
    anew.redraw(1, lambda: False)
    assert torch.equal(again._rows(1)[0][NEGATIVES], wanted)
    assert not torch.equal(anew._rows(1)[0][NEGATIVES], wanted)
    stopped = DenseRows(model, plan)
    assert not stopped.redraw(0, lambda: True)
    assert stopped.drawn() == {}


def test_negatives_that_are_never_redrawn_stay_where_borders_move(settings: dict[str, Any]) -> None:
    model = model_of(settings, redraw="never")
    found: list[dict[tuple[int, int], list[int]]] = []
    for epoch in range(2):
        part, known = windows_of(model, "preference", epoch), {}
        for number, (chain, start, stop) in enumerate(
            zip(*(part[c].tolist() for c in (CHAIN, START, STOP)), strict=True)
        ):
            known.update(
                {(chain, at): part[NEGATIVES][number, at - start].tolist() for at in range(start, stop)}
            )
        found.append(known)
    assert found[0] == found[1]


def test_priors_are_made_without_the_user_who_is_asked_about(settings: dict[str, Any]) -> None:
    """As if the model had been counted anew from everybody else."""
    model = model_of(settings)
    likelihood = model.likelihood
    assert isinstance(likelihood, CatalogueLikelihood)
    trie, data = likelihood.scorer.trie, title_sequences(model.dataset)
    for user, taken in list(data.of_user.items())[:4]:
        others = type(data)(data.items, {u: s for u, s in data.of_user.items() if u != user})
        histories = [taken[:at] - 1 for at in (0, 1, 4)]
        asked = Histories(histories, np.full(3, user))
        unasked = Histories(histories, np.full(3, -1))
        anew = Priors.count(model.settings.catalogue_prior, others)(trie)
        place = (np.arange(3)[:, None], trie.title_edge[None])
        for ours, theirs in zip(likelihood.scorer.priors, anew, strict=True):
            found, wanted = ours(asked).masses(*place), theirs(unasked).masses(*place)
            assert found / found.sum(axis=1, keepdims=True) == pytest.approx(
                wanted / wanted.sum(axis=1, keepdims=True), rel=1e-12
            )


@pytest.mark.parametrize(("phase", "from_the_end"), [("test", 1), ("valid", 2)])
def test_a_held_out_item_changes_nothing_before_evaluation(
    phase: str, from_the_end: int, settings: dict[str, Any]
) -> None:
    """Another item held out of a user: windows, negatives, priors and losses stay as they were.

    So do scalars and adapters where it is a test item; what ranks validation rows best is kept of a stage.
    """
    home = Path(settings["data_path"]) / "toy" / "toy.inter"
    found = []
    for turn in range(2):
        own = {**settings, "checkpoint_dir": str(home.parent / f"saved{turn}"), "negatives": "prior"}
        if turn:
            head, *lines = home.read_text().splitlines()
            cells = [line.split("\t") for line in lines]
            theirs = sorted((cell for cell in cells if cell[0] == "u3"), key=lambda cell: float(cell[2]))
            mine = {cell[1] for cell in theirs}
            theirs[-from_the_end][1] = next(f"i{n}" for n in range(1, 41) if f"i{n}" not in mine)
            home.write_text("\n".join([head, *("\t".join(cell) for cell in cells)]) + "\n")
        run("DynamicPO", "toy", overrides=own)
        (folder,) = Path(own["checkpoint_dir"]).iterdir()
        kept = ["priors.safetensors"]
        kept += ["adapter_model.safetensors", "scalars.json"] if phase == "test" else []
        entries = Journal(folder / "metrics.jsonl").entries()
        losses = [entry["loss"] for entry in entries if entry["kind"] == "train"]
        found.append([losses, *((folder / "preference" / name).read_bytes() for name in kept)])
        ranks = read_ranks(folder).ranks.tolist()
    assert found[0] == found[1]
    assert len(losses) > 5
    assert len(ranks) == 12


def test_a_reference_gap_is_nothing_at_the_first_step(settings: dict[str, Any]) -> None:
    model = model_of(settings)
    model.policy.freeze_reference()
    model.stage = "preference"
    plan = plan_stages(model.settings)[1]
    rows = DenseRows(model, plan)
    rows.add_reference(0, lambda wanted: wanted.score(wanted.rows))
    (batch,) = next(rows.batches(0, 0))
    titles = model.dataset.title_numbers
    laid_out = lay_out_pairs(model.likelihood, batch, titles, model.extras, asks=True)
    ours, reference, present, extras, terms = scored_pairs(model.likelihood, laid_out)
    assert reference is not None
    assert present.any()
    assert extras == {}
    assert (terms == 1).all()
    assert ours.detach().numpy() == pytest.approx(reference.numpy(), abs=1e-9)
    assert (batch[TOKENS] > 0).all()


def test_the_reference_is_asked_once_for_all_numbers_of_negatives(settings: dict[str, Any]) -> None:
    """Its scores of two negatives are the first of those of four, and found by the same keys."""
    found, keys = [], []
    for count in (4, 2):
        model = model_of(settings, num_negatives=count, reference_negatives=4, negatives="uniform")
        model.policy.freeze_reference()
        rows = DenseRows(model, plan_stages(model.settings)[1])

        def kept(wanted: Rows) -> Tensor:
            keys.append(wanted.keys)
            return wanted.score(wanted.rows)

        rows.add_reference(0, kept)
        kept_rows = rows._rows(0)[0]
        assert kept_rows[NEGATIVES].shape[2] == count
        found.append(kept_rows[REFERENCE_LOGPS].view(len(kept_rows), -1, 1 + count))
    assert keys[0] == keys[1]
    assert torch.equal(found[0][:, :, :3], found[1])
    assert (found[1] != 0).any()


def test_language_model_and_priors_get_the_weights_that_fit_best(settings: dict[str, Any]) -> None:
    """After SFT, from whatever they were; no others near them are more likely on the windows fitted to."""
    model = model_of(settings)
    plan = plan_stages(model.settings)[0]
    rows, likelihood = DenseRows(model, plan), model.likelihood
    assert isinstance(likelihood, CatalogueLikelihood)
    mixture = likelihood.voices["policy"]
    draws = torch.get_rng_state()
    rows.settle()
    found = [mixture.scale.item(), *mixture.weights.tolist()]
    with torch.no_grad():
        mixture.scale.fill_(2.0)
        mixture.weights.fill_(0.1)
    rows.settle()
    assert [mixture.scale.item(), *mixture.weights.tolist()] == pytest.approx(found, abs=5e-3)
    assert torch.equal(torch.get_rng_state(), draws)
    said = likelihood.windows.said(rows._rows(0)[0])
    kept = [mixture.scale.item(), *mixture.weights.tolist()]
    DenseRows(model, plan_stages(model.settings)[1]).settle()
    assert [mixture.scale.item(), *mixture.weights.tolist()] == kept
    assert sum(part.layout.steps.queries for part in said) == rows.count


def test_without_priors_the_language_model_is_fitted_alone(settings: dict[str, Any]) -> None:
    """No other scale near the one that is found is more likely on the windows fitted to."""
    model = model_of(settings, catalogue_prior=None)
    rows, likelihood = DenseRows(model, plan_stages(model.settings)[0]), model.likelihood
    assert isinstance(likelihood, CatalogueLikelihood)
    mixture = likelihood.voices["policy"]
    assert not len(mixture.weights)
    rows.settle()
    found, losses = mixture.scale.item(), []
    windows = rows._cut(FITTED_ROWS, row_generator(model.settings.seed, 43))[1]
    with torch.no_grad():
        for scale in (0.9 * found, found, 1.1 * found):
            mixture.scale.fill_(scale)
            losses.append(float(sft_of(model, windows).sum()))
    assert min(losses) == losses[1]
