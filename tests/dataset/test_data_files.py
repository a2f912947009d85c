"""Data sets by name, published candidate lists, and RecBole's own models on them.

Set DYNAMICPO_PUBLISHED_DATA to a folder that holds lastfm/, goodreads/ and steam/ with the published files to
check their candidate lists as well.
"""

from __future__ import annotations

import os
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest

import recbole_dynamicpo
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.dataset import data_files as known_data
from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS
from recbole_dynamicpo.dataset.data_files import RECBOLE_ENTRIES
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.scoring.prompts import load_templates
from recbole_dynamicpo.settings import properties_folder
from recbole_dynamicpo.training.rows import scored_columns

from ..helpers.published_data import AS_PUBLISHED, CANDIDATES, small_published

PUBLISHED = os.environ.get("DYNAMICPO_PUBLISHED_DATA")
REAL = ["lastfm", "goodreads", "steam"] if PUBLISHED else []
NAMES = ("lastfm", "goodreads", "steam")
# RecBole 1.2.1 counts the items of pre-split rows by a deprecated way of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:using .* in Series.agg:FutureWarning")
QUIET = {"show_progress": False, "state": "WARNING", **AS_PUBLISHED}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run on a small data set called lastfm, with six candidates a row."""
    monkeypatch.chdir(tmp_path)
    prepare("lastfm", small_published(tmp_path / "in"), tmp_path / "data", progress=False)
    return {"data_path": str(tmp_path / "data"), "num_negatives": 3, "valid_rows": 0, "eval_rows": 0, **QUIET}


def build(name: str, settings: dict[str, Any]) -> DynamicPODataset:
    data = DynamicPODataset(PlainConfig("DynamicPO", name, [], settings))
    data.build()
    return data


def benchmark_rows(folder: Path, split: str) -> list[list[str]]:
    """Read the cells of a benchmark file by the format's rules alone."""
    text = (folder / f"{folder.name}.{split}.inter").read_bytes().decode("utf-8")
    return [line.split("\t") for line in text.split("\n")[1:-1]]


# --- names and defaults ---


@pytest.mark.parametrize("name", ["music", "book", "game", "movie"])
def test_every_kind_of_data_set_has_a_template_that_lists_candidates(name: str) -> None:
    templates = load_templates(name, properties_folder() / "prompts")
    assert 2 <= len(templates) <= 5
    text = templates.render(["A, B", "C"], ["D", "E"])
    assert text == f"{text.split(':')[0]}: A, B; C\nCandidates: D; E\nNext {text.split('Next ')[1]}"


def test_the_download_entries_are_recboles() -> None:
    entries = known_data.download_entries()
    assert set(RECBOLE_ENTRIES.values()) <= entries.keys()


@pytest.mark.parametrize("model", ["DynamicPO", "SASRec", "BPR"])
def test_precedence_default_data_set_file_dictionary(model: str, tmp_path: Path) -> None:
    """topk is [10] or [1, 5, 10] by the model's defaults and [1, 5, 10] by the data set's."""
    given = {"train_neg_sample_args": None} if model == "SASRec" else {}
    config = PlainConfig(model, "lastfm", [], given)
    assert (config["benchmark_filename"], config["topk"]) == (["train", "valid", "test"], [1, 5, 10])
    assert config["candidate_source"] == "fresh"
    file = tmp_path / "own.yaml"
    file.write_text("topk: [3, 5]\nprompt: book\nmetrics: [NDCG]\n")
    config = PlainConfig(model, "lastfm", [str(file)], {**given, "prompt": "game"})
    assert (config["topk"], config["prompt"], config["metrics"]) == ([3, 5], "game", ["NDCG"])
    assert config["valid_metric"] == "NDCG@5"


# --- data that are not there ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["DynamicPO", "BPR", "Pop"])
def test_an_unprepared_data_set_names_the_command(
    name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known_data, "decide_download", lambda url: pytest.fail("a download was tried"))
    with pytest.raises(DataError, match=f"recbole-dynamicpo prepare --dataset {name} --out "):
        run(model, name, overrides={"data_path": str(tmp_path), **QUIET})
    assert not (tmp_path / name).exists()


def test_an_unprepared_data_set_in_plain_recbole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.quick_start import run_recbole

    recbole_dynamicpo.register()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="recbole-dynamicpo prepare --dataset lastfm"):
        run_recbole("DynamicPO", "lastfm", config_dict={"data_path": str(tmp_path), **QUIET})


