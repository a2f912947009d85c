"""What objectives ask for: by hand from the files, for rows and for windows alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_dynamicpo.dataset.columns import CHAIN, NEGATIVES, START, STOP
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load
from recbole_dynamicpo.likelihoods.catalogue import CatalogueLikelihood
from recbole_dynamicpo.likelihoods.losses import Scored, lay_out_pairs, preference_losses, scored_pairs
from recbole_dynamicpo.objectives.strategies import Objective
from recbole_dynamicpo.training.dense_rows import DenseRows
from recbole_dynamicpo.training.model import DynamicPO
from recbole_dynamicpo.training.plan import plan_stages
from recbole_dynamicpo.training.rows import ListedRows

from ..helpers.made_extras import with_ratings
from ..training.test_dense_rows import DENSE


class All(Objective):
    """Needs everything."""

    needs_reference = False
    needs = ("ratings", "times", "lengths")

    def loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        return policy[:, 0]


class Typo(All):
    """Asks for what there is not."""

    needs = ("rating",)


class Unread(All):
    """Reads a setting that there is not."""

    reads = ("betta",)


EVERYTHING = f"{__name__}.All"
DAY = 86_400


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """Ratings from 1 to 5; the n-th title of a user comes n days after the one before."""
    own = with_ratings(toy_settings)
    path = Path(own["data_path"]) / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    cells, place = [line.split("\t") for line in lines], dict[str, int]()
    for cell in sorted(cells, key=lambda cell: float(cell[2])):
        n = place[cell[0]] = place.get(cell[0], -1) + 1
        cell[2] = str(1_700_000_000 + DAY * n * (n + 1) // 2)
    path.write_text("\n".join([head, *map("\t".join, cells)]) + "\n")
    return {**own, "objective": EVERYTHING, "normalize_all": True}  # as RecBole has it for ml-100k


def model_of(settings: dict[str, Any], **more: Any) -> DynamicPO:
    model: DynamicPO = load(PlainConfig("DynamicPO", "toy", [], {**settings, **more})).model
    return model


def rated(model: DynamicPO) -> dict[tuple[str, str], float]:
    """Return the ratings of the file, by user and item."""
    path = Path(model.dataset.config["data_path"]) / "toy.inter"
    cells = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {(user, item): float(rating) for user, item, _, rating in cells}


def scored(model: DynamicPO, rows: Interaction) -> Scored:
    titles = model.dataset.title_numbers
    laid_out = lay_out_pairs(model.likelihood, rows, titles, model.extras, asks=False)
    return scored_pairs(model.likelihood, laid_out)


@pytest.mark.parametrize("likelihood", ["vocabulary", "catalogue"])
def test_rows_with_candidates(likelihood: str, settings: dict[str, Any]) -> None:
    model = model_of(settings, likelihood=likelihood)
    data, known = model.dataset, rated(model)
    batch = next(ListedRows(model, plan_stages(model.settings)[1]).batches(0, 0))[0]
    extras = scored(model, batch).extras
    assert sorted(extras) == ["lengths", "ratings", "times"]
    assert all(values.shape == (4, 5) for values in extras.values())
    users = data.id2token(data.uid_field, batch[data.uid_field].numpy())
    items = data.id2token(data.iid_field, batch[data.iid_field].numpy())
    own = [known[pair] for pair in zip(users, items, strict=True)]
    assert extras["ratings"].tolist() == [[rating, 3.0, 3.0, 3.0, 3.0] for rating in own]
    days = batch[data.item_list_length_field].tolist()  # the n-th title, n days after the one before
    assert extras["times"].tolist() == [[float(n), *[torch.inf] * 4] for n in days]
    chosen = batch["candidate_ids"].gather(1, batch["scored_columns"])
    for row, lengths in zip(chosen.tolist(), extras["lengths"].tolist(), strict=True):
        assert lengths == [terms_of(model, item) for item in row]


def terms_of(model: DynamicPO, item: int) -> int:
    """Return a title's tokens, or at how many places another title of the catalogue goes on otherwise."""
    own = model.collator.title_ids(model.titles[item])
    if not isinstance(model.likelihood, CatalogueLikelihood):
        return len(own)
    others = [model.collator.title_ids(title) for title in model.dataset.catalogue.distinct_titles]
    return sum(
        len({tuple(other[at : at + 1]) for other in others if other[:at] == own[:at]}) > 1
        for at in range(len(own))
    )


