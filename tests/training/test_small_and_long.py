"""What is too little or too long is found before training: empty splits, titles that fit in no prompt."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.host.baselines import run_baselines
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import load, run

from ..helpers.published_data import published_rows, write_published

LS = {"order": "TO", "mode": "full"}


def write_inter(settings: dict[str, Any], lengths: list[int]) -> None:
    """Give user n so many interactions, with items in turn."""
    lines = [
        f"u{user}\ti{1 + (7 * user + place) % 40}\t{place}"
        for user, length in enumerate(lengths)
        for place in range(length)
    ]
    path = Path(settings["data_path"]) / "toy" / "toy.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("lengths", "split", "said"),
    [
        (
            [2] * 12,
            {"LS": "valid_and_test"},
            "no valid rows; 12 users are left, the most active with 2 inter",
        ),
        (
            [3] * 12,
            {"LS": "valid_and_test"},
            "no valid rows; .* with 3 .*; it takes 4 for a row in every split",
        ),
        ([8] * 12, {"LS": "valid_only"}, "no test rows; .* with 8 interactions, .* by {'LS': 'valid_only'}"),
        ([2] * 12, {"LS": "test_only"}, "no test rows"),
        ([8] * 12, {"RS": [1, 0, 0]}, r"no test rows; .* by {'RS': \[1, 0, 0\]}"),
        ([2] * 12, {"RS": [0.8, 0.1, 0.1]}, "no (valid|test) rows"),
        ([1] * 12, {"LS": "valid_and_test"}, "RecBole cannot (load it|make train)|no train rows"),
    ],
)
@pytest.mark.parametrize("model", ["DynamicPO", "SASRec", "baselines"])
def test_an_empty_split_is_an_error_that_says_why(
    model: str, lengths: list[int], split: dict[str, Any], said: str, toy_settings: dict[str, Any]
) -> None:
    write_inter(toy_settings, lengths)
    keys = ("data_path", "load_col", "checkpoint_dir", "state", "num_candidates")
    stock = {key: toy_settings[key] for key in keys} | {"epochs": 1, "train_neg_sample_args": None}
    more = {"eval_args": {**LS, "split": split, "group_by": "user"}}
    given = {**(toy_settings if model == "DynamicPO" else stock), **more}
    ours = partial(run, model, "toy", (), given)
    started = partial(run_baselines, "toy", (), given) if model == "baselines" else ours
    with pytest.raises(DataError, match=said) as caught:
        started()
    assert len(str(caught.value).splitlines()) == 1
    assert not list(Path(toy_settings["checkpoint_dir"]).glob("*-toy-*"))


@pytest.mark.parametrize("split", [{"LS": "test_only"}, {"RS": [0.8, 0, 0.2]}])
def test_no_validation_where_none_is_asked_for(split: dict[str, Any], toy_settings: dict[str, Any]) -> None:
    args = {**LS, "split": split, "group_by": "user"}
    small = {**toy_settings, "compare_stages": False, "eval_args": args}
    assert "hit@1" in run("SFTRec", "toy", (), small)["test_result"]


@pytest.mark.parametrize("empty", ["train", "valid", "test"])
def test_an_empty_file_of_pre_split_rows_is_named(empty: str, toy_settings: dict[str, Any]) -> None:
    folder = Path(toy_settings["data_path"]) / "toy"
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part in ("train", "valid", "test"):
        rows = "" if part == empty else "".join(f"u{n}\ti{n} i{n + 1}\ti{n + 2}\n" for n in range(1, 30))
        (folder / f"toy.{part}.inter").write_text(head + rows)
    more = {
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"],
    }
    with pytest.raises(DataError, match=rf"toy\.{empty}\.inter: has a header and no rows"):
        load(PlainConfig("DynamicPO", "toy", [], {**toy_settings, **more}))


# --- titles ---


def lengthen(settings: dict[str, Any], items: list[str], letters: int) -> None:
    path = Path(settings["data_path"]) / "toy" / "toy.item"
    lines = path.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    path.write_text(
        "".join(f"{i}\t{i + 'x' * (letters - len(i)) if i in items else title}\n" for i, title in cells)
    )


@pytest.mark.parametrize("letters", [2600, 300, 10_000])
@pytest.mark.parametrize("phase", ["valid", "test", "sft", "preference"])
def test_one_overlong_title_is_named_by_its_item_before_training(
    phase: str, letters: int, toy_settings: dict[str, Any]
) -> None:
    """The tokenizer has a token a byte; the item is one that only rows of this phase show."""
    from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS

    few = {**toy_settings, "sft_rows": 2, "preference_rows": 2, "valid_rows": 2, "eval_rows": 2}
    data = load(PlainConfig("DynamicPO", "toy", [], few)).model.dataset
    shown = {name: data.built[name].inter_feat[CANDIDATE_IDS] for name in ("valid", "test")}
    shown |= {"sft": data.stage_rows(2)[CANDIDATE_IDS], "preference": data.stage_rows(2, 2)[CANDIDATE_IDS]}
    others = np.concatenate([ids.numpy().ravel() for name, ids in shown.items() if name != phase])
    only = sorted({*shown[phase].numpy().ravel().tolist()} - {*others.tolist()} - {0})
    item = str(data.field2id_token["item_id"][only[0]])
    lengthen(toy_settings, [item], letters)
    with pytest.raises(DataError) as caught:
        run("DynamicPO", "toy", (), few)
    said = str(caught.value)
    assert f"a {phase} row of user 'u" in said
    assert f"its longest title, of item '{item}', has {letters} letters" in said
    assert len(said.splitlines()) == 1
    assert not list(Path(toy_settings["checkpoint_dir"]).glob("*-toy-*"))


def test_long_titles_that_fit_are_no_error(toy_settings: dict[str, Any]) -> None:
    """Twice 150 tokens beside five short titles are below 512, at which the check looks twice."""
    lengthen(toy_settings, ["i3"], 150)
    small = {**toy_settings, "compare_stages": False}
    assert "hit@1" in run("SFTRec", "toy", (), small)["test_result"]


def test_many_long_titles_are_counted_together(toy_settings: dict[str, Any]) -> None:
    lengthen(toy_settings, [f"i{n}" for n in range(1, 41)], 100)
    with pytest.raises(DataError, match=r"a valid row of user .* needs .* tokens without any history"):
        run("DynamicPO", "toy", (), toy_settings)


@pytest.mark.parametrize(
    ("mode", "phase"), [("uni30", "valid"), ("pop30", "test"), ("uni200", "valid"), ("uni25", "test")]
)
def test_prompts_of_sampled_evaluation_are_checked_before_training(
    mode: str, phase: str, toy_settings: dict[str, Any]
) -> None:
    """A prompt of 31 titles of 12 letters has no place in 400 tokens, one of a row's own 6 has."""
    modes = {"valid": "full", "test": "full", phase: mode}
    args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": modes}
    with pytest.raises(
        DataError, match=rf"a {phase} row of user .*: a prompt of \d\d candidates needs"
    ) as caught:
        run("DynamicPO", "toy", (), {**toy_settings, "eval_args": args, "max_length": 300})
    assert len(str(caught.value).splitlines()) == 1
    assert not list(Path(toy_settings["checkpoint_dir"]).glob("*-toy-*"))


