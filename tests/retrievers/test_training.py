"""RecBole's models on sequences of ours: what they learn is RecBole's, what is kept says the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data import data_preparation

from recbole_dynamicpo.data.counting import Ease, Popularity, Sequences
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.retrievers import training
from recbole_dynamicpo.retrievers.scorers import HistoryEncoder, IntArray, from_bytes, to_bytes
from recbole_dynamicpo.retrievers.training import Asked, Host, problems, train

SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 5, "train_batch_size": 16}


@pytest.fixture
def host(toy_settings: dict[str, Any]) -> Host:
    config = PlainConfig("DynamicPO", "toy", [], toy_settings)
    data = DynamicPODataset(config)
    data_preparation(config, data)
    return Host(config, data)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """RecBole's models after their training, as the module under test saw them."""
    found: list[Any] = []
    encoder, matrix = training.encoder_of, training._matrix
    monkeypatch.setattr(
        training, "encoder_of", lambda model, *more: found.append(model) or encoder(model, *more)
    )
    monkeypatch.setattr(training, "_matrix", lambda model, *more: found.append(model) or matrix(model, *more))
    return found


def sequences_of(host: Host) -> dict[int, IntArray]:
    chains = host.data.chains
    return dict(zip(chains.users.tolist(), chains.items, strict=True))


def asked(model: str, **settings: Any) -> Asked:
    return Asked(model, 2, 5, settings)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("SASRec", SMALL, id="SASRec"),
        pytest.param("SASRec", {**SMALL, "loss_type": "BPR"}, id="SASRec by pairs"),
        pytest.param("GRU4Rec", {"embedding_size": 8, "hidden_size": 8}, id="GRU4Rec"),
        pytest.param("NARM", {"embedding_size": 8}, id="NARM", marks=pytest.mark.long),
        pytest.param("LightSANs", {**SMALL, "k_interests": 2}, id="LightSANs", marks=pytest.mark.long),
        pytest.param("STAMP", {"embedding_size": 8}, id="STAMP", marks=pytest.mark.long),
    ],
)
def test_what_is_kept_of_a_sequential_model_scores_as_recbole_does(
    model: str, settings: dict[str, Any], host: Host, trained: list[Any]
) -> None:
    made = train(asked(model, **settings), sequences_of(host), host)
    made, _ = from_bytes(to_bytes(made, {}), host.data.item_num, model)
    theirs = trained[-1].eval()
    assert isinstance(made, HistoryEncoder)
    length = settings.get("MAX_ITEM_LIST_LENGTH", 50)
    assert made.length == length
    histories = [np.array([1, 2, 3]), np.array([4]), np.arange(1, 9), np.array([9, 9])]
    table = torch.zeros(4, length, dtype=torch.int64)
    for row, history in enumerate(histories):
        table[row, : len(history[-length:])] = torch.from_numpy(history[-length:])
    rows = {"item_id_list": table, "item_length": (table > 0).sum(dim=1)}
    with torch.no_grad():
        wanted = theirs.full_sort_predict(rows).view(4, -1)
    assert torch.allclose(made.scores(histories), wanted, rtol=1e-5, atol=1e-6)


def test_the_rows_are_all_places_behind_a_first_item(host: Host) -> None:
    rows = training._rows({3: np.array([5, 6, 7, 8]), 4: np.array([9])}, host.data, 2)
    assert rows["user_id"].tolist() == [3, 3, 3]
    assert rows["item_id"].tolist() == [6, 7, 8]
    assert rows["item_id_list"].tolist() == [[5, 0], [5, 6], [6, 7]]
    assert rows["item_length"].tolist() == [1, 2, 2]


@pytest.mark.parametrize(("model", "settings"), [("EASE", {}), ("ItemKNN", {"k": 3}), ("Pop", {})])
def test_what_is_kept_of_an_item_item_model_scores_as_it_did(
    model: str, settings: dict[str, Any], host: Host
) -> None:
    made = train(asked(model, **settings), sequences_of(host), host)
    again, _ = from_bytes(to_bytes(made, {}), host.data.item_num, model)
    histories = [np.array([1, 2, 3]), np.array([7])]
    assert torch.equal(again.scores(histories), made.scores(histories))
    assert made.scores(histories).any()


def test_ease_is_the_closed_form(host: Host) -> None:
    """Ours of the counting models, of the same users and another ridge."""
    taken = sequences_of(host)
    made = train(asked("EASE", reg_weight=100.0), taken, host)
    ours = Ease(Sequences(host.data.item_num, taken), ridge=100.0)
    histories = [np.array([1, 2, 3]), np.array([7]), np.array([7, 7])]
    wanted = np.stack([ours.weights[np.unique(history)].sum(axis=0) for history in histories])
    assert made.scores(histories).numpy() == pytest.approx(wanted, abs=1e-6)


def test_item_knn_adds_the_cosines_of_the_nearest_items(host: Host) -> None:
    taken = {1: np.array([1, 2, 3]), 2: np.array([1, 2]), 3: np.array([2, 4])}
    made = train(asked("ItemKNN", k=3), taken, host)
    found = made.scores([np.array([1])])[0, :5].tolist()
    assert found == pytest.approx([0, 0, 2 / 6**0.5, 1 / 2**0.5, 0], abs=1e-5)
    both = made.scores([np.array([1, 4])])[0, 2].item()
    assert both == pytest.approx(2 / 6**0.5 + 1 / 3**0.5, abs=1e-5)


