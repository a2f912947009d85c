"""The ways in which our models come to RecBole, and what RecBole's own tools then see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dynamicpo.cli import run_recbole
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.host import run as host_run
from recbole_dynamicpo.host.config import PlainConfig, read_settings_files
from recbole_dynamicpo.training.model import DMPO, DynamicPO, SFTRec
from recbole_dynamicpo.training.trainer import DynamicPOTrainer


class OwnRec(SFTRec):
    """A model that somebody makes of one of ours."""


class OwnOwnRec(OwnRec):
    """Two steps away."""


class MixedRec(DMPO):
    """With another base's settings."""


# --- classes ---


@pytest.mark.parametrize("model", [DynamicPO, DMPO, OwnRec, OwnOwnRec, MixedRec])
def test_a_class_has_defaults_data_set_and_trainer(model: type, toy_settings: dict[str, Any]) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.utils import get_trainer

    config = Config(model, "toy", config_dict=toy_settings)
    assert (config["learner"], config["prompt"]) == ("adamw", "neutral")  # of our defaults alone
    assert config["dynamic"] is not issubclass(model, DMPO)
    assert config["epochs"] == (0 if issubclass(model, SFTRec) else 1)
    assert type(create_dataset(config)) is DynamicPODataset
    assert get_trainer(config["MODEL_TYPE"], config["model"]).func is DynamicPOTrainer


def test_a_class_made_from_ours_runs_by_hand_and_by_run(toy_settings: dict[str, Any]) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer, init_seed

    small = {**toy_settings, "compare_stages": False}
    config = Config(OwnRec, "toy", config_dict=small)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    model = OwnRec(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid)
    assert trainer.evaluate(test) == host_run.run(OwnRec, "toy", (), small)["test_result"]
    assert trainer.run_folder.name.startswith("OwnRec-toy-")


@pytest.mark.parametrize("model", [OwnRec, SFTRec, MixedRec])
def test_quick_start_takes_a_class(model: type, toy_settings: dict[str, Any]) -> None:
    """RecBole looks the class up again by its name."""
    from recbole.quick_start import run_recbole as plain

    small = {**toy_settings, "compare_stages": False, "sft_rows": 4, "preference_rows": 4}
    assert "hit@1" in plain(model, "toy", config_dict=small)["test_result"]


def test_a_class_that_is_defined_anew_replaces_the_old_one(toy_settings: dict[str, Any]) -> None:
    from recbole.config import Config
    from recbole.utils import get_model

    for _ in range(2):
        fresh = type("AnewRec", (DynamicPO,), {"__module__": __name__})
        Config(fresh, "toy", config_dict=toy_settings)
        assert get_model("AnewRec") is fresh


@pytest.mark.parametrize(
    "first",
    [
        "from recbole.utils import get_trainer; assert get_trainer(None, 'SDPO').func.__name__[:2] == 'Dy'",
        "import recbole.data.dataset as d; assert d.DMPODataset.__name__ == 'DynamicPODataset'",
        "from recbole.trainer import MPPOTrainer",
    ],
    ids=["trainer", "data set", "import"],
)
def test_nothing_has_to_be_asked_for_first(first: str) -> None:
    """A trainer or a data set is there although no model and no configuration was asked for."""
    subprocess.run([sys.executable, "-c", f"import recbole_dynamicpo; {first}"], check=True)


def test_what_is_not_ours_stays_unknown() -> None:
    import recbole.data.dataset
    import recbole.trainer

    for name in ("SASRecTrainer", "NoSuchRecTrainer", "Trainers", "__path__x"):
        assert not hasattr(recbole.trainer, name)
    assert not hasattr(recbole.data.dataset, "SASRecDataset")


def test_a_class_that_is_no_model_is_named(toy_settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="model: got <class 'dict'>, wanted a class of RecBole's models"):
        host_run.run(dict, "toy", (), toy_settings)


def test_a_place_for_no_run_is_named_before_anything_is_loaded(toy_settings: dict[str, Any]) -> None:
    toy_settings["backbone"] = "nowhere"
    with pytest.raises(
        SettingsError, match=r"^checkpoint_dir: /proc/xx: the folder cannot be made \(No such"
    ):
        host_run.run("DynamicPO", "toy", overrides={**toy_settings, "checkpoint_dir": "/proc/xx"})


# --- the command line of whatever program it is ---


