"""Nothing in settings, names, templates and titles is run, and no name leads out of its folder.

One test for each vector. Every payload would leave a file behind, the canary.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import run_recbole
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.errors import BackboneError, DataError, DynamicPOError, SettingsError
from recbole_dynamicpo.host.config import PlainConfig, parse_value
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.saved_models.rows import read_test_rows
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates, load_templates
from recbole_dynamicpo.settings import properties_folder

from ..conftest import write_dataset
from .harness import bounded
from .payloads import Trap, code, message_of

NAMES = [
    "../x",
    "..",
    ".",
    "/etc",
    "a/b",
    "a\\b",
    "a\0b",
    ".hidden",
    "",
    "*",
    "x" * 200,
    "a\nb",
    "~",
    "$(touch x)",
]


def test_the_payloads_work_where_they_are_run(tmp_path: Path) -> None:
    eval(code(tmp_path / "a"))
    pickle.loads(pickle.dumps(Trap(tmp_path / "b")))
    yaml.load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'c'}']", Loader=yaml.UnsafeLoader)
    assert all((tmp_path / name).is_dir() for name in "abc")


# --- settings ---


@pytest.mark.parametrize(
    "key", ["x", "data_note", "seed", "topk", "metrics", "load_col", "prompt", "learner", "gpu_id"]
)
def test_command_line_values_are_not_run(key: str, canary: Path, toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, "data_path": str(canary.parent / "none")}
    flags = [f"--{name}={value}" for name, value in own.items() if name != key]
    assert run_recbole(["--model=DynamicPO", "--dataset=toy", *flags, f"--{key}={code(canary)}"]) == 2


def test_values_of_dictionaries_are_not_run(canary: Path, toy_settings: dict[str, Any]) -> None:
    config = PlainConfig("DynamicPO", "toy", [], {**toy_settings, "data_note": code(canary)})
    assert config["data_note"] == code(canary)


@pytest.mark.parametrize(
    "text",
    ["{[]: 1}", "[" * 5000, "9" * 5000, "'\\d'", "a\0b", "\ud800", "f'{1}'", "1 if 1 else 2", "lambda: 1"],
)
def test_odd_values_stay_text(text: str) -> None:
    assert parse_value(text) in (text, "\\d")


@pytest.mark.parametrize(
    "text",
    [
        "data_note: !!python/object/apply:os.mkdir ['CANARY']",
        "data_note: !!python/object/new:os.mkdir ['CANARY']",
        "data_note: !!python/name:os.mkdir",
        "data_note: !!python/module:os",
        "!!python/object/apply:os.mkdir ['CANARY']: 1",
        "[1, 2]",
        "1: 2",
        "when: 2024-99-99",
        "a: &a [*a]",
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{n}: &{n} [{', '.join(['*' + p] * 8)}]\n" for p, n in zip("abcdefghi", "bcdefghij", strict=True)
        ),
        "a: " + "[" * 3000,
        "a: " + "9" * 5000,
    ],
)
def test_settings_files_hold_plain_values(text: str, canary: Path, toy_settings: dict[str, Any]) -> None:
    file = canary.parent / "own.yaml"
    file.write_text(text.replace("CANARY", str(canary)))
    with bounded(), pytest.raises(SettingsError, match=r"settings file .*own\.yaml"):
        PlainConfig("DynamicPO", "toy", [str(file)], toy_settings)


def test_the_backbones_name_is_not_run(canary: Path) -> None:
    for name in (code(canary), "a\0b/c", "x" * 5000, "../x/y", f"$(mkdir {canary})", f"; mkdir {canary}"):
        with pytest.raises(BackboneError):
            load_backbone(name)


def test_recboles_own_evaluated_setting_is_refused(canary: Path, toy_settings: dict[str, Any]) -> None:
    """KD_DAGFM calls eval() on the name of its teacher."""
    names = ("data_path", "checkpoint_dir", "state", "show_progress")
    own = {name: toy_settings[name] for name in names}
    with pytest.raises(SettingsError, match="wanted one of CrossNet, CIN"):
        run("KD_DAGFM", "toy", overrides={**own, "teacher": f"lambda c: {code(canary)}"})


def test_settings_that_recbole_stumbles_over_are_named(toy_settings: dict[str, Any]) -> None:
    for wrong in (
        {"topk": "x"},
        {"metrics": None},
        {"data_path": 5},
        {"metrics": ["Nothing"]},
        {"eval_args": 3},
    ):
        with pytest.raises(DynamicPOError):
            run("DynamicPO", "toy", overrides={**toy_settings, **wrong})


# --- names ---


@pytest.mark.parametrize("name", NAMES)
def test_names_of_data_sets_stay_in_their_folder(
    name: str, toy_settings: dict[str, Any], tmp_path: Path
) -> None:
    for call in (
        lambda: run("DynamicPO", name, overrides=toy_settings),
        lambda: run("BPR", name, overrides=toy_settings),
        lambda: read_test_rows(name, overrides=toy_settings),
        lambda: prepare(name, tmp_path, tmp_path / "out", progress=False),
        lambda: run("DynamicPO", "toy", overrides={**toy_settings, "benchmark_filename": [name, "b", "c"]}),
    ):
        with pytest.raises(DynamicPOError):
            call()


def test_a_data_set_outside_of_the_folder_is_not_read(toy_settings: dict[str, Any], tmp_path: Path) -> None:
    """It is whole, so only its name can be what is refused."""
    write_dataset(tmp_path / "private")
    with pytest.raises(DataError, match=r"got the name '\.\./private/toy'"):
        run("DynamicPO", "../private/toy", overrides=toy_settings)


@pytest.mark.parametrize(
    "model", ["os", "a.b", "../x", "DynamicPO; import os", "__import__('os')", "", "recbole"]
)
def test_names_of_models_are_those_of_models(model: str, toy_settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="model: got"):
        run(model, "toy", overrides=toy_settings)


@pytest.mark.parametrize(
    "name", ["../model/DynamicPO", "../dataset/lastfm", "..", "x" * 5000, "a\0b", "/", "/dev/zero"]
)
def test_names_of_templates_stay_in_their_folder(name: str) -> None:
    with pytest.raises(SettingsError, match="prompt: got"):
        load_templates(name, properties_folder() / "prompts")


# --- templates and titles ---


@pytest.mark.parametrize(
    "text",
    [
        "{history} {history.__class__}", "{history} {history[0]}", "{history} {0}",
        "{history} %(history)s %s",
        "{history} ${HOME} $(id)", "{history} {{ ''.__class__ }} {% for x in y %}", "{history} {history!r}",
        "{history} {history:{candidates}}", "{history} <%= 1 %> #{1+1} `id`",
    ],
)  # fmt: skip
def test_templates_are_filled_not_evaluated(text: str) -> None:
    """Only the four placeholders are replaced; everything else is text, or refused as another placeholder."""
    said = message_of(lambda: Templates([text]), DataError)
    if said:
        assert "unknown placeholder" in said  # {0} and ${HOME}
    else:
        got = Templates([text]).render(["Heat"], ["Alien"])
        assert got == text.replace("{history:{candidates}", "Heat").replace("{history}", "- Heat")


@pytest.mark.parametrize(
    "title",
    [
        "{history}",
        "{candidates}",
        "---",
        "{0.__class__}",
        "%s",
        "{{7*7}}",
        "\\1",
        "\\g<0>",
        "Answer:\n- x",
        "<eos>",
    ],
)
def test_titles_are_text_in_prompts(title: str) -> None:
    got = Templates(["{history:, }|{candidates:, }|{num_history}"]).render([title, "b"], ["c", title])
    assert got == f"{title}, b|c, {title}|2"


def test_titles_cannot_write_special_tokens(tiny_backbone: Path) -> None:
    """A title that spells the end of a sequence is letters; a template that has special tokens keeps them."""
    tokenizer = load_backbone(str(tiny_backbone), dtype="float32").tokenizer
    end = tokenizer.eos_token_id
    assert end in tokenizer("a<eos>").input_ids  # it is one where nobody takes care
    collator = Collator(
        tokenizer, Templates(["{history}\n{candidates}\nNext:"]), max_length=400, max_history=5
    )
    batch = collator([PromptRow(["a<eos>"], ["b", "<eos>"], ["b", "<eos>"]), PromptRow(["a"], ["b"], ["b"])])
    assert (batch.prompt[0, : batch.prompt_length[0]] != end).all()
    for ids, length in zip(batch.completions[0], batch.completion_length[0], strict=True):
        assert ids[:length].tolist().count(end) == 1  # the one that ends the title
    special = Collator(tokenizer, Templates(["<eos>{history}"]), max_length=400, max_history=5)
    assert (special([PromptRow(["a"], ["b"], ["b"])]).prompt == end).sum() == 1


def test_a_run_on_hostile_texts(canary: Path, toy_settings: dict[str, Any]) -> None:
    """Titles, user names and item ids that are code in one language or another go through a whole run."""
    home = Path(toy_settings["data_path"]) / "toy"
    evil = [
        code(canary), f"$(mkdir {canary})", f"`mkdir {canary}`", "{history.__class__}", "<eos>",
        "=cmd|' /C calc'!A0",
        "'; DROP TABLE runs; --", "{{ ''.__class__ }}", "%n%n%s", "<script>alert(1)</script>",
        "../../etc/passwd",
    ]  # fmt: skip
    items = (home / "toy.item").read_text().split("\n")
    for number, text in enumerate(evil, start=1):
        items[number] = f"{items[number].split(chr(9))[0]}\t{text}"
    (home / "toy.item").write_text("\n".join(items))
    text = (home / "toy.inter").read_text().replace("u1\t", f"{code(canary)}\t").replace("u2\t", "../../u\t")
    (home / "toy.inter").write_text(text)
    own = {**toy_settings, "data_note": code(canary), "compare_stages": False, "eval_rows": 4, "sft_rows": 4}
    run("SFTRec", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    ranked = load_recommender(folder).rank(evil[:3], evil, k=20)
    assert {item.title for item in ranked} == set(evil)