def test_windows(settings: dict[str, Any]) -> None:
    model = model_of({**settings, **DENSE}, epochs=1)
    data, known = model.dataset, rated(model)
    (batch,) = next(DenseRows(model, plan_stages(model.settings)[1]).batches(0, 0))
    extras, at = scored(model, batch).extras, 0
    for number, (chain, start, stop) in enumerate(
        zip(*(batch[name].tolist() for name in (CHAIN, START, STOP)), strict=True)
    ):
        user = data.id2token(data.uid_field, int(data.chains.users[chain]))
        for place in range(start, stop):
            item = int(data.chains.items[chain][place])
            rating = known[user, data.id2token(data.iid_field, item)]
            assert extras["ratings"][at].tolist() == [rating, 3.0, 3.0, 3.0, 3.0]
            assert extras["times"][at].tolist() == [float(place), *[torch.inf] * 4]
            shown = [item, *batch[NEGATIVES][number, place - start].tolist()]
            assert extras["lengths"][at].tolist() == [terms_of(model, one) if one else 0 for one in shown]
            at += 1
    assert at == len(extras["ratings"])


@pytest.mark.parametrize("positions", ["last", "all"])
def test_a_column_that_is_not_there(positions: str, toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, **(DENSE if positions == "all" else {}), "objective": "recpo"}
    wanted = r"objective RecPO needs ratings, but the training rows of data set 'toy' have no column 'rating'"
    with pytest.raises(SettingsError, match=wanted):
        model_of(own)
    assert model_of(own, epochs=0).extras.needs == ()  # nobody asks


def test_an_order_without_time(settings: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match="history_order: got shuffled, wanted time, as objective All needs"
    ):
        model_of(settings, history_order="shuffled")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Typo", r"needs 'rating', which there is not \(did you mean 'ratings'\?\)"),
        ("Unread", r"reads the setting 'betta', which there is not \(did you mean 'beta'\?\)"),
    ],
)
def test_what_nobody_supplies(name: str, message: str, toy_settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message):
        model_of(toy_settings, objective=f"{__name__}.{name}")


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_sft_loss_beside_the_objective(positions: str, toy_settings: dict[str, Any]) -> None:
    """A tenth of the loss of the SFT stage on the same positives; diagnostics are the objective's."""
    own = {
        **toy_settings,
        **(DENSE if positions == "all" else {}),
        "objective": "listwise",
        "dtype": "float64",
    }
    found = {}
    for weight in (0.0, 0.1):
        model = model_of(own, sft_weight=weight)
        stage = (DenseRows if positions == "all" else ListedRows)(model, plan_stages(model.settings)[1])
        (batch,) = next(stage.batches(0, 0))
        model.stage = "preference"
        found[weight] = model.row_losses(batch), scored(model, batch), model.diagnostics
    (plain, known, told), (both, _, told_too) = found.values()
    model.stage = "sft"
    sft = model.row_losses(batch)
    assert (both - plain).tolist() == pytest.approx((0.1 * sft).tolist(), rel=1e-9)
    assert sft.tolist() == pytest.approx((-known.logps[:, 0] / known.terms).tolist(), rel=1e-9)
    assert [value.item() for value in told] == [value.item() for value in told_too]
    again = preference_losses(known, model.objective, model.settings).loss
    assert again.tolist() == pytest.approx(both.tolist(), rel=1e-9)