def test_prompts_of_sampled_evaluation_that_fit_are_ranked(toy_settings: dict[str, Any]) -> None:
    args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni9"}
    small = {**toy_settings, "compare_stages": False, "eval_args": args}
    assert "hit@1" in run("SFTRec", "toy", (), small)["test_result"]


# --- prepare ---


@pytest.mark.parametrize(("letters", "named"), [(2600, True), (600, True), (480, True), (400, False)])
@pytest.mark.parametrize("published", [True, False])
def test_prepare_names_a_title_that_no_prompt_can_hold(
    published: bool,
    letters: int,
    named: bool,
    tiny_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a token a letter; 512 tokens hold the head of the prompt and one title."""
    long = "Symphony " + "x" * (letters - 9)
    if published:
        rows = [row | {"itemList": [*row["itemList"], long]} for row in published_rows(5, seed=3)]
        source = write_published(tmp_path / "in", "own", train=rows, val=rows)
    else:
        source = tmp_path / "own.csv"
        lines = [f"u{n % 6},{n},{n},Title {n}" for n in range(40)]
        source.write_text("user,item,time,title\n" + "\n".join(lines) + f"\nu1,x,99,{long}\n")
    command = ["prepare", "--dataset", "own", "--source", str(source), "--out", str(tmp_path / "data")]
    assert main([*command, "--backbone", str(tiny_backbone), "--max-length", "512"]) == 0
    printed = capsys.readouterr().out
    line = rf"too long for any prompt: the title of item '\w+', {letters} letters: 'Symphony x"
    assert (re.search(line, printed) is not None) == named
