"""Cross-fitted by users, trained once, never asked about a user it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load, run
from recbole_dynamicpo.language_model.adapter_folder import adapter_digest
from recbole_dynamicpo.likelihoods.catalogue import CatalogueLikelihood
from recbole_dynamicpo.retrievers import fitted, scorers
from recbole_dynamicpo.retrievers.scorers import IntArray
from recbole_dynamicpo.retrievers.training import Asked, Host
from recbole_dynamicpo.serving.priors import RetrieverPrior
from recbole_dynamicpo.serving.recommender import load_recommender
from recbole_dynamicpo.title_trie.prior import Histories
from recbole_dynamicpo.training.model import DynamicPO

from ..helpers.saved_recommender import logps_without_recbole

SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 6, "train_batch_size": 16}
OURS = {
    "likelihood": "catalogue", "prompt": "sequence", "positions": "all", "window": 4, "negatives": "prior",
    "catalogue_prior": ["recbole:SASRec"], "hard_pool": 8, "sft_rows": 0, "preference_rows": 0,
    "max_history": 8, "retriever_epochs": 1, "retriever_settings": SMALL,
}  # fmt: skip


class Memory:
    """Knows the next item of every history that it was trained on, and nothing else; remembers its users."""

    logits = True

    def __init__(self, sequences: Mapping[int, IntArray], items: int) -> None:
        self.items = items
        self.users = sorted(sequences)
        self.table = {
            tuple(taken[:at].tolist()): int(taken[at])
            for taken in sequences.values()
            for at in range(1, len(taken))
        }
        self.asked: list[IntArray] = []

    def scores(self, histories: Sequence[IntArray]) -> Tensor:
        self.asked += histories
        found = torch.zeros(len(histories), self.items)
        for row, history in enumerate(histories):
            if (target := self.table.get(tuple(history.tolist()))) is not None:
                found[row, target] = 20.0
        return found

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = [[list(history), target] for history, target in self.table.items()]
        return {}, {"kind": "memory", "rows": rows, "users": self.users}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Memory:
        found = cls({}, about["items"])
        found.users, found.table = (
            about["users"],
            {tuple(history): target for history, target in about["rows"]},
        )
        return found


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Retrievers that know their training rows by heart; the users of each that was trained."""
    trained: list[list[int]] = []

    def train(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> Memory:
        trained.append(sorted(sequences))
        return Memory(sequences, host.data.item_num)

    monkeypatch.setattr(fitted, "train", train)
    monkeypatch.setitem(scorers._SCORERS, "memory", Memory.of)
    return trained


@pytest.fixture
def settings(toy_settings: dict[str, Any]) -> dict[str, Any]:
    return {**toy_settings, **OURS}


def model_of(settings: dict[str, Any], **more: Any) -> DynamicPO:
    model: DynamicPO = load(PlainConfig("DynamicPO", "toy", [], {**settings, **more})).model
    return model


def prior_of(model: DynamicPO) -> RetrieverPrior:
    assert isinstance(model.likelihood, CatalogueLikelihood)
    prior = model.likelihood.scorer.priors[-1]
    assert isinstance(prior, RetrieverPrior)
    return prior


def training_rows(model: DynamicPO) -> tuple[Histories, IntArray]:
    """Return all places behind a first title, and the titles chosen there."""
    likelihood, chains = model.likelihood, model.dataset.chains
    assert isinstance(likelihood, CatalogueLikelihood)
    taken, users, targets = [], [], []
    for user, items in zip(chains.users.tolist(), chains.items, strict=True):
        numbers = likelihood.numbers[items]
        taken += [numbers[:at] for at in range(1, len(items))]
        users += [user] * (len(items) - 1)
        targets += numbers[1:].tolist()
    return Histories(taken, np.array(users)), np.array(targets)


@pytest.mark.parametrize("folds", [2, 3])
def test_a_training_row_is_never_scored_by_who_has_seen_its_user(
    folds: int, settings: dict[str, Any], memory: list[list[int]]
) -> None:
    """A model that knows its rows by heart knows nothing of those that it is asked about in training."""
    model = model_of(settings, retriever_folds=folds)
    everybody = sorted(model.dataset.chains.users.tolist())
    assert [len(users) for users in memory] == [12 - 12 // folds] * folds + [12]
    assert memory[-1] == everybody
    held_out = [set(everybody) - set(users) for users in memory[:-1]]
    assert sorted(user for users in held_out for user in users) == everybody

    prior, (asked, targets) = prior_of(model), training_rows(model)
    rows = np.arange(len(targets))
    nobody = asked._replace(users=np.full(len(targets), -1))
    known, seen = prior.likelihoods(asked)[rows, targets], prior.likelihoods(nobody)[rows, targets]
    items = model.dataset.item_num - 1
    assert known == pytest.approx(np.full(len(targets), 1 / items))
    # The sharpness was fitted to those who know nothing, so it is asked for by hand.
    assert prior.retriever.sharpness < 1e-9
    sharp = RetrieverPrior(prior.popularity, type(prior.retriever)(prior.retriever.whole))
    # But for the few whose first titles another user began with, too.
    assert (sharp.likelihoods(nobody)[rows, targets] > 0.99).mean() > 0.95
    assert (seen > 0).all()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_every_way_into_training_asks_with_the_user(
    positions: str, settings: dict[str, Any], memory: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted weights, rows, negatives and references of a run; only evaluation asks the whole one."""
    if positions == "last":
        settings = {**settings, "positions": "last", "negatives": "uniform"}
    answered: list[tuple[Any, int, tuple[int, ...]]] = []
    really = fitted.Retriever.scores

    def scores(self: Any, histories: Sequence[IntArray], users: IntArray) -> Any:
        for history, user in zip(histories, users.tolist(), strict=True):
            fold = self.fold_of.get(user, -1)
            scorer = self.whole if fold < 0 else self.folds[fold]
            answered.append((scorer, user, tuple(history.tolist())))
        return really(self, histories, users)

    monkeypatch.setattr(fitted.Retriever, "scores", scores)
    found = run("DynamicPO", "toy", overrides=settings)
    assert found["run_folder"]
    of_users = [(scorer, user) for scorer, user, _ in answered if user >= 0]
    assert len(of_users) > 12 * 5 * 3
    assert all(user not in scorer.users for scorer, user in of_users)
    # Whom nobody is named for are rows of evaluation, longer than any of training.
    longest = max(len(history) for _, user, history in answered if user >= 0)
    assert {len(history) for _, user, history in answered if user < 0} == {longest + 1, longest + 2}


def test_p0_by_hand(settings: dict[str, Any], memory: list[list[int]]) -> None:
    """Nine tenths softmax, one tenth popularity without the user; all by popularity behind nothing."""
    model = model_of(settings)
    prior, data = prior_of(model), model.dataset
    trie, user = prior.popularity.trie, int(data.chains.users[0])
    counts = np.full(trie.num_titles, 0.5)
    for other in data.chains.users.tolist():
        if other != user:
            np.add.at(counts, data.taken(other) - 1, 1.0)  # no title twice in this catalogue
    shares = counts / counts.sum()
    place = (np.arange(2)[:, None], trie.title_edge[None])
    taken = data.chains.items[0][:2] - 1
    found = prior(Histories([taken, taken[:0]], np.array([user, user]))).masses(*place)
    flat = 1 / trie.num_titles
    assert found[0] == pytest.approx(0.9 * flat + 0.1 * shares, rel=1e-9)
    assert found[1] == pytest.approx(shares, rel=1e-9)


def test_items_of_one_title_are_added_up(settings: dict[str, Any], memory: list[list[int]]) -> None:
    first, second = model_of(settings).dataset.catalogue.ids[3:5]
    home = Path(settings["data_path"]) / "toy" / "toy.item"
    head, *lines = home.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    named = {cell[0]: cell for cell in cells}
    named[second][1] = named[first][1]
    home.write_text("\n".join([head, *("\t".join(cell) for cell in cells)]) + "\n")
    model = model_of(settings)
    prior, data = prior_of(model), model.dataset
    titles = data.titles[1:].tolist()
    title = next(title for title in titles if titles.count(title) == 2)
    items = [number for number, name in enumerate(titles, start=1) if name == title]
    assert prior.popularity.trie.num_titles == len(titles) - 1
    found = prior.likelihoods(Histories([np.array([0])], np.array([-1])))[0]
    number = int(prior.popularity.trie.title_of_item[items[0] - 1])
    assert found[number] == pytest.approx(2 * found[number - 1])
    assert found.sum() == pytest.approx(1.0)
    # RecBole's model sees the first item for both.
    assert prior._first[number] == items[0]
    (whole,) = (prior.retriever.whole,)
    assert all(items[1] not in history for history, _ in whole.parts()[1]["rows"])


def test_nothing_that_is_done_is_trained_again(settings: dict[str, Any], memory: list[list[int]]) -> None:
    model_of(settings)
    assert len(memory) == 3
    model_of(settings, learning_rate=0.5, catalogue_prior=["transitions", "recbole:SASRec"])
    assert len(memory) == 3
    model_of(settings, retriever_epochs=2)
    assert len(memory) == 6
    model_of(settings, retriever_folds=3)
    assert len(memory) == 9  # that of all users was there


def test_a_kill_between_two_leaves_what_was_done(
    settings: dict[str, Any], memory: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = prior_of(model_of(settings)).retriever.digest()
    cache = Path(settings["data_path"]).parent / "cache" / "retrievers"
    for path in cache.glob("*"):
        path.unlink()
    really = fitted.train

    def dies(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> Any:
        if len(memory) == 5:
            raise KeyboardInterrupt
        return really(asked, sequences, host)

    monkeypatch.setattr(fitted, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        model_of(settings)
    assert len(list(cache.glob("*.safetensors"))) == 2
    monkeypatch.setattr(fitted, "train", really)
    assert prior_of(model_of(settings)).retriever.digest() == undisturbed
    assert len(memory) == 6


def test_a_damaged_file_is_trained_again(
    settings: dict[str, Any], memory: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    before = prior_of(model_of(settings)).retriever.digest()
    cache = Path(settings["data_path"]).parent / "cache" / "retrievers"
    path = sorted(cache.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-9] + b"         ")
    assert prior_of(model_of(settings)).retriever.digest() == before
    assert len(memory) == 4
    assert f"{path}: not a retriever" in caplog.text


@pytest.mark.parametrize(
    "priors", [["recbole:SASRec"], ["transitions", "recbole:EASE"]], ids=["SASRec", "EASE"]
)
def test_a_run_is_served_without_recbole(priors: list[str], settings: dict[str, Any]) -> None:
    """From its folder alone, to the same numbers; and not with a file that is gone or another."""
    more = {} if "recbole:SASRec" in priors else {"retriever_settings": {}}
    found = run("DynamicPO", "toy", overrides={**settings, "catalogue_prior": priors, **more})
    folder = Path(found["run_folder"]) / "preference"
    recommender = load_recommender(folder)
    titles = list(recommender.catalogue.titles[:3])
    wanted = recommender.catalogue_logps(titles).tolist()
    assert np.exp(wanted).sum() == pytest.approx(1.0)
    assert logps_without_recbole(folder, titles) == pytest.approx(wanted, abs=1e-5)

    path = next(folder.glob("retriever-*.safetensors"))
    content = path.read_bytes()
    other = next((Path(settings["data_path"]).parent / "cache" / "retrievers").glob("*.safetensors"))
    path.write_bytes(other.read_bytes())
    with pytest.raises(AdapterError, match=rf"{path.name}: not the file that recommender\.json was"):
        load_recommender(folder)
    path.unlink()
    with pytest.raises(AdapterError, match=rf"{path.name}: missing; recommender\.json names the prior"):
        load_recommender(folder)
    path.write_bytes(content)
    assert load_recommender(folder).catalogue_logps(titles).tolist() == wanted


def test_the_same_run_twice_gives_the_same_adapter(settings: dict[str, Any]) -> None:
    """The first trains retrievers, the second reads them."""
    folders = [Path(run("DynamicPO", "toy", overrides=settings)["run_folder"]) for _ in range(2)]
    for stage in ("sft", "preference"):
        assert len({adapter_digest(folder / stage) for folder in folders}) == 1
        scalars = {(folder / stage / "scalars.json").read_text() for folder in folders}
        assert len(scalars) == 1