def test_recboles_files_under_a_published_name_are_not_taken(small: dict[str, Any]) -> None:
    folder = Path(small["data_path"]) / "lastfm"
    (folder / "lastfm.train.inter").unlink()
    (folder / "lastfm.inter").write_text("user_id:token\tartist_id:token\tweight:float\n1\t2\t3\n")
    with pytest.raises(DataError, match=r"lastfm\.train\.inter: no such file\. Run `recbole-dynamicpo prep"):
        build("lastfm", small)


def test_an_unknown_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'lastfn'.*no download of that name \(did you mean 'lastfm"):
        run("BPR", "lastfn", overrides={"data_path": str(tmp_path / "dataset"), **QUIET})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            "user_id artist_id timestamp",
            {},
            "has the columns user_id, artist_id, timestamp; wanted 'item_id'",
        ),
        ("user_id item_id", {}, "has the columns user_id, item_id; wanted 'timestamp'"),
        (
            "user_id item_id timestamp",
            {"load_col": {"inter": ["user_id", "item_id"]}},
            "load_col: of the col",
        ),
        ("user_id item_id timestamp", {"load_col": {"item": ["item_id"]}}, "it loads none; wanted 'user_id'"),
    ],
)
def test_missing_columns_are_named(
    columns: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    header = "\t".join(f"{name}:token" for name in columns.split())
    (tmp_path / "own" / "own.inter").write_text(f"{header}\n1\t2\t3\n")
    with pytest.raises(DataError, match=message):
        build("own", {"data_path": str(tmp_path), "load_col": None, **settings})


# --- RecBole's own downloads ---


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of archives that stand for RecBole's downloads."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(
        known_data,
        "download_entries",
        lambda: {entry: (folder / f"{entry}.zip").as_uri() for entry in RECBOLE_ENTRIES.values()},
    )
    return folder


def serve(folder: Path, entry: str, files: dict[str, str]) -> None:
    with zipfile.ZipFile(folder / f"{entry}.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def interactions(item_field: str, time_field: str) -> str:
    """Five users who take five of nine items each; the file is not in time order."""
    lines = [
        f"{user}\t{(user + 2 * step) % 9}\t{100 * user + step}"
        for step in (3, 0, 4, 1, 2)
        for user in range(5)
    ]
    return f"user_id:token\t{item_field}:token\t{time_field}:float\n" + "\n".join(lines) + "\n"


def test_steam_is_fetched_and_read_with_its_own_column_names(served: Path, tmp_path: Path) -> None:
    """The .inter file says product_id, the .item file id; the archive has a folder and other capitals."""
    items = "app_name:token\tid:token\ttitle:token\n" + "".join(f"Game {n}\t{n}\tother\n" for n in range(9))
    inter = interactions("product_id", "timestamp")
    serve(served, "steam-merged", {"Steam/steam.inter": inter, "Steam/Steam.item": items, "._x.inter": ""})
    small = {"num_candidates": 3, "num_negatives": 1, "item_inter_num_interval": "[0,inf)", "topk": [1, 5]}
    data = build("steam-recbole", {"data_path": str(tmp_path / "data"), **small})
    assert sorted(path.name for path in (tmp_path / "data" / "steam-recbole").glob("steam*")) == [
        "steam-recbole.inter",
        "steam-recbole.item",
    ]
    rows = data.built["test"].inter_feat
    user = data.token2id("user_id", "1")
    row = int((rows["user_id"] == user).nonzero())
    history = [data.titles[item] for item in data.history(rows[[row]])[0]]
    assert history == ["Game 1", "Game 3", "Game 5", "Game 7"]
    assert data.titles[rows["product_id"][row]] == "Game 0"


def test_lastfm_without_time_stamps_says_how_it_is_ordered(served: Path, tmp_path: Path) -> None:
    items = "artist_id:token\tname:token\turl:token\n" + "".join(f"{n}\tArtist {n}\tx\n" for n in range(9))
    serve(served, "lastfm", {"lastfm.inter": interactions("artist_id", "weight"), "lastfm.item": items})
    small = {"num_candidates": 3, "num_negatives": 1, "topk": [1, 5]}
    data = build("lastfm-recbole", {"data_path": str(tmp_path / "data"), **small})
    assert data.notes == [
        "the data have no time stamps: histories are ordered by play count, the most played artist last"
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"lastfm.item": "x"}, "holds no .inter file"),
        ({"a/lastfm.inter": "x", "b/lastfm.inter": "y"}, "holds several .inter files"),
        (None, r"cannot be downloaded .*; check the network, or get its atomic files elsewhere"),
    ],
)
def test_a_failed_download_leaves_nothing(
    files: dict[str, str] | None, message: str, served: Path, tmp_path: Path
) -> None:
    if files is not None:
        serve(served, "lastfm", files)
    with pytest.raises(DataError, match=message):
        known_data.fetch("lastfm-recbole", tmp_path / "data" / "lastfm-recbole")
    assert not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), EOFError("no answer")])
