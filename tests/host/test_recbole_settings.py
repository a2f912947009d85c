"""Every setting that the installed RecBole reads is used, or refused with its reason before a run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recbole
import yaml
from recbole.config import Config

from recbole_dynamicpo.errors import DynamicPOError, SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.recbole_settings import METRICS, METRICS_OF_ITEMS, NOT_READ, REFUSED, USED
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.settings import fields_of_settings

HOME = Path(recbole.__file__).parent
OURS = set(fields_of_settings())
TABLE = {*USED, *REFUSED, *NOT_READ}
READS = re.compile(
    r"""config(?:_dict)?(?:\[|\.get\(\s*|\.pop\(\s*)["'](\w+)["']   # config["x"], config_dict.get("x")
      | ["'](\w+)["']\s(?:not\s)?in\s(?:self\.)?config\b(?!\[)      # "x" in config
      | (?:self\.|(?<![\w.]))config\.(\w+)                          # config.x""",
    re.VERBOSE,
)


def names_in_code() -> Iterator[str]:
    """Yield what RecBole's code reads of a configuration, but for its single models and its searches."""
    config = Config("BPR", "ml-100k")
    not_settings = {name for name, _ in inspect.getmembers(Config)} | vars(config).keys()
    for path in HOME.rglob("*.py"):
        if not re.search(r"model/\w+_recommender/|hyper_tuning", path.as_posix()):
            for found in READS.finditer(path.read_text(encoding="utf-8")):
                name = next(filter(None, found.groups()))
                if name not in not_settings:
                    yield name


def names_in_files() -> Iterator[str]:
    for path in [*HOME.glob("properties/*.yaml"), *HOME.glob("properties/quick_start_config/*.yaml"),
                 HOME / "properties" / "dataset" / "sample.yaml"]:  # fmt: skip
        yield from yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def names_in_lists() -> Iterator[str]:
    for names in Config("BPR", "ml-100k").parameters.values():
        yield from names


@pytest.mark.parametrize("source", [names_in_code, names_in_files, names_in_lists])
def test_every_name_that_recbole_reads_stands_in_the_table(source: Any) -> None:
    found = set(source())
    assert len(found) > 30
    assert found - TABLE - OURS == set()


def test_the_walk_finds_a_setting_that_nobody_knows(tmp_path: Path) -> None:
    """So that the test above cannot pass by looking at nothing."""
    lines = 'a = config["one"]\nb = self.config.two\nc = "three" in config\nd = final_config_dict.get("four")'
    assert {next(filter(None, found.groups())) for found in READS.finditer(lines)} == {
        "one", "two", "three", "four",
    }  # fmt: skip
    assert len(TABLE) == len(USED) + len(REFUSED) + len(NOT_READ)


def test_the_metrics_are_recboles_that_rank() -> None:
    from recbole.evaluator.register import metric_types
    from recbole.utils import EvaluatorType

    assert {*METRICS} == {name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING}


def complaint(settings: dict[str, Any], **values: Any) -> str:
    """Return what is said of settings before anything is read; the data set does not exist."""
    with pytest.raises(SettingsError) as caught:
        PlainConfig("DynamicPO", "nowhere", [], {**settings, **values})
    return str(caught.value)


def test_settings_of_single_sequential_models_are_unknown_or_ours(toy_settings: dict[str, Any]) -> None:
    from recbole.model import sequential_recommender

    folder = HOME / "properties" / "model"
    names = [name for name in vars(sequential_recommender) if (folder / f"{name}.yaml").is_file()]
    keys = {key for name in names for key in yaml.safe_load((folder / f"{name}.yaml").read_text()) or {}}
    left = sorted(keys - TABLE - OURS)
    assert len(left) > 30
    said = complaint(toy_settings, **dict.fromkeys(left, 1))
    assert all(f"  {key}: unknown setting" in said for key in left)


# Of each setting that is used, a value that looks right and is not.
ODD: dict[str, Any] = {
    "gpu_id": [0, 1], "worker": -1, "state": "verbose", "use_gpu": "no", "reproducibility": 1,
    "show_progress": None, "filter_inter_by_user_or_item": "yes", "learner": "sparse_adam",
    "clip_grad_norm": 1.0, "eval_step": 0.5, "metrics": ["Hit", "AUC"], "topk": [5, "10"],
    "metric_decimal_place": -2, "tail_ratio": 0, "eval_args": "full", "valid_metric": 5, "repeatable": False,
    "encoding": "rot13", "field_separator": "::", "seq_separator": "", "USER_ID_FIELD": None,
    "ITEM_ID_FIELD": 3, "TIME_FIELD": None, "ITEM_LIST_LENGTH_FIELD": "", "LIST_SUFFIX": None,
    "NEG_PREFIX": 0, "RATING_FIELD": 1, "LABEL_FIELD": 1, "POSITION_FIELD": 1, "HEAD_ENTITY_ID_FIELD": 1,
    "TAIL_ENTITY_ID_FIELD": 1, "RELATION_ID_FIELD": 1, "ENTITY_ID_FIELD": 1, "MAX_ITEM_LIST_LENGTH": 0,
    "load_col": {"inter": "user_id"}, "unload_col": ["timestamp"], "unused_col": "timestamp",
    "additional_feat_suffix": 1, "alias_of_user_id": "user", "alias_of_item_id": "item",
    "alias_of_entity_id": "x", "alias_of_relation_id": "x", "benchmark_filename": ["train", "test"],
    "normalize_all": "all", "rm_dup_inter": True, "val_interval": {"timestamp": ">5"},
    "user_inter_num_interval": 5, "item_inter_num_interval": "5+", "data_path": 5, "checkpoint_dir": ["a"],
}  # fmt: skip
LOOKED_UP = {"model", "dataset", "config_files"}


def test_every_used_setting_is_tried() -> None:
    assert ODD.keys() | LOOKED_UP == USED.keys()


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_is_named_before_the_run(name: str, toy_settings: dict[str, Any]) -> None:
    said = complaint(toy_settings, **{name: ODD[name]})
    assert said.startswith("wrong settings:")
    assert f"  {name}: got {ODD[name]!r}, wanted {USED[name].wanted}" in said


@pytest.mark.parametrize("name", [*REFUSED, *NOT_READ])
def test_a_setting_that_is_not_used_is_refused_with_its_reason(
    name: str, toy_settings: dict[str, Any]
) -> None:
    """Nobody's default is 0.625."""
    said = complaint(toy_settings, **{name: 0.625})
    assert f"  {name}: got 0.625; {({**REFUSED, **NOT_READ})[name]}" in said


def test_recboles_own_defaults_pass(toy_settings: dict[str, Any]) -> None:
    """A settings file may spell out what holds anyway, and say that something is off."""
    same = {"save_dataset": False, "log_wandb": None, "shuffle": True, "loss_decimal_place": 4, "nproc": 1}
    off = {"train_neg_sample_args": None, "enable_amp": False, "transform": None, "threshold": None}
    config = PlainConfig("DynamicPO", "nowhere", [], {**toy_settings, **same, **off})
    assert config["shuffle"] is True


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"topk": [10, 20]}, "valid_metric: got NDCG@5, wanted one that metrics and topk hold: "
         "Hit@10, Hit@20, NDCG@10, NDCG@20, MRR@10, MRR@20"),
        ({"topk": 3}, "valid_metric: got NDCG@5"),
        ({"metrics": "Hit"}, "valid_metric: got NDCG@5, wanted one that metrics and topk hold: "
         "Hit@1, Hit@5, Hit@10"),
        ({"valid_metric": "NDCG"}, "valid_metric: got NDCG, wanted"),
        ({"valid_metric": "GAUC@5", "metrics": ["GAUC"]}, "metrics and topk hold: GAUC"),
        ({"topk": [7], "valid_metric": "hit@7", "metrics": ["Hit", "ItemCoverage"]},
         "topk: got 7 with metric ItemCoverage, which counts the items at all these places; wanted at most "
         "num_candidates = 6"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}}}, "order: got 'RO' (RecBole's own where none is given)"),
        ({"eval_args": {"split": {"RS": [0.8, 0.2]}, "order": "TO"}}, "split: got {'RS': [0.8, 0.2]}"),
        ({"eval_args": {"split": {"LS": "both"}, "order": "TO"}}, "split: got {'LS': 'both'}"),
        ({"eval_args": {"order": "TO", "mode": "labeled", "split": {"LS": "valid_and_test"}}},
         "mode: got 'labeled', wanted full, or uni or pop and a number"),
        ({"eval_args": {"order": "TO", "mode": "uni", "split": {"LS": "valid_and_test"}}}, "mode: got 'uni'"),
        ({"eval_args": {"order": "TO", "modes": "full", "split": {"LS": "valid_and_test"}}},
         "eval_args: got the key 'modes' (did you mean 'mode'?)"),
        ({"eval_args": {"order": "TO", "group_by": "item", "split": {"LS": "valid_and_test"}}},
         "group_by: got 'item'"),
        ({"TIME_FIELD": "item_id"}, "TIME_FIELD: got 'item_id', as ITEM_ID_FIELD is"),
        ({"seq_separator": "\t"}, "seq_separator: got '\\t', as field_separator is"),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id_list"}, "LIST_SUFFIX: got '_list', which makes"),
        ({"unused_col": {"inter": ["item_id_list"]}}, "unused_col: got 'item_id_list' of inter"),
        ({"val_interval": {"timestamp": [1, 2]}}, "val_interval: got a list for timestamp"),
        ({"clip_grad_norm": {"norm_type": 2}}, "clip_grad_norm: got {'norm_type': 2}, wanted {max_norm"),
        ({"clip_grad_norm": {"max_norm": -1}}, "clip_grad_norm: got {'max_norm': -1}"),
        ({"learner": "lion"}, "learner: got 'lion', wanted one of adam, adamw, sgd, adagrad, rmsprop"),
        ({"train_neg_sample_args": {"distribution": "popularity", "sample_num": 3}},
         "train_neg_sample_args: got {'distribution': 'popularity', 'sample_num': 3}; negatives come from"),
        ({"save_dataloaders": True}, "save_dataloaders: got True; RecBole would pickle it"),
        ({"log_wandb": True}, "log_wandb: got True; runs are recorded with MLflow"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_named_before_the_run(
    values: dict[str, Any], said: str, toy_settings: dict[str, Any]
) -> None:
    assert said in complaint(toy_settings, **values)


def test_ours_and_recboles_problems_come_in_one_message(toy_settings: dict[str, Any]) -> None:
    said = complaint(toy_settings, beta=-1, learner="lion", bteta=2)
    assert [line.split(":")[0] for line in said.splitlines()[1:]] == ["  learner", "  bteta", "  beta"]


def test_stock_models_on_our_rows_have_their_evaluation_checked(toy_settings: dict[str, Any]) -> None:
    from recbole_dynamicpo.host.baselines import run_baselines

    keys = ("data_path", "load_col", "checkpoint_dir", "num_candidates")
    given = {**{key: toy_settings[key] for key in keys}, "topk": [2]}
    with pytest.raises(SettingsError, match=r"valid_metric: got MRR@10 \(the default\)"):
        run_baselines("toy", overrides=given)
    with pytest.raises(SettingsError, match=r"bteta: unknown setting"):
        run_baselines("toy", overrides={**given, "valid_metric": "Hit@2", "bteta": 1})


# Values that are right and unusual, many in one run; and a value that only the data can tell to be wrong.
UNUSUAL: list[dict[str, Any]] = [
    {
        "learner": "SGD", "clip_grad_norm": {"max_norm": 1, "norm_type": float("inf")}, "eval_step": 5,
        "metrics": ["GAUC", "MAP", "Recall", "Precision", *METRICS_OF_ITEMS], "topk": 3,
        "valid_metric": "gauc", "tail_ratio": 2, "metric_decimal_place": 0, "state": "Critical",
        "gpu_id": (0, 1), "use_gpu": False, "reproducibility": False, "normalize_all": True,
        "eval_args": {"split": {"TS": [0.6, 0.2, 0.2]}, "order": "TO", "mode": {"valid": "uni3"}},
    },
    {
        "learner": "adagrad", "eval_step": 0, "worker": 2, "MAX_ITEM_LIST_LENGTH": 1, "LIST_SUFFIX": "_seen",
        "ITEM_LIST_LENGTH_FIELD": "n", "NEG_PREFIX": "x", "RATING_FIELD": None, "LABEL_FIELD": "timestamp",
        "load_col": None, "unload_col": {"item": ["title"]}, "unused_col": {"inter": ["timestamp"]},
        "rm_dup_inter": "last", "val_interval": {"timestamp": "[0,inf)"}, "encoding": "latin-1",
        "user_inter_num_interval": "[2,inf);[1,1]", "item_inter_num_interval": "(0,100]", "gpu_id": 0,
        "eval_args": {"split": {"RS": [6, 2, 2]}, "order": "TO", "group_by": None, "mode": "pop3"},
    },
    {
        "learner": "RMSprop", "eval_args": {"split": {"LS": "test_only"}, "order": "TO"}, "gpu_id": "",
        "alias_of_item_id": ["timestamp"], "alias_of_entity_id": ["x"], "filter_inter_by_user_or_item": False,
    },
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning:recbole")
@pytest.mark.parametrize("values", UNUSUAL, ids=["evaluation", "data", "optimizer"])
def test_unusual_values_are_used(values: dict[str, Any], toy_settings: dict[str, Any]) -> None:
    small = {**toy_settings, "sft_rows": 4, "preference_rows": 4, "compare_stages": False}
    found = run("DynamicPO", "toy", (), {**small, **values})["test_result"]
    if "topk" in values:
        wanted = {f"{name.lower()}@3" for name in values["metrics"] if name != "GAUC"} | {"gauc"}
        assert {*found} == wanted


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"topk": 40, "valid_metric": "NDCG@40"},
            "topk: got 40, wanted at most 38: data set 'toy' has 38 items",
        ),
        ({"load_col": None, "unload_col": {"inter": ["timestamp"]}}, "unload_col: got 'timestamp' of inter"),
        ({"alias_of_item_id": ["nothing"]}, r"RecBole cannot load it with these settings \(KeyError"),
        ({"additional_feat_suffix": ["kg"]}, r"Additional feature file \[.*toy.kg\] not found"),
        ({"val_interval": {"rating": "[1,2]"}}, r"Field \[rating\] not defined"),
        ({"user_inter_num_interval": "[9,2]"}, "Some feat is empty"),
    ],
)
def test_what_only_the_data_tell_is_named_before_training(
    values: dict[str, Any], said: str, toy_settings: dict[str, Any]
) -> None:
    with pytest.raises(DynamicPOError, match=said) as caught:
        run("DynamicPO", "toy", (), {**toy_settings, **values})
    assert len(str(caught.value).splitlines()) == 1
    assert not Path(toy_settings["checkpoint_dir"]).exists()


def test_the_cpu_is_taken_where_the_gpu_is_not_wanted(toy_settings: dict[str, Any]) -> None:
    """RecBole 1.2.1 chooses the device by gpu_id alone."""
    config = PlainConfig("DynamicPO", "nowhere", [], {**toy_settings, "use_gpu": False, "gpu_id": "3"})
    assert (config["gpu_id"], config["device"].type) == ("", "cpu")
