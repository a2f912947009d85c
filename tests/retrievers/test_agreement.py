"""A checkpoint as a retriever: it says what RecBole's model says, and fits the run or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data import data_preparation
from recbole.utils import get_model

from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import AdapterError, SettingsError
from recbole_dynamicpo.host.baselines import run_baselines
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.job import Job, check
from recbole_dynamicpo.parallel import Processes
from recbole_dynamicpo.pipeline import prepare
from recbole_dynamicpo.retrievers import agreement, fitted
from recbole_dynamicpo.retrievers.agreement import adopt
from recbole_dynamicpo.retrievers.scorers import HistoryEncoder, IntArray, from_bytes, to_bytes
from recbole_dynamicpo.retrievers.training import Asked, Host
from recbole_dynamicpo.serving.recommender import load_recommender
from recbole_dynamicpo.settings import read_settings
from recbole_dynamicpo.training.recording import gather

from ..conftest import write_dataset
from ..helpers.saved_recommender import logps_without_recbole
from ..helpers.stock_checkpoint import OWN, SMALL, StockFile, train_stock, write_ordered
from .test_fitted import OURS, model_of, prior_of

Change = Callable[..., Host]
SAID = Asked("SASRec", 1, 5, {})
IN_FILE_ORDER = {"time_ties": "file"}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> StockFile:
    return train_stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture
def settings(toy_settings: dict[str, Any], stock: StockFile) -> dict[str, Any]:
    """Of a run that the checkpoint fits."""
    shutil.rmtree(toy_settings["data_path"])
    shutil.copytree(stock.data_path, toy_settings["data_path"])
    kept = {"retriever_settings": None, "retriever_checkpoints": {"SASRec": str(stock.path)}}
    return {**toy_settings, **OURS, **IN_FILE_ORDER, **kept}


@pytest.fixture
def host(settings: dict[str, Any]) -> Change:
    def made(**more: Any) -> Host:
        config = PlainConfig("DynamicPO", "toy", [], {**settings, **more})
        data = DynamicPODataset(config)
        data_preparation(config, data)
        return Host(config, data)

    return made


def trained_by(run_of: Host) -> Any:
    """Return what RecBole makes a model of."""
    return run_of.data.built["train"]


def test_its_model_scores_as_recbole_does(host: Change, stock: StockFile) -> None:
    here = host()
    asked, content = adopt(str(stock.path), SAID, here)
    made, _ = from_bytes(content, here.data.item_num, "x")
    assert isinstance(made, HistoryEncoder)
    assert made.length == OWN["MAX_ITEM_LIST_LENGTH"]
    assert (asked.epochs, asked.seed) == (1, 5)
    assert {key: asked.settings[key] for key in OWN} == OWN
    saved = stock.loaded()
    theirs = get_model("SASRec")(saved["config"], trained_by(here)).eval()
    theirs.load_state_dict(saved["state_dict"])
    histories = [np.array([1, 2, 3]), np.array([4]), np.arange(1, 9)]
    table = torch.zeros(3, 6, dtype=torch.int64)
    for row, history in enumerate(histories):
        table[row, : len(history[-6:])] = torch.from_numpy(history[-6:])
    with torch.no_grad():
        wanted = theirs.cpu().full_sort_predict(
            {"item_id_list": table, "item_length": (table > 0).sum(dim=1)}
        )
    assert torch.allclose(made.scores(histories), wanted.view(3, -1), rtol=1e-5, atol=1e-6)


def test_models_of_folds_are_trained_as_ever(
    settings: dict[str, Any], stock: StockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checkpoint's hyper-parameters, without their fold, and none of them is the checkpoint."""
    trained: list[tuple[Asked, list[int]]] = []
    really = fitted.train

    def train(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> Any:
        trained.append((asked, sorted(sequences)))
        return really(asked, sequences, host)

    monkeypatch.setattr(fitted, "train", train)
    model = model_of(settings, retriever_epochs=2)
    retriever = prior_of(model).retriever
    assert len(trained) == len(retriever.folds) == 2
    for fold, (asked, users) in enumerate(trained):
        assert (asked.model, asked.epochs) == ("SASRec", 2)
        assert {key: asked.settings[key] for key in OWN} == OWN
        assert not {user for user, own in retriever.fold_of.items() if own == fold} & {*users}
    everybody = sorted(model.dataset.chains.users.tolist())
    assert sorted(retriever.fold_of) == everybody
    _, content = adopt(str(stock.path), SAID, Host(model.dataset.config, model.dataset))
    assert to_bytes(retriever.whole, {}) == content
    assert all(to_bytes(fold, {}) != content for fold in retriever.folds)


def test_a_run_asks_it_about_no_training_row_and_is_served_without_recbole(
    settings: dict[str, Any], stock: StockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[tuple[bool, int]] = []
    really = fitted.Retriever.scores

    def scores(self: Any, histories: Sequence[IntArray], users: IntArray) -> Any:
        answered.extend((user in self.fold_of, user) for user in users.tolist())
        return really(self, histories, users)

    monkeypatch.setattr(fitted.Retriever, "scores", scores)
    folder = Path(run("DynamicPO", "toy", overrides=settings)["run_folder"])
    assert len([user for _, user in answered if user >= 0]) > 100
    assert all(in_a_fold for in_a_fold, user in answered if user >= 0)
    recommender = load_recommender(folder)
    titles = list(recommender.catalogue.titles[:3])
    wanted = recommender.catalogue_logps(titles).tolist()
    (kept,) = (folder / "preference").glob("retriever-*.safetensors")
    whole, _ = from_bytes(kept.read_bytes(), len(recommender.catalogue.titles) + 1, "x")
    for name, tensor in stock.loaded()["state_dict"].items():
        if name == "item_embedding.weight":
            assert any(torch.equal(tensor, own) for own in whole.parts()[0].values())
    assert logps_without_recbole(folder, titles) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"model": "GRU4Rec"}, "model: got 'GRU4Rec', wanted 'SASRec'"),
        ({"dataset": "ml-1m"}, "dataset: got 'ml-1m', wanted 'toy'"),
        ({"load_col": {"inter": ["user_id", "item_id"]}}, "load_col: got .*, wanted .*timestamp"),
        ({"user_inter_num_interval": "[5,inf)"}, r"user_inter_num_interval: got '\[5,inf\)', wanted '\[0,"),
        ({"item_inter_num_interval": "[5,inf)"}, r"item_inter_num_interval: got '\[5,inf\)', wanted '\[0,"),
        ({"val_interval": {"timestamp": "[9,inf)"}}, "val_interval: got {'timestamp'.*, wanted None"),
        ({"rm_dup_inter": "first"}, "rm_dup_inter: got 'first', wanted None"),
        ({"filter_inter_by_user_or_item": False}, "filter_inter_by_user_or_item: got False, wanted True"),
        ({"benchmark_filename": ["a", "b", "c"]}, "benchmark_filename: got"),
        ({"eval_args": {"split": {"LS": "test_only"}, "order": "TO", "group_by": "user"}},
         r"eval_args: split: got \{'LS': 'test_only'\}, wanted \{'LS': 'valid_and_test'\}$"),
        ({"eval_args": {"split": {"LS": "valid_and_test"}, "order": "RO", "group_by": None}},
         "eval_args: order: got 'RO', wanted 'TO'\n  eval_args: group_by: got 'none', wanted 'user'"),
        ({"eval_args": None}, "eval_args: split: got 'none'"),
        ({"n_layers": 2}, r"trm_encoder\.layer\.1\..*: got none, wanted a tensor of shape"),
        ({"n_heads": 3}, "RecBole cannot make its model"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(
    other: dict[str, Any], complaint: str, host: Change, stock: StockFile, tmp_path: Path
) -> None:
    path = stock.changed(tmp_path / "other.pth", **other)
    wanted = rf"(?m)retriever_checkpoints: {path} does not fit.*:\n  {complaint}"
    with pytest.raises(SettingsError, match=wanted):
        adopt(str(path), SAID, host())


def test_a_hyper_parameter_that_is_missing_is_not_guessed(
    host: Change, stock: StockFile, tmp_path: Path
) -> None:
    saved = stock.loaded()
    del saved["config"].final_config_dict["hidden_act"]
    torch.save(saved, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(SettingsError, match="hidden_act: missing"):
        adopt(str(tmp_path / "x.pth"), SAID, host())


def test_the_file_of_another_model_is_refused(host: Change, tmp_path: Path) -> None:
    other = train_stock(tmp_path, "GRU4Rec", embedding_size=8)
    with pytest.raises(SettingsError, match=r"GRU4Rec-.*\.pth does not fit.*:\n  model: got 'GRU4Rec'"):
        adopt(str(other.path), SAID, host())


def test_another_number_of_items_is_refused(settings: dict[str, Any], host: Change, stock: StockFile) -> None:
    shutil.rmtree(settings["data_path"])
    write_ordered(Path(settings["data_path"]), items=41)
    wanted = r"item_embedding\.weight: got .*\[39, 8\], wanted .*\[40, 8\] \(this run has 39 items\)"
    with pytest.raises(SettingsError, match=wanted):
        adopt(str(stock.path), SAID, host())


def test_what_retriever_settings_say_otherwise_is_refused(host: Change, stock: StockFile) -> None:
    own = SAID._replace(settings={"n_layers": 2, "hidden_size": 8})
    with pytest.raises(SettingsError, match="n_layers: got 1 in the checkpoint and 2 in retriever_settings"):
        adopt(str(stock.path), own, host())
    asked, _ = adopt(str(stock.path), SAID._replace(settings={"hidden_size": 8}), host())
    assert asked.settings["hidden_size"] == 8


def test_a_length_that_the_run_names_has_to_be_the_checkpoints(host: Change, stock: StockFile) -> None:
    with pytest.raises(SettingsError, match="MAX_ITEM_LIST_LENGTH: got 6, wanted 9"):
        adopt(str(stock.path), SAID, host(MAX_ITEM_LIST_LENGTH=9))
    adopt(str(stock.path), SAID, host(MAX_ITEM_LIST_LENGTH=6))


@pytest.mark.parametrize(
    ("own", "shift", "done"),
    [
        ({"time_ties": "hash"}, 1, "trained"),
        ({"time_ties": "hash"}, 0, "validated"),
        ({"history_order": "shuffled"}, 1, "trained"),
        ({"hidden_items": 0.3}, 1, "trained"),
    ],
    ids=["ties", "ties of the last two", "shuffled", "hidden"],
)
def test_a_checkpoint_that_saw_rows_held_out_is_refused(
    own: dict[str, Any], shift: int, done: str, settings: dict[str, Any], host: Change, stock: StockFile
) -> None:
    """RecBole leaves equal times in the file's order; the run's default draws it by a hash."""
    shutil.rmtree(settings["data_path"])
    write_ordered(Path(settings["data_path"]), shift)
    adopt(str(stock.path), SAID, host())
    with pytest.raises(SettingsError, match=f"that it was {done} on are held out by this run") as e:
        adopt(str(stock.path), SAID, host(**own))
    for word in ("time_ties=file", "history_order=time", "hidden_items=0", "recbole-dynamicpo baselines"):
        assert word in str(e.value)


def test_times_that_float32_cannot_tell_apart_are_ties_to_recbole(
    settings: dict[str, Any], host: Change, stock: StockFile
) -> None:
    """Seconds of today are: then a file out of order makes RecBole train on what this run holds out."""
    shutil.rmtree(settings["data_path"])
    write_dataset(Path(settings["data_path"]))
    with pytest.raises(SettingsError, match="trained on are held out by this run, the first of user u"):
        adopt(str(stock.path), SAID, host())


def test_the_rows_are_those_that_recbole_trains_on(host: Change, stock: StockFile) -> None:
    """The run's own training rows, as its data set counts them, are all that the file has seen."""
    here = host()
    assert [*agreement._rows_held_out(SAID, here)] == []
    # And one that the run holds out is found.
    taken = here.data.taken
    here.data.taken = lambda user, phase: taken(user, phase)[user == 3 :]
    (line,) = agreement._rows_held_out(SAID, here)
    assert line.startswith("1 interactions that it was trained on are held out by this run, the first of")


def test_the_command_baselines_trains_on_rows_of_the_run(
    toy_settings: dict[str, Any], settings: dict[str, Any], host: Change
) -> None:
    """In the order of the run's own settings, which its checkpoint tells."""
    shutil.rmtree(settings["data_path"])
    write_dataset(Path(settings["data_path"]))
    more = {**SMALL, "num_candidates": 6, "rank_among": ["candidates"], "valid_metric": "NDCG@5", "epochs": 1}
    names = ("data_path", "load_col", "checkpoint_dir", "show_progress", "state")
    run_baselines("toy", overrides={**{name: toy_settings[name] for name in names}, **more})
    (path,) = Path(toy_settings["checkpoint_dir"]).glob("SASRec-*.pth")
    adopt(str(path), SAID, host(time_ties="hash"))
    for own, line in (
        ({"time_ties": "file"}, "time_ties: got 'hash', wanted 'file'"),
        ({"seed": 7}, "seed: got 2020, wanted 7"),
        ({"hidden_items": 0.1}, r"hidden_items: got 0\.0, wanted 0\.1"),
        ({"history_order": "given"}, "history_order: got 'time', wanted 'given'"),
    ):
        with pytest.raises(SettingsError, match=line):
            adopt(str(path), SAID, host(**{"time_ties": "hash", **own}))


def test_a_run_says_what_is_wrong_before_anything_is_trained(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted, "train", lambda *given: pytest.fail("trained"))
    own = {**settings, "catalogue_prior": ["recbole:GRU4Rec", "recbole:SASRec"], "time_ties": "hash"}
    with pytest.raises(SettingsError, match="held out by this run"):
        model_of(own)
    own["retriever_checkpoints"] = {"SASRec": "none.pth"}
    with pytest.raises(AdapterError, match=r"none\.pth: cannot be read"):
        model_of(own)
    with pytest.raises(AdapterError, match=r"none\.pth: cannot be read"):
        check(Job("DynamicPO", "toy", overrides=own))


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"catalogue_prior": ["transitions"]}, r"got 'SASRec', wanted models of catalogue_prior \(none\)"),
        ({"retriever_checkpoints": {"GRU4Rec": "x"}}, r"got 'GRU4Rec', wanted .* \(recbole:SASRec\)"),
        ({"retriever_checkpoints": {"SASRec": 3}}, "got {'SASRec': 3}, wanted model: path pairs"),
        ({"retriever_checkpoints": "x.pth"}, "got 'x.pth', wanted model: path pairs"),
        ({"catalogue_prior": ["recbole:EASE"], "retriever_checkpoints": {"EASE": "x"}},
         "got EASE, which is made in seconds of the run's own rows; wanted a sequential model"),
    ],
)  # fmt: skip
def test_settings_that_name_no_retriever_are_refused(
    own: dict[str, Any], complaint: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=f"retriever_checkpoints: {complaint}"):
        PlainConfig("DynamicPO", "toy", [], {**settings, **own})


