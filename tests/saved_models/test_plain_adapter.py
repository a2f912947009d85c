"""Adapters as the authors' code leaves them, of a folder or the hub: evaluated, ranked with, trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.evaluation.ranks import read_ranks
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.adapter_folder import read_adapter
from recbole_dynamicpo.saved_models.plain_adapter import plain_recommender, settings_files
from recbole_dynamicpo.saved_models.rows import read_test_rows, with_lists
from recbole_dynamicpo.saved_models.scores import SavedScores

from ..conftest import make_tokenizer
from ..helpers.plain_adapter import LORA, PROMPTS, edit_config, pretend_hub, write_plain_adapter
from ..helpers.published_data import small_published

HERE = {"load_in_4bit": False, "prompt": "music.txt"}
WORDS = [f"--{key}={value}" for key, value in HERE.items()]


@pytest.fixture
def adapter(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter in a folder where LastFM's files and a file of prompts are."""
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", "lastfm", "--source", str(small_published(tmp_path / "in"))]) == 0
    (tmp_path / "music.txt").write_text(PROMPTS)
    return write_plain_adapter(tmp_path / "adapter", tiny_backbone)


def test_titles_have_the_log_probabilities_that_peft_gives_them(adapter: Path) -> None:
    """Prompt and title written by hand as the authors' code writes them, end of sequence included."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    given = {**with_lists("published", "lastfm", HERE), "eval_rows": 5}
    rows = read_test_rows("lastfm", settings_files([]), given)
    recommender, about = plain_recommender(adapter, "theirs", rows.whole, None)
    assert about[1:] == ["prompt: music.txt"]
    scores = SavedScores(recommender, rows, progress=False).scores()
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer = make_tokenizer()
    for row, found in zip(rows.prompts, scores, strict=True):
        history, shown = ", ".join(row.history), ", ".join(row.candidates)
        prompt = f"Heard: {history}. One of these is next: {shown}. Answer:"
        start = len(tokenizer(prompt).input_ids)
        for title, score in zip(row.candidates, found.tolist(), strict=True):
            ids = torch.tensor([tokenizer(f"{prompt} {title}<eos>").input_ids])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
            wanted = logps.gather(1, ids[0, 1:, None])[start - 1 :].sum().item()
            assert score == pytest.approx(wanted, abs=1e-3)


def test_one_command_has_both_kinds_of_lists_side_by_side(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the hub's folder at a revision; and the ranks are those of each kind of lists alone."""
    pretend_hub({"owner/theirs": adapter.parent}, tmp_path / "cache", monkeypatch)
    name, shared = "owner/theirs/adapter@v1", ["--dataset", "lastfm", *WORDS]
    command = ["evaluate", "--model", name, *shared, "--lists", "published,fresh", "--out", "both"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "candidates: as published, which may give targets away" in text
    assert "each user's titles are pooled, shuffled and cut anew" in text
    assert f"adapter: {name}, SHA-256" in text
    last = text.splitlines()[-1]
    assert last.startswith(f"{name}: HR@1")
    assert "on fresh lists than on published ones" in last
    for lists, order in (("published", "time"), ("fresh", "shuffled")):
        alone = [
            "--out",
            lists,
            f"--candidate_source={lists}",
            f"--history_order={order}",
            "--time_ties=file",
        ]
        assert main(["evaluate", "--model", "adapter", *shared, *alone]) == 0
        one, other = read_ranks(Path("both") / lists), read_ranks(Path(lists))
        assert (one.ranks == other.ranks).all()
        assert one.rows == other.rows
        hits = np.mean(one.ranks == 1)
        (line,) = [
            line for line in text.splitlines() if line.startswith(f"{name}  ") and line.count("[") == 2
        ]
        assert f"{hits:.4f} [" in line.removeprefix(name)
    names = {
        line["name"] for line in json.loads(Path("both/published/report.json").read_text())["contestants"]
    }
    assert {"popularity", "rule: company", "transitions", name} <= names


def test_answers_under_both(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "lastfm", "--rows", "3", "--protocol", "generate", "--lists", "published,fresh"]
    assert main(["evaluate", "--model", str(adapter), *words, *WORDS, "--out", "made"]) == 0
    text = capsys.readouterr().out
    assert text.count("ValidRatio") == 2
    assert f"{adapter}, generated: HR@1" in text
    assert len(Path("made/fresh/answers.jsonl").read_text().splitlines()) == 3


def test_ranking_with_the_titles_of_a_data_set(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "rank",
        "--model",
        str(adapter),
        "--history",
        "It|Ash",
        "-k",
        "3",
        "--candidates",
        "Red Fox|It|X",
    ]
    assert main([*words, "--dataset", "lastfm", *WORDS]) == 0
    found = capsys.readouterr().out
    assert found.count("not in the catalogue") == 1
    assert "Red Fox" in found
    assert main(words) == 2
    assert "a plain adapter, which knows no titles and no prompts" in capsys.readouterr().err
    assert main([*words, "--prompt=music"]) == 2
    assert "got --prompt=music, but settings are for a plain adapter" in capsys.readouterr().err


def other_base(folder: Path) -> Any:
    """Write a backbone with wider layers and return its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    config = AutoConfig.from_pretrained(base)
    config.update({"hidden_size": 64, "head_dim": 16, "intermediate_size": 96})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder.parent / "wide")
    make_tokenizer().save_pretrained(folder.parent / "wide")
    return folder.parent / "wide"


def break_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["The Godfather"])
    tokenizer.save_pretrained(folder)


def as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "wanted the folder of a run, or a"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "found: README.md, adapter_config.json"),
        (as_pickle, "adapter_model.bin, a pickle, is not read"),
        (lambda f: (f / "more.pkl").touch(), "holds more.pkl, which may be a pickle"),
        (break_tokenizer, "the tokenizer beside the adapter has 'The Godfather (1972)' as"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "beside the adapter cannot be read"),
        (lambda f: edit_config(f, base_model_name_or_path=str(other_base(f))),
         "tensors differ, first base_model.model.model.layers.0.mlp.down_proj.lora_A.weight: got (8, 48), "
         "wanted (8, 96)"),
        (lambda f: edit_config(f, base_model_name_or_path="/home/them/llama"),
         "names it; --backbone may name its folder"),
        (lambda f: edit_config(f, base_model_name_or_path=None), "names no backbone; wanted --backbone"),
        (lambda f: edit_config(f, use_rslora=True), "use_rslora is True, which makes it more"),
        (lambda f: edit_config(f, modules_to_save=["lm_head"]), "more than plain LoRA"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "not a LoRA configuration"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_line(
    harm: Any, said: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(adapter)
    assert main(["evaluate", "--model", str(adapter), "--dataset", "lastfm", *WORDS]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert said in line


def test_another_backbone_is_taken_at_the_users_word(
    adapter: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(adapter, base_model_name_or_path="/home/them/llama-chat")
    words = [
        "evaluate",
        "--model",
        str(adapter),
        "--dataset",
        "lastfm",
        f"--backbone={tiny_backbone}",
        *WORDS,
    ]
    assert main(words) == 0
    said = f"the adapter names backbone /home/them/llama-chat, and speaks here with {tiny_backbone}"
    assert said in capsys.readouterr().out
    assert main([*words, "--likelihood=catalogue"]) == 2
    assert "likelihood: got catalogue, wanted vocabulary" in capsys.readouterr().err


def test_published_lists_where_there_are_none(
    toy_settings: dict[str, Any], adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", str(adapter), "--dataset", "toy", "--lists", "published", *WORDS]
    assert main([*words, "--load_col={'inter': ['user_id', 'item_id', 'timestamp']}"]) == 2
    assert (
        "lists: got published, but the rows of data set 'toy' carry no candidates" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main([*words, "--lists", "fresh,fresh"])
    assert "wanted published or fresh, or both" in capsys.readouterr().err


def test_training_goes_on_from_an_adapter_of_the_hub(
    adapter: Path, toy_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    hub = pretend_hub({"owner/theirs": adapter.parent}, tmp_path / "cache", monkeypatch)
    edit_config(adapter, base_model_name_or_path="them/llama-chat")
    own = {
        **toy_settings, "sft_adapter": "owner/theirs/adapter@v1", "preference_rows": 4, "eval_rows": 4,
        "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.1, "lora_targets": LORA["target_modules"],
    }  # fmt: skip
    run("DMPO", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    theirs, reference = read_adapter(adapter), read_adapter(folder / "sft")
    assert all(torch.equal(theirs[name], reference[name]) for name in theirs)
    trained = read_adapter(folder / "preference")
    assert any(not torch.equal(theirs[name], trained[name]) for name in theirs)
    assert "sft_adapter: the adapter names backbone them/llama-chat" in caplog.text
    assert len(hub.asked) == 2
