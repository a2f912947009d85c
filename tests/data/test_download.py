"""Finding the source files: on disk, or on a hub that is faked here because tests have no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.data.download import download_published, find_sources, source_hashes
from recbole_dynamicpo.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_a_folder_holds_the_published_names_plain_or_gzipped(tmp_path: Path) -> None:
    touch(tmp_path, "toy-train.json.gz", "toy-val.json", "other-test.json")
    found = find_sources("toy", tmp_path)
    assert {role: path.name for role, path in found.items()} == {
        "train": "toy-train.json.gz",
        "val": "toy-val.json",
    }
    touch(tmp_path, "toy-test.json.gz")
    assert list(find_sources("toy", str(tmp_path))) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("a.json", "all"),
        ("a.json.gz", "all"),
        ("a.csv", "sequences"),
        ("a.tsv", "sequences"),
        ("a.parquet", "sequences"),
    ],
)
def test_a_single_file_is_known_by_its_suffix(tmp_path: Path, name: str, role: str) -> None:
    touch(tmp_path, name)
    assert find_sources("toy", tmp_path / name) == {role: tmp_path / name}


@pytest.mark.parametrize(
    ("present", "source", "message"),
    [
        ([], "none", "none: no such file or folder"),
        (["a.txt"], "a.txt", r"wanted a file that ends in \.json, \.json\.gz, \.csv, \.tsv, \.parquet"),
        (["toy-val.json"], ".", r"wanted toy-train\.json or toy-train\.json\.gz, found neither"),
        (["toy-train.json"], ".", r"wanted toy-val\.json or toy-val\.json\.gz, found neither"),
        (["toy-train.json", "toy-train.json.gz"], ".", r"wanted toy-train\.json or .*, got both"),
    ],
)
def test_missing_and_doubtful_sources_are_named(
    tmp_path: Path, present: list[str], source: str, message: str
) -> None:
    touch(tmp_path, *present)
    with pytest.raises(DataError, match=message):
        find_sources("toy", tmp_path / source)


def test_a_source_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: cannot be read: No such file"):
        source_hashes({"all": tmp_path / "gone.json"})


def test_the_hub_is_asked_for_three_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return f"cache/{name}"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    wanted = {role: Path(f"cache/steam-{role}.json") for role in ("train", "val", "test")}
    assert find_sources("steam", None) == find_sources("steam", "hub") == wanted
    assert asked[:3] == [("xingyuHuxingyu/DynamicPO-Data", path.name, "dataset") for path in wanted.values()]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("client closed"), ValueError()])
def test_a_failing_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(DataError, match=r"lastfm-train\.json .*cannot be downloaded.*--source") as caught:
        download_published("lastfm")
    assert "\n" not in str(caught.value)


def test_the_hub_has_three_data_sets() -> None:
    with pytest.raises(DataError, match="the hub has goodreads, lastfm, steam, got 'toy'"):
        find_sources("toy", "hub")
