"""Adapters of the hub by their ids: folder and revision, what is fetched, what is said of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_dynamicpo.errors import AdapterError
from recbole_dynamicpo.hub import find_adapter

from .helpers.plain_adapter import Hub, pretend_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository with adapters in folders, one with a checkpoint in it, beside a large model."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "there"
    for name in ("lastfm-sft", "lastfm-sft/checkpoint-7", "[x] dpo"):
        (home / name).mkdir(parents=True)
        for file in (
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "training_args.bin",
        ):
            (home / name / file).write_text(f"{name} {file}")
    (home / "model.safetensors").write_text("large")
    (tmp_path / "empty").mkdir()
    repositories = {"owner/adapters": home, "owner/none": tmp_path / "empty"}
    return pretend_hub(repositories, tmp_path / "cache", monkeypatch)


def test_a_folder_of_a_repository_at_a_revision(hub: Hub) -> None:
    found = find_adapter("owner/adapters/lastfm-sft@v1.0")
    assert {p.name for p in found.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "checkpoint-7",
    }  # fmt: skip
    # Of other folders there is what told that they are adapters.
    assert [p.name for p in (found / "checkpoint-7").iterdir()] == ["adapter_config.json"]
    assert (found / "tokenizer.json").read_text() == "lastfm-sft tokenizer.json"
    assert not (found.parent / "model.safetensors").exists()
    assert hub.asked == [("owner/adapters", "v1.0"), ("owner/adapters", "v1.0")]


def test_the_revision_is_found_once(hub: Hub) -> None:
    """So that all that a process reads is of one commit, whatever is pushed meanwhile."""
    first = find_adapter("owner/adapters/lastfm-sft/checkpoint-7")
    assert hub.asked == [("owner/adapters", None), ("owner/adapters", "c0ffee")]
    assert find_adapter("owner/adapters/lastfm-sft/checkpoint-7") == first
    assert len(hub.asked) == 2
    assert first.parent.parent.name == "c0ffee"


def test_what_is_here_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "saved" / "run").mkdir(parents=True)
    for name in ("saved/run", "saved/rum", "./a/b", "../a/b", "/a/b", "one", "a/../b", "~/a/b", "a b/c"):
        assert find_adapter(name) == Path(name)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/adapters", "owner/adapters: no adapter in its top folder; wanted one of its folders .x. dpo, "
         "lastfm-sft, lastfm-sft/checkpoint-7"),
        ("owner/adapters/lastfm", "no adapter in lastfm; wanted one of"),
        ("owner/none", "no adapter in its top folder; there is none in it at all"),
        ("owner/unknown@main", "owner/unknown: no folder here, and not to be had from the hub .OSError: 404"),
    ],
)  # fmt: skip
def test_what_is_not_there(name: str, said: str, hub: Hub) -> None:
    with pytest.raises(AdapterError, match=said) as caught:
        find_adapter(name)
    assert "\n" not in str(caught.value)


def test_letters_of_patterns_are_letters(hub: Hub) -> None:
    with pytest.raises(AdapterError, match="no adapter in x dpo"):
        find_adapter("owner/adapters/x dpo")