@pytest.mark.parametrize(
    "option", ["--output_dir=x", "--device=cuda:1", "--local_rank=0", "--port=8888", "--embedding_size=64"]
)
def test_a_host_programs_own_options_do_not_end_a_run(
    option: str,
    toy_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from recbole.config import Config

    monkeypatch.setattr(sys, "argv", ["host.py", option, "--margin=4.5", "--verbose"])
    config = Config("DynamicPO", "toy", config_dict=toy_settings)
    name = option.removeprefix("--").partition("=")[0]
    assert config["margin"] == 4.5
    assert name not in config.external_config_dict
    assert f"command line: --{name} is no setting, passed over" in caplog.text


@pytest.mark.parametrize("name", ["output_dir", "device", "port"])
def test_the_same_in_a_dictionary_is_refused(name: str, toy_settings: dict[str, Any]) -> None:
    from recbole.config import Config

    with pytest.raises(SettingsError, match=f"  {name}: "):
        Config("DynamicPO", "toy", config_dict={**toy_settings, name: "x"})


def test_what_recbole_reads_is_refused_on_a_command_line_too(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole.config import Config

    monkeypatch.setattr(sys, "argv", ["run.py", "--save_dataloaders=True"])
    with pytest.raises(SettingsError, match="save_dataloaders: got True; RecBole would pickle it"):
        Config("DynamicPO", "toy", config_dict=toy_settings)


# --- names in settings files ---


@pytest.mark.parametrize(
    ("arguments", "text", "wanted"),
    [
        ([], "model: SDPO\ndataset: toy\n", ("SDPO", "toy")),
        (["--model=DMPO"], "model: SDPO\ndataset: toy\n", ("DMPO", "toy")),
        (["-d", "other"], "model: SASRec\ndataset: toy\n", ("SASRec", "other")),
        ([], "dataset: toy\n", ("BPR", "toy")),
        ([], "beta: 1\n", ("BPR", "ml-100k")),
    ],
)
def test_model_and_data_set_of_a_settings_file_count(
    arguments: list[str], text: str, wanted: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(host_run, "run", lambda *given: asked.append(given))
    (tmp_path / "a.yaml").write_text("model: BPR\ndataset: first\n" if "model" in text else "beta: 2\n")
    (tmp_path / "b.yaml").write_text(text)
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert run_recbole([*arguments, f"--config_files={' '.join(files)}"]) == 0
    assert [given[:3] for given in asked] == [(*wanted, files)]


def test_later_files_win_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: BPR\nbeta: 1\n")
    (tmp_path / "b.yaml").write_text("model: SDPO\n")
    names = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    assert read_settings_files(names) == {"model": "SDPO", "beta": 1}
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        read_settings_files([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("text", ["model: [DynamicPO]\n", "model: DynamicPo\n", "model: 7\n"])
def test_a_wrong_name_in_a_file_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert run_recbole([f"--config_files={tmp_path / 'a.yaml'}"]) == 2
    assert "model: got" in capsys.readouterr().err


# --- several processes ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nproc=2"],
        ["--world_size=6", "--nproc=3"],
        ["--group_offset=2", "--world_size=4", "--nproc=2"],
        ["--ip=10.0.0.1", "--port=5000", "--nproc=8"],
    ],
)
def test_several_processes_are_warned_of(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *given, **more: started.append(more["nprocs"]))
    assert run_recbole(["--model=SASRec", *arguments]) == 0
    assert started == [int(arguments[-1][-1])]
    assert "RecBole 1.2.1's metrics are wrong then" in caplog.text
    assert "--nproc=1 measures rightly" in caplog.text


def test_one_process_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_run, "run", lambda *given: None)
    assert run_recbole(["--model=SASRec"]) == 0
    assert "metrics are wrong" not in caplog.text


# --- RecBole's case study ---


@pytest.fixture
def studied(toy_settings: dict[str, Any]) -> Any:
    def make(**more: Any) -> tuple[Any, Any]:
        config = PlainConfig("DynamicPO", "toy", [], {**toy_settings, **more})
        loaded = host_run.load(config)
        return loaded.model, loaded.test

    return make


def test_full_sort_topk_answers_for_every_user_in_order(studied: Any) -> None:
    from recbole.utils.case_study import full_sort_scores, full_sort_topk

    model, test = studied()
    users = list(range(12, 0, -1))
    scores, _ = full_sort_topk(users, model, test, k=6)
    rows = {int(user): place for place, user in enumerate(test._dataset.inter_feat["user_id"])}
    for place, user in enumerate(users):
        row = test._dataset.inter_feat[[rows[user]]]
        alone = model.full_sort_predict(row)[0]
        torch.testing.assert_close(scores[place], alone.topk(6).values)
    assert full_sort_scores(users, model, test).shape == (12, model.n_items)


@pytest.mark.parametrize(
    ("settings", "users", "said"),
    [
        ({"eval_rows": 5}, list(range(1, 13)), "7 of 12 users have not one row each in this split of 5 rows"),
        ({}, [3, 99], r"1 of 2 users .* first user 99 \('unknown'\) with 0"),
        ({}, [0], r"first user 0 \('unknown'\) with 0"),
        (
            {"eval_args": {"split": {"RS": [4, 1, 2]}, "order": "TO", "group_by": "user"}},
            [1, 2],
            "2 of 2 users .* with 2",
        ),
    ],
)
def test_full_sort_topk_of_users_without_one_row_each_is_an_error(
    settings: dict[str, Any], users: list[int], said: str, studied: Any
) -> None:
    from recbole.utils.case_study import full_sort_scores, full_sort_topk

    model, test = studied(**settings)
    with pytest.raises(DataError, match=said):
        full_sort_topk(users, model, test, k=3)
    with pytest.raises(DataError, match=said):
        full_sort_scores(users, model, test)


def test_more_items_than_candidates_are_an_error(studied: Any) -> None:
    from recbole.utils.case_study import full_sort_topk

    model, test = studied()
    with pytest.raises(DataError, match="k: got 7, but a row ranks 6 candidates; wanted at most 6"):
        full_sort_topk([1, 2], model, test, k=7)


def test_stock_sequences_shift_no_rows_either(toy_settings: dict[str, Any]) -> None:
    from recbole.utils.case_study import full_sort_scores

    keys = ("data_path", "load_col", "checkpoint_dir", "state")
    given = {key: toy_settings[key] for key in keys} | {"train_neg_sample_args": None}
    loaded = host_run.load(PlainConfig("SASRec", "toy", [], given))
    assert len(full_sort_scores([2, 1], loaded.model, loaded.test)) == 2
    with pytest.raises(DataError, match="1 of 2 users"):
        full_sort_scores([2, 77], loaded.model, loaded.test)


def test_general_models_are_left_as_they_are(toy_settings: dict[str, Any]) -> None:
    from recbole.utils.case_study import full_sort_topk

    keys = ("data_path", "load_col", "checkpoint_dir", "state")
    loaded = host_run.load(PlainConfig("BPR", "toy", [], {key: toy_settings[key] for key in keys}))
    assert full_sort_topk([1, 2], loaded.model, loaded.test, k=3)[1].shape == (2, 3)