def test_no_network_and_no_terminal_end_in_one_message(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole asks at the terminal before it downloads more than a gigabyte."""

    def fail(url: str) -> bool:
        raise error

    monkeypatch.setattr(known_data, "decide_download", fail)
    with pytest.raises(DataError, match=r"'goodreads' cannot be downloaded .*goodreads-recbole\.inter"):
        known_data.fetch("goodreads-recbole", tmp_path / "goodreads-recbole")
    monkeypatch.setattr(known_data, "decide_download", lambda url: False)
    with pytest.raises(DataError, match="the download was declined"):
        known_data.fetch("goodreads-recbole", tmp_path / "goodreads-recbole")


# --- published candidates ---


@pytest.mark.parametrize("name", ["small", *REAL])
def test_candidates_keep_their_order_in_prompts_and_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(str(PUBLISHED)) / name if name != "small" else small_published(tmp_path / "in")
    name = name if name != "small" else "lastfm"
    found = prepare(name, source, tmp_path / "data", progress=False)
    data = build(
        name,
        {"data_path": str(tmp_path / "data"), "num_negatives": 3, "valid_rows": 0, "eval_rows": 0, **QUIET},
    )
    tokens = data.field2id_token["item_id"]
    train = data.stage_rows(0)
    splits = {"train": train, "valid": data.built["valid"].inter_feat, "test": data.built["test"].inter_feat}
    for split, rows in splits.items():
        lines = benchmark_rows(found.folder, split)
        assert [" ".join(tokens[ids]) for ids in rows[CANDIDATE_IDS].numpy()] == [line[3] for line in lines]
        assert [tokens[item] for item in rows["item_id"].tolist()] == [line[2] for line in lines]
        assert [" ".join(tokens[ids]) for ids in data.history(rows)] == [line[1] for line in lines]
    prompts = data.prompt_rows(train[:50], train[CANDIDATE_IDS][:50].numpy())
    items = (found.folder / f"{name}.item").read_bytes().decode("utf-8").split("\n")[1:-1]
    titles = dict(line.split("\t") for line in items)
    for prompt, line in zip(prompts, benchmark_rows(found.folder, "train"), strict=False):
        assert prompt.candidates == [titles[item] for item in line[3].split(" ")] == prompt.completions
        assert prompt.history == [titles[item] for item in line[1].split(" ")]
    assert data.settings.num_candidates == found.audit["splits"]["train"]["candidates_per_row"]["max"]
    columns = scored_columns(train, "item_id", data.title_numbers.numpy(), 3, seed=1, epoch=0)
    scored = train[CANDIDATE_IDS].gather(1, columns)
    assert (scored[:, 0] == train["item_id"]).all()
    assert (scored > 0).all()
    assert all(len(set(row)) == 4 for row in scored.tolist())


def test_that_test_rows_come_from_validation_rows_is_said(small: dict[str, Any], tmp_path: Path) -> None:
    said = "candidates: as published, which may give targets away (see the audit)"
    assert build("lastfm", small).notes == [
        "the test rows were made from the validation rows: no test file was given",
        said,
    ]
    folder = Path(small["data_path"]) / "lastfm"
    rows = (folder / "lastfm.train.inter").read_bytes().splitlines(keepends=True)
    (folder / "lastfm.train.inter").write_bytes(b"".join(rows[:-1]))
    assert (
        build("lastfm", small).notes[0].startswith("lastfm.train.inter has changed since `prepare` wrote it")
    )
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: damaged JSON .*; run prepare again"):
        build("lastfm", small)
    (folder / "manifest.json").unlink()
    assert build("lastfm", small).notes == [said]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: [*cells[:3], cells[3].rpartition(" ")[0] + " " + cells[3].split()[0]], "valid row 2"),
        (
            lambda cells: [*cells[:3], cells[1] + " " + cells[1]],
            "must hold distinct items and the item chosen",
        ),
        (lambda cells: [*cells[:3], ""], "must hold distinct items and the item chosen"),
    ],
)
def test_damaged_candidates_are_named(change: Any, message: str, small: dict[str, Any]) -> None:
    path = Path(small["data_path"]) / "lastfm" / "lastfm.valid.inter"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[2] = "\t".join(change(lines[2].split("\t")))
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        build("lastfm", small)


def test_more_negatives_than_candidates_are_refused(small: dict[str, Any]) -> None:
    message = (
        f"num_negatives: got {CANDIDATES}, but the rows .* carry {CANDIDATES} candidates; wanted at most"
    )
    with pytest.raises(SettingsError, match=message):
        build("lastfm", {**small, "num_negatives": CANDIDATES})