def test_the_content_decides_and_the_path_does_not(
    settings: dict[str, Any], stock: StockFile, tmp_path: Path
) -> None:
    path, elsewhere = tmp_path / "one.pth", tmp_path / "two.pth"
    for copy in (path, elsewhere):
        shutil.copyfile(stock.path, copy)
    store = str(tmp_path / "store")

    def places(file: Path | None) -> dict[str, Any]:
        kept = {"SASRec": str(file)} if file else None
        own = {**settings, "retriever_checkpoints": kept}
        found: dict[str, Any] = prepare(Job("DynamicPO", "toy", overrides=own, store=store)).outputs["places"]
        return found

    before, moved, without = places(path), places(elsewhere), places(None)
    assert before == moved
    stock.changed(path, epochs=77)
    after = places(path)
    for other in (after, without):
        assert other["prepare"] == before["prepare"]
        assert other["sft"] != before["sft"]
    config = PlainConfig("DynamicPO", "toy", [], settings)
    assert "fact.retriever_checkpoints" in gather(config, read_settings(config)).upto("sft")
    assert not any("pth" in str(value) for value in gather(config, read_settings(config)).values.values())


def test_the_first_process_alone_reads_it(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get what it has found."""
    decided: list[Any] = []

    class First(Processes):
        def decide(self, make: Callable[[], Any]) -> Any:
            decided.append(make())
            return decided[-1]

    class Second(Processes):
        def decide(self, make: Callable[[], Any]) -> Any:
            return decided.pop(0)

    digests = []
    for process in (First(), Second()):
        monkeypatch.setattr(fitted, "here", lambda process=process: process)
        digests.append(prior_of(model_of(settings)).retriever.digest())
        monkeypatch.setattr(agreement, "read_checkpoint", lambda path: pytest.fail("read again"))
        monkeypatch.setattr(fitted, "train", lambda *given: pytest.fail("trained again"))
    assert digests[0] == digests[1]
    assert decided == []
