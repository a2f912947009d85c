"""What cannot work in a stock model's run is refused with its reason before the run; what can, works."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.host.baselines import run_baselines
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load, run

LABELED = {"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": "user", "mode": "labeled"}
UNI = {**LABELED, "mode": "uni5"}


@pytest.fixture
def stock(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a stock model's run of seconds."""
    keys = ("data_path", "load_col", "checkpoint_dir", "state", "mlflow_tracking_uri", "show_progress")
    return {**{key: toy_settings[key] for key in keys}, "epochs": 1, "train_batch_size": 64}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learner": "lion"}, "learner: got 'lion', wanted one of adam, adamw, sgd, adagrad, rmsprop"),
        ({"learner": "adamax"}, r"\(RecBole would train with Adam instead\) \(did you mean 'adam"),
        ({"learner": None}, "learner: got None, wanted one of adam"),
        ({"learner": "Sparse_Adam"}, "learner: got 'Sparse_Adam', but no model of RecBole's has the sparse"),
        ({"topk": [5]}, r"valid_metric: got MRR@10 \(the default\), wanted one .* hold: Recall@5, MRR@5"),
        ({"topk": 20}, r"valid_metric: got MRR@10 \(the default\)"),
        ({"metrics": "Hit"}, r"valid_metric: got MRR@10 \(the default\), wanted one .* hold: Hit@10"),
        ({"valid_metric": "NDCG"}, "valid_metric: got NDCG, wanted one that metrics and topk hold"),
        ({"valid_metric": 10}, "valid_metric: got 10, wanted a non-empty text"),
        ({"topk": 0}, "topk: got 0, wanted a whole number of at least 1"),
        ({"topk": ["10"]}, "topk: got .*, wanted a whole number"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm: got 1.0, wanted {max_norm: a number above 0}"),
        ({"clip_grad_norm": True}, "clip_grad_norm: got True, wanted {max_norm"),
        ({"clip_grad_norm": {"max": 5}}, "clip_grad_norm: got {'max': 5}, wanted {max_norm"),
        ({"log_wandb": True}, "log_wandb: got True, but wandb is not installed"),
        (
            {"metrics": ["Hit", "AUC"]},
            "metrics: got Hit and AUC; wanted metrics of ranks, or of values",
        ),
        ({"metrics": ["RMSE", "GAUC"]}, "metrics: got GAUC and RMSE; wanted metrics of ranks"),
        ({"metrics": ["Hits"]}, r"metrics: got 'Hits', wanted some of .* \(did you mean 'hit'\?\)"),
        ({"metrics": 5}, "metrics: got 5, wanted some of hit"),
        ({"metrics": []}, r"metrics: got \[\], wanted some of hit"),
        ({"metrics": ["AUC"], "valid_metric": "AUC"}, "mode: got full with metric AUC of values"),
        ({"eval_args": LABELED}, "eval_args: mode: got labeled with metric Recall, which ranks"),
        ({"eval_args": "full"}, "eval_args: got 'full', wanted split, order, group_by and mode"),
        ({"eval_step": "often"}, "eval_step: got 'often', wanted a whole number"),
        ({"metric_decimal_place": -1}, "metric_decimal_place: got -1, wanted"),
        ({"encoding": "utf-99"}, "encoding: got 'utf-99', wanted"),
        ({"benchmark_filename": ["a", "b"]}, r"benchmark_filename: got \['a', 'b'\], wanted"),
        ({"val_interval": {"timestamp": ">5"}}, "val_interval: got .*, wanted column: interval"),
        ({"user_inter_num_interval": 5}, "user_inter_num_interval: got 5, wanted an interval"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(
    values: dict[str, Any], said: str, stock: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "recbole_dynamicpo.host.stock_rules.find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(SettingsError, match=said):
        run("SASRec", "toy", (), {**stock, "train_neg_sample_args": None, **values})
    assert not Path(stock["checkpoint_dir"]).exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("model", "values", "metric"),
    [
        ("BPR", {"learner": "RMSprop", "topk": [5], "valid_metric": "hit@5"}, "hit@5"),
        ("BPR", {"clip_grad_norm": {"max_norm": 0.5}, "topk": 38, "valid_metric": "NDCG@38"}, "ndcg@38"),
        ("BPR", {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC", "eval_args": UNI}, "logloss"),
        ("BPR", {"metrics": ["GAUC"], "valid_metric": "gauc"}, "gauc"),
        ("SASRec", {"learner": "adagrad", "metrics": "MAP", "valid_metric": "map@10"}, "map@10"),
        ("SASRec", {"log_wandb": False, "eval_step": 0, "train_neg_sample_args": None}, "mrr@10"),
        ("Pop", {"topk": [1, 10]}, "mrr@1"),
    ],
)
def test_what_can_work_does(model: str, values: dict[str, Any], metric: str, stock: dict[str, Any]) -> None:
    given = {"train_neg_sample_args": None} if model == "SASRec" else {}
    assert metric in run(model, "toy", (), {**stock, **given, **values})["test_result"]


def test_the_defaults_of_every_stock_model_pass() -> None:
    from recbole.model import general_recommender, sequential_recommender

    names = [
        name
        for module in (general_recommender, sequential_recommender)
        for name, value in vars(module).items()
        if isinstance(value, type)
    ]
    assert len(names) > 60
    for name in names:
        given: dict[str, Any] = {"train_neg_sample_args": None, "loss_type": "CE"}
        PlainConfig(name, "toy", [], given if name not in vars(general_recommender) else {})


@pytest.mark.parametrize("topk", [39, 40, 1000])
@pytest.mark.parametrize("model", ["BPR", "SASRec", "DynamicPO"])
def test_no_more_places_than_items(
    model: str, topk: int, stock: dict[str, Any], toy_settings: dict[str, Any]
) -> None:
    """RecBole's table has a column for padding beside those of the 38 items."""
    given = toy_settings if model == "DynamicPO" else {**stock, "train_neg_sample_args": None}
    more = {"topk": topk, "metrics": ["NDCG"], "valid_metric": f"NDCG@{topk}"}
    with pytest.raises(SettingsError, match=rf"topk: got {topk}, wanted at most 38: .* has 38 items"):
        load(PlainConfig(model, "toy", [], {**given, **more}))


@pytest.mark.parametrize(
    ("metric", "model"), [("AUC", "BPR"), ("LogLoss", "FM"), ("RMSE", "LightGCN"), ("MAE", "DeepFM")]
)
def test_labels_are_asked_for_where_rows_are_evaluated_by_them(
    metric: str, model: str, stock: dict[str, Any]
) -> None:
    more = {"metrics": [metric], "valid_metric": metric, "eval_args": LABELED}
    with pytest.raises(DataError, match=r"mode labeled, but the rows of .* have no column 'label'"):
        load(PlainConfig(model, "toy", [], {**stock, **more}))


def test_baselines_train_as_a_stock_model_does(toy_settings: dict[str, Any]) -> None:
    keys = ("data_path", "load_col", "checkpoint_dir", "num_candidates", "mlflow_tracking_uri")
    given = {key: toy_settings[key] for key in keys}
    for values in ({"learner": "lion"}, {"learner": "sparse_adam"}, {"learner": 5}):
        with pytest.raises(SettingsError, match="learner: got"):
            run_baselines("toy", overrides={**given, **values})


# --- pre-split rows ---


@pytest.fixture
def presplit(toy_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of 30 + 20 + 10 pre-split rows; training rows have the smallest items."""
    folder = Path(toy_settings["data_path"]) / "toy"
    start = 1
    for part, count in (("train", 30), ("valid", 20), ("test", 10)):
        rows = "".join(
            f"u{1 + n % 12}\ti{n % 36 + 1} i{n % 36 + 2}\ti{n % 36 + 3}\t{n}\n"
            for n in range(start, start + count)
        )
        head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
        (folder / f"toy.{part}.inter").write_text(head + rows)
        start += count
    return {
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id", "timestamp"]},
        "alias_of_item_id": ["item_id_list"],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_inter_num_interval", "[3,inf)"),
        ("item_inter_num_interval", "[2,inf)"),
        ("val_interval", {"timestamp": "[5,inf)"}),
        ("rm_dup_inter", "first"),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "DynamicPO", "baselines"])
def test_what_would_leave_pre_split_rows_out_is_refused(
    model: str,
    name: str,
    value: Any,
    presplit: dict[str, Any],
    stock: dict[str, Any],
    toy_settings: dict[str, Any],
) -> None:
    given = toy_settings if model != "SASRec" else {**stock, "train_neg_sample_args": None}
    said = rf"{name}: got .* with benchmark_filename, and RecBole leaves out no pre-split row"
    start = partial(run, model, "toy", ())
    if model == "baselines":
        given = {key: given[key] for key in ("data_path", "checkpoint_dir", "num_candidates")}
        start = partial(run_baselines, "toy", ())
    with pytest.raises(SettingsError, match=said):
        start({**given, **presplit, name: value})


def test_pre_split_rows_keep_their_splits(presplit: dict[str, Any], toy_settings: dict[str, Any]) -> None:
    """Intervals that leave nothing out are RecBole's own defaults."""
    every = {
        "user_inter_num_interval": "[0,inf)",
        "item_inter_num_interval": "[1, inf)",
        "val_interval": None,
    }
    found = load(PlainConfig("DynamicPO", "toy", [], {**toy_settings, **presplit, **every}))
    rows = {"train": 30, "valid": 20, "test": 10}
    assert {name: len(getattr(found, name)._dataset) for name in rows} == rows
