"""Exact order, fixed candidates and the splits of the data set that RecBole builds for our models."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS, ROW_ID, TEMPLATE
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.training.rows import scored_columns


def build(settings: dict[str, Any], model: str = "DynamicPO") -> DynamicPODataset:
    from recbole.data import create_dataset
    from recbole.utils import init_seed

    config = PlainConfig(model, "toy", [], settings)
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    dataset.build()
    return dataset


def sequences(settings: dict[str, Any]) -> dict[str, list[str]]:
    """Return each user's items in exact time order, straight from the file."""
    path = Path(settings["data_path"]) / "toy" / "toy.inter"
    with path.open() as handle:
        rows = list(csv.reader(handle, delimiter="\t"))[1:]
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for user, item, time in rows:
        found[user].append((float(time), item))
    return {user: [item for _, item in sorted(items)] for user, items in found.items()}


def tokens(dataset: DynamicPODataset, ids: Any) -> list[str]:
    return [str(token) for token in dataset.id2token("item_id", np.asarray(ids))]


def test_histories_and_targets_are_in_exact_time_order(toy_settings: dict[str, Any]) -> None:
    """Times lie 3 s apart near 1.7e9, where float32 steps are 128 s: RecBole alone shuffles them."""
    truth = sequences(toy_settings)
    dataset = build(toy_settings)
    for phase, place in (("test", -1), ("valid", -2)):
        rows = dataset.built[phase].inter_feat
        for index, history in enumerate(dataset.history(rows)):
            user = str(dataset.id2token("user_id", [int(rows["user_id"][index])])[0])
            assert tokens(dataset, [int(rows["item_id"][index])]) == [truth[user][place]]
            assert tokens(dataset, history) == truth[user][:place]


def test_candidates_are_distinct_hold_the_positive_and_nothing_the_user_took(
    toy_settings: dict[str, Any],
) -> None:
    truth = sequences(toy_settings)
    dataset = build(toy_settings)
    last = {"train": -2, "valid": -1, "test": None}
    for phase in last:
        rows = dataset.stage_rows(0) if phase == "train" else dataset.built[phase].inter_feat
        for index, row in enumerate(rows[CANDIDATE_IDS].tolist()):
            user = str(dataset.id2token("user_id", [int(rows["user_id"][index])])[0])
            positive = int(rows["item_id"][index])
            assert len(set(row)) == toy_settings["num_candidates"]
            assert positive in row
            negatives = tokens(dataset, [item for item in row if item != positive])
            assert not set(negatives) & set(truth[user][: last[phase]])


def test_candidates_are_the_same_for_every_model_and_every_build(toy_settings: dict[str, Any]) -> None:
    builds = [build(toy_settings), build(toy_settings), build(toy_settings, "SDPO")]
    other = build({**toy_settings, "seed": 7})
    for phase in ("valid", "test"):
        first, *rest = (b.built[phase].inter_feat[CANDIDATE_IDS] for b in builds)
        assert all(torch.equal(first, again) for again in rest)
        assert not torch.equal(first, other.built[phase].inter_feat[CANDIDATE_IDS])


def test_a_rows_draw_does_not_depend_on_how_many_rows_are_used(toy_settings: dict[str, Any]) -> None:
    dataset = build(toy_settings)
    everything = dataset.stage_rows(0)
    where = {row: index for index, row in enumerate(everything[ROW_ID].tolist())}
    some = dataset.stage_rows(5)
    for index, row in enumerate(some[ROW_ID].tolist()):
        assert torch.equal(some[CANDIDATE_IDS][index], everything[CANDIDATE_IDS][where[row]])
        assert some[TEMPLATE][index] == everything[TEMPLATE][where[row]]


def test_stages_take_different_rows_while_there_are_enough(toy_settings: dict[str, Any]) -> None:
    dataset = build(toy_settings)
    first = set(dataset.stage_rows(20)[ROW_ID].tolist())
    second = set(dataset.stage_rows(20, skip=20)[ROW_ID].tolist())
    assert len(first) == len(second) == 20
    assert not first & second


def test_negatives_are_redrawn_every_epoch_and_the_positive_stays_first(toy_settings: dict[str, Any]) -> None:
    dataset = build(toy_settings)
    rows, titles = dataset.stage_rows(0), dataset.title_numbers.numpy()
    draws = [scored_columns(rows, "item_id", titles, 4, seed=1, epoch=epoch) for epoch in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    first = rows[CANDIDATE_IDS].gather(1, draws[2][:, :1])[:, 0]
    assert torch.equal(first, rows["item_id"])


def test_evaluation_uses_the_first_template(toy_settings: dict[str, Any]) -> None:
    dataset = build(toy_settings)
    assert not dataset.built["test"].inter_feat[TEMPLATE].any()
    assert len(set(dataset.stage_rows(0)[TEMPLATE].tolist())) > 1


def test_too_few_items_name_the_user_and_the_setting(toy_settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"user u\d+: wanted 38 negatives.*num_candidates"):
        build({**toy_settings, "num_candidates": 39, "num_negatives": 1})


def test_a_data_set_without_titles_names_file_and_columns(toy_settings: dict[str, Any]) -> None:
    path = Path(toy_settings["data_path"]) / "toy" / "toy.item"
    path.write_text("item_id:token\tprice:float\ni1\t3\n")
    with pytest.raises(
        DataError, match=r"toy\.item: has the columns item_id, price; wanted .*movie_title or title"
    ):
        build(toy_settings)


def test_wrong_settings_are_all_named_before_anything_is_read(toy_settings: dict[str, Any]) -> None:
    wrong = {**toy_settings, "data_path": "nowhere", "num_negatves": 3, "beta": -1, "sft_rows": "many"}
    with pytest.raises(SettingsError) as caught:
        run("DynamicPO", "toy", overrides=wrong)
    message = str(caught.value)
    assert "num_negatves: unknown setting (did you mean 'num_negatives'?)" in message
    assert "beta: got -1, wanted more than 0" in message
    assert "sft_rows: got 'many', wanted a whole number" in message
    assert not Path(toy_settings["checkpoint_dir"]).exists()