def test_pop_counts_what_was_chosen(host: Host) -> None:
    taken = {1: np.array([1, 2, 3]), 2: np.array([1, 2]), 3: np.array([2, 3])}
    found = train(asked("Pop"), taken, host).scores([np.array([4]), np.array([], dtype=np.int64)])
    assert found[:, :5].tolist() == [[0, 0, 1.0, 1.0, 0]] * 2  # as RecBole: not those that begin a sequence
    assert Popularity(Sequences(5, taken)).counts.tolist() == [0, 2, 3, 2, 0]


def test_a_user_left_out_leaves_no_trace(host: Host) -> None:
    """What a user did changes nothing of the matrix of others."""
    taken = sequences_of(host)
    user = next(iter(taken))
    others = {key: items for key, items in taken.items() if key != user}
    found = [train(asked("EASE"), others, host).parts()[0]["weights"] for _ in range(2)]
    whole = train(asked("EASE"), taken, host).parts()[0]["weights"]
    assert torch.equal(*found)
    assert not torch.equal(whole, found[0])


def test_training_draws_from_nobody_elses_generators_and_by_the_seed(host: Host) -> None:
    def draws() -> Iterator[float]:
        yield from (random.random(), float(np.random.rand()), torch.rand(1).item())

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = list(draws())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    made = [to_bytes(train(asked("SASRec", **SMALL), sequences_of(host), host), {}) for _ in range(1)]
    assert list(draws()) == wanted
    made.append(to_bytes(train(asked("SASRec", **SMALL), sequences_of(host), host), {}))
    assert made[0] == made[1]
    for other in (Asked("SASRec", 2, 6, SMALL), Asked("SASRec", 3, 5, SMALL)):
        assert to_bytes(train(other, sequences_of(host), host), {}) != made[0]


@pytest.mark.parametrize(
    ("model", "complaint"),
    [("BPR", "recbole:BPR, which scores users by their ids"),
     ("LightGCN", "recbole:LightGCN, which scores users by their ids"),
     ("DynamicPO", "recbole:DynamicPO, which is no model of RecBole's"),
     ("sasrec", "recbole:sasrec, which is no model of RecBole's"),
     ("SASRek", "recbole:SASRek, which is no model of RecBole's"),
     ("MultiVAE", "recbole:MultiVAE, which scores users by their ids")],
)  # fmt: skip
def test_models_that_cannot_be_cross_fitted_are_named_with_those_that_can(model: str, complaint: str) -> None:
    (found,) = problems([model], {})
    assert complaint in found
    assert "such as SASRec or GRU4Rec, or EASE, ItemKNN or Pop" in found


def test_settings_belong_to_a_model_that_is_named() -> None:
    assert problems(["SASRec", "EASE"], {"reg_weight": 1.0, "n_layers": 1, "learning_rate": 0.1}) == []
    assert problems(["SASRec"], {"hiden_size": 1}) == [
        "retriever_settings: hiden_size: unknown to SASRec (did you mean 'hidden_size'?)"
    ]
    (found,) = problems(["EASE"], {"epochs": 3})
    assert "epochs: unknown to EASE" in found


@pytest.mark.parametrize(
    ("model", "settings", "complaint"),
    [("FPMC", {}, "FPMC needs 'user_id' beside a history; wanted a sequential model"),
     ("Caser", {}, "Caser needs 'user_id' beside a history"),
     ("HGN", {}, "HGN needs 'user_id' beside a history"),
     ("SRGNN", {}, "recbole:SRGNN cannot be traced"),
     ("SASRec", {"hidden_size": "wide"}, "RecBole cannot train it with these settings and data"),
     ("SASRec", {"loss_type": "L2"}, "RecBole cannot train it with these settings and data"),
     ("ItemKNN", {"k": 2, "knn_method": "user"}, "knn_method: got user, wanted item")],
)  # fmt: skip
def test_what_cannot_be_trained_or_kept_is_said(
    model: str, settings: dict[str, Any], complaint: str, host: Host
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        train(asked(model, **settings), sequences_of(host), host)


def test_nothing_to_train_on_is_said(host: Host) -> None:
    with pytest.raises(SettingsError, match="RecBole cannot train it"):
        train(asked("SASRec", **SMALL), {1: np.array([2])}, host)


def test_a_run_refuses_before_it_loads_anything(toy_settings: dict[str, Any]) -> None:
    own = {"likelihood": "catalogue", "prompt": "sequence", "catalogue_prior": ["recbole:BPR"]}
    with pytest.raises(SettingsError, match="scores users by their ids"):
        PlainConfig("DynamicPO", "toy", [], {**toy_settings, **own})
    for name in ("recbole:", "recbole:os.system", "SASRec", "recbole:../x"):
        with pytest.raises(SettingsError, match="recbole:<model of RecBole's>"):
            PlainConfig("DynamicPO", "toy", [], {**toy_settings, **own, "catalogue_prior": [name]})
