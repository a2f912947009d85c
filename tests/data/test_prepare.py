"""From published files to a RecBole folder: nothing lost, nothing half done, nothing done twice.

Set DYNAMICPO_PUBLISHED_DATA to a folder that holds lastfm/, goodreads/ and steam/ with the published files to
run the round trip on those as well; a small set in the same format is always run.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.data import prepare as prepare_module
from recbole_dynamicpo.data.converter import deal
from recbole_dynamicpo.data.prepare import PreparedData, prepare
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.storage import sha256_json

PUBLISHED = os.environ.get("DYNAMICPO_PUBLISHED_DATA")
REAL = ["lastfm", "goodreads", "steam"] if PUBLISHED else []
ODD = [
    '"Quoted" Film',
    '"open',
    "NA",
    "null",
    ":wumpscut:",
    "Fear :: Knossos",
    "a\u2028b\x85",
    " x ",
    "é e\u0301",
]
Row = dict[str, Any]


def small_rows(users: int, offset: int = 0, length: int = 14) -> list[Row]:
    """Rows like LastFM's: a user's history grows from 3 titles to a window of 10; 5 candidates."""
    titles = ODD + [f"Title {number}" for number in range(40)]
    rows = []
    for user in range(users):
        walk = [titles[(offset + 7 * user + 3 * step) % len(titles)] for step in range(length)]
        for step in range(3, length):
            target, others = walk[step], [title for title in titles if title not in walk][:4]
            place = (user + step) % 5
            items = [*others[:place], target, *others[place:]]
            history = "::".join(walk[max(0, step - 10) : step])
            rows.append({"historyList": history, "itemList": items, "trueSelection": target})
    return rows


def write_set(folder: Path, **files: list[Row]) -> Path:
    """Write toy-<role>.json for each role; train is gzipped, as in the published sets."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, rows in files.items():
        text = json.dumps(rows, ensure_ascii=False).encode("utf-8")
        if role == "train":
            (folder / "toy-train.json.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"toy-{role}.json").write_bytes(text)
    return folder


def read_json(path: Path) -> list[Row]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(json.loads(data))


def read_back(folder: Path, split: str) -> Iterator[Row]:
    """Read rows by the format's rules alone: lines end at line feeds, cells at tabs, ids at spaces."""
    name = folder.name
    lines = (folder / f"{name}.item").read_bytes().decode("utf-8").split("\n")[1:-1]
    titles = dict(line.split("\t") for line in lines)
    for line in (folder / f"{name}.{split}.inter").read_bytes().decode("utf-8").split("\n")[1:-1]:
        _, history, target, candidates = line.split("\t")
        yield {
            "historyList": "::".join(titles[item] for item in history.split(" ")) if history else "",
            "itemList": [titles[item] for item in candidates.split(" ")],
            "trueSelection": titles[target],
        }


def as_bag(rows: list[Row]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.fixture(scope="module", params=["small", *REAL])
def prepared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreparedData]:
    """Source folder and prepared set, of the small data and of each real one that is given."""
    out = tmp_path_factory.mktemp("out")
    if request.param == "small":
        source = write_set(tmp_path_factory.mktemp("in"), train=small_rows(6), val=small_rows(4, 100))
        return source, prepare("toy", source, out)
    source = Path(str(PUBLISHED)) / request.param
    return source, prepare(request.param, source, out)


def test_every_row_survives_in_order(prepared: tuple[Path, PreparedData]) -> None:
    source, found = prepared
    train = read_json(next(source.glob("*-train.json*")))
    assert list(read_back(found.folder, "train")) == train
    halves = [list(read_back(found.folder, split)) for split in ("valid", "test")]
    val = read_json(next(source.glob("*-val.json*")))
    assert as_bag(halves[0] + halves[1]) == as_bag(val)
    assert found.manifest["rows"] == {"train": len(train), "valid": len(halves[0]), "test": len(halves[1])}


def test_audit_figures_equal_a_plain_count(prepared: tuple[Path, PreparedData]) -> None:
    source, found = prepared
    train = read_json(next(source.glob("*-train.json*")))
    figures = found.audit["splits"]["train"]
    assert figures["rows"] == len(train)
    assert figures["candidate_titles"] == len({title for row in train for title in row["itemList"]})
    sizes = {len(row["itemList"]) for row in train}
    assert figures["candidates_per_row"] == {"min": min(sizes), "max": max(sizes)}
    histories = [set(row["historyList"].split("::")) for row in train]
    inside = sum(row["trueSelection"] in seen for row, seen in zip(train, histories, strict=True))
    assert figures["rows_with_target_in_history"] == inside
    assert json.loads((found.folder / "audit.json").read_text("utf-8")) == found.audit


def test_that_there_was_no_test_file_is_said_everywhere(prepared: tuple[Path, PreparedData]) -> None:
    _, found = prepared
    assert found.manifest["test_from_validation"] is True
    assert "the test split was made from the validation rows" in found.table()


@pytest.mark.parametrize(
    ("name", "rows", "items", "users", "candidates"),
    [("toy", 110, 49, 10, 5)] + ([("lastfm", 2767, 4606, 122, 20)] if PUBLISHED else []),
)
def test_one_validation_file_alone(
    tmp_path: Path, name: str, rows: int, items: int, users: int, candidates: int
) -> None:
    """The published LastFM validation file: 2,767 rows of 122 users, 4,606 titles, 20 candidates each."""
    folder = (
        Path(str(PUBLISHED)) / name if name != "toy" else write_set(tmp_path / "in", val=small_rows(10, 100))
    )
    found = prepare(name, folder / f"{name}-val.json", tmp_path / "out")
    splits = found.audit["splits"].values()
    assert found.audit["items"] == items
    assert sum(split["rows"] for split in splits) == rows
    assert sum(split["users"] for split in splits) == users
    assert {size for split in splits for size in split["candidates_per_row"].values()} == {candidates}
    assert found.manifest["dealt_by"] == "users"
    assert found.manifest["test_from_validation"] is False


TITLE = st.one_of(
    st.sampled_from([*ODD, "'", '""', "None", "#N/A", "::", ":", "a::b", "[PAD]", "0", "\x00", "\ufeff"]),
    st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1, max_size=12),
).filter(str.strip)


@st.composite
def published_rows(draw: st.DrawFn) -> list[Row]:
    titles = draw(st.lists(TITLE, min_size=2, max_size=8, unique=True))
    rows = []
    for _ in range(draw(st.integers(2, 5))):
        items = draw(
            st.permutations(titles).flatmap(lambda order: st.integers(2, len(order)).map(lambda n: order[:n]))
        )
        history = "::".join(draw(st.lists(st.sampled_from(titles), max_size=4)))
        rows.append(
            {"historyList": history, "itemList": items, "trueSelection": draw(st.sampled_from(items))}
        )
    # Histories are split at the titles that some list holds; one that is in no list, such as "::" alone,
    # may be nothing but separators.
    rows[0]["itemList"] = titles
    return rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(published_rows(), published_rows())
def test_nasty_titles_survive(
    tmp_path_factory: pytest.TempPathFactory, train: list[Row], val: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("nasty")
    found = prepare("toy", write_set(folder / "in", train=train, val=val), folder / "out", progress=False)
    assert list(read_back(found.folder, "train")) == train
    halves = [*read_back(found.folder, "valid"), *read_back(found.folder, "test")]
    assert as_bag(halves) == as_bag(val)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "in", train=small_rows(3), val=small_rows(4, 100), test=small_rows(2, 200))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_test_file_is_the_test_split(source: Path, tmp_path: Path) -> None:
    found = prepare("toy", source, tmp_path / "out")
    for role, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert list(read_back(found.folder, split)) == read_json(next(source.glob(f"toy-{role}.json*")))
    assert found.manifest["test_from_validation"] is False
    assert found.manifest["dealt_by"] is None
    assert "test split was made" not in found.table()
    assert sorted(found.manifest["sources"]) == ["test", "train", "val"]


def test_the_second_time_nothing_is_written(source: Path, tmp_path: Path) -> None:
    first = prepare("toy", source, tmp_path / "out")
    before = snapshot(first.folder)
    second = prepare("toy", str(source), str(tmp_path / "out"))
    assert (first.unchanged, second.unchanged) == (False, True)
    assert snapshot(first.folder) == before
    assert (second.manifest, second.audit) == (first.manifest, first.audit)


def test_other_settings_sources_or_damage_write_again(source: Path, tmp_path: Path) -> None:
    folder = prepare("toy", source, tmp_path / "out").folder
    assert not prepare("toy", source, tmp_path / "out", seed=1).unchanged
    (folder / "toy.item").write_text("damaged")
    assert not prepare("toy", source, tmp_path / "out", seed=1).unchanged
    (folder / "toy.test.inter").unlink()
    assert not prepare("toy", source, tmp_path / "out", seed=1).unchanged
    write_set(source, val=small_rows(5, 100))
    assert not prepare("toy", source, tmp_path / "out", seed=1).unchanged
    assert prepare("toy", source, tmp_path / "out", seed=1).unchanged


def test_a_damaged_audit_is_made_again(source: Path, tmp_path: Path) -> None:
    first = prepare("toy", source, tmp_path / "out")
    (first.folder / "audit.json").write_text("{")
    second = prepare("toy", source, tmp_path / "out")
    assert second.unchanged
    assert second.audit == first.audit == json.loads((first.folder / "audit.json").read_text("utf-8"))


def test_an_audit_that_did_not_look_for_what_gives_targets_away_is_made_again(
    source: Path, tmp_path: Path
) -> None:
    first = prepare("toy", source, tmp_path / "out")
    older = {key: value for key, value in first.audit.items() if key not in ("findings", "sha256")}
    (first.folder / "audit.json").write_text(json.dumps({**older, "sha256": sha256_json(older)}))
    second = prepare("toy", source, tmp_path / "out")
    assert second.unchanged
    assert second.audit == first.audit


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(source: Path, tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "out"
    before = snapshot(prepare("toy", source, out).folder) if existing else {}
    rows = small_rows(2, 200)
    rows[-1] = {**rows[-1], "historyList": "::Title 1"}  # found only after the other files are written
    write_set(source, test=rows)
    with pytest.raises(DataError, match=r"toy-test\.json, row 22: historyList: a title is empty"):
        prepare("toy", source, out)
    assert out.exists() == existing
    assert not existing or [path.name for path in out.iterdir()] == ["toy"]
    assert not existing or snapshot(out / "toy") == before


def test_files_of_others_are_not_replaced(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.inter").write_text("mine")
    with pytest.raises(DataError, match=r"toy\.inter was not written by prepare"):
        prepare("toy", source, tmp_path / "out")
    (folder / "toy.inter").unlink()
    assert not prepare("toy", source, tmp_path / "out").unchanged, "an empty folder is no obstacle"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt was not written by prepare"):
        prepare("toy", source, tmp_path / "out", seed=1)


def test_bad_rows_are_dropped_and_counted(source: Path, tmp_path: Path) -> None:
    good = small_rows(2, 200)
    bad = [{"itemList": ["a", "b"], "trueSelection": "a"}, {**good[0], "historyList": "::a"}]
    write_set(source, test=[bad[0], *good, bad[1]])
    found = prepare("toy", source, tmp_path / "out", skip_bad_rows=True)
    assert list(read_back(found.folder, "test")) == good
    assert found.manifest["sources"]["test"]["dropped"] == 2
    assert found.manifest["sources"]["train"]["dropped"] == 0
    where, last = source / "toy-test.json", len(good) + 2
    empty, missing = (
        f"{where}, row {last}: historyList: a title is empty",
        f"{where}, row 1: historyList is missing",
    )
    assert found.remarks() == [
        "bad rows dropped: 2",
        f"  1: a title is empty; the first: {empty}, got ''",
        f"  1: historyList is missing; the first: {missing}; the row has ['itemList', 'trueSelection']",
    ]


def test_ambiguous_histories_are_reported(tmp_path: Path) -> None:
    rows = [
        {"historyList": "a::b::c", "itemList": ["a", "b", "c", "a::b"], "trueSelection": "c"},
        {"historyList": "c::d", "itemList": ["a", "b"], "trueSelection": "a"},
    ]
    found = prepare("toy", write_set(tmp_path / "in", train=rows, val=rows), tmp_path / "out")
    assert found.manifest["ambiguous_histories"] == 2
    assert found.manifest["items_only_in_histories"] == 1
    assert "can be split in several ways: 2; the longest titles were taken" in found.table()
    assert "toy-train.json.gz, row 1: 'a::b::c'" in found.table()


def test_rows_that_continue_one_another_are_one_user(source: Path, tmp_path: Path) -> None:
    found = prepare("toy", source, tmp_path / "out")
    lines = (found.folder / "toy.train.inter").read_text("utf-8").split("\n")[1:-1]
    assert [line.split("\t")[0] for line in lines] == [
        f"train-{user:06d}" for user in (1, 2, 3) for _ in range(11)
    ]


def test_short_or_unrelated_histories_do_not_make_one_user(tmp_path: Path) -> None:
    """A history of one title proves nothing, even if it is the target of the row before."""
    items = ["a", "b", "c"]
    rows = [
        {"historyList": text, "itemList": items, "trueSelection": "b"}
        for text in ("a", "b", "", "c::a", "b::a")
    ]
    found = prepare("toy", write_set(tmp_path / "in", train=rows, val=rows), tmp_path / "out")
    assert found.audit["splits"]["train"]["users"] == 5


def test_halves_share_no_user_and_follow_the_seed(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", train=small_rows(2), val=small_rows(8, 100))
    splits = []
    for number, seed in enumerate((1, 1, 2)):
        found = prepare("toy", source, tmp_path / f"out{number}", seed=seed)
        users = [
            {
                line.split("\t")[0]
                for line in (found.folder / f"toy.{split}.inter").read_text("utf-8").split("\n")[1:-1]
            }
            for split in ("valid", "test")
        ]
        assert not users[0] & users[1]
        assert found.manifest["rows"]["valid"] == found.manifest["rows"]["test"] == 44
        splits.append(users)
    assert splits[0] == splits[1] != splits[2]


def test_dealing_falls_back_to_rows_when_there_are_too_few_users() -> None:
    halves = {"valid": 0.5, "test": 0.5}
    splits, by = deal(["u"] * 10, halves, 0)
    assert (by, splits.count("valid"), splits.count("test")) == ("rows", 5, 5)
    splits, by = deal([str(n) for n in range(100)], {"train": 0.8, "valid": 0.1, "test": 0.1}, 0)
    assert (by, splits.count("train"), splits.count("valid"), splits.count("test")) == ("users", 80, 10, 10)
    with pytest.raises(DataError, match="1 rows are too few"):
        deal(["u"], halves, 0)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a\\b", "a.b", "-a", "a b", "ä", "a" * 101, "a\n"]
)
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="letters, digits, dashes and underscores"):
        prepare(name, tmp_path, tmp_path / "out")


def test_plain_sequences_are_prepared(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(
        "user,item,time,title,mood\nu,1,2,B,x\nu,2,1,A,x\nu,3,,C,x\nu,4,now,D,x\nu,,4,E,x\n"
    )
    found = prepare("own", tmp_path / "own.csv", tmp_path / "out", skip_bad_rows=True)
    assert (found.folder / "own.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\nu\t2\t1\nu\t1\t2\n"
    )
    assert found.manifest["rows"] == {"all": 2}
    lines = found.table().split("\n")
    place = lines.index("bad rows dropped: 3")
    assert lines[place + 1].startswith(
        f"  2: a time cannot be read; the first: {tmp_path}/own.csv, row 3: time must"
    )
    assert lines[place + 2].startswith("  1: item id is what RecBole reads as missing; the first: ")
    assert "columns left out: mood" in found.table()
    assert prepare("own", tmp_path / "own.csv", tmp_path / "out", skip_bad_rows=True).unchanged


def test_the_manifest_names_the_hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {role: next(source.glob(f"toy-{role}.json*")) for role in ("train", "val", "test")}
    monkeypatch.setattr("recbole_dynamicpo.data.download.download_published", lambda dataset: files)
    assert (
        prepare("steam", None, tmp_path / "out").manifest["settings"]["hub"]
        == "xingyuHuxingyu/DynamicPO-Data"
    )
    assert prepare("steam", "hub", tmp_path / "out").unchanged


def test_a_crash_between_two_renames_is_healed(source: Path, tmp_path: Path) -> None:
    first = prepare("toy", source, tmp_path / "out")
    first.folder.rename(tmp_path / "out" / ".toy.old")
    assert prepare("toy", source, tmp_path / "out").unchanged


def test_an_older_version_is_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("toy", source, tmp_path / "out")
    monkeypatch.setattr(prepare_module, "VERSION", prepare_module.VERSION + 1)
    assert not prepare("toy", source, tmp_path / "out").unchanged


@pytest.mark.filterwarnings("ignore")  # RecBole's use of pandas warns of the future on every load
def test_recbole_reads_the_benchmark_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories, targets and candidates reach RecBole's tensors in order, an empty history as length 0."""
    from recbole.config import Config
    from recbole.data import create_dataset

    val = [{"historyList": "", "itemList": ODD, "trueSelection": "NA"}, *small_rows(2, 100)]
    found = prepare(
        "toy", write_set(tmp_path / "in", train=small_rows(2), val=val, test=val), tmp_path / "out"
    )
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)
    config = Config(
        model="SASRec",
        dataset="toy",
        config_dict={
            "data_path": str(tmp_path / "out"),
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list", "candidate_id_list"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id", "candidate_id_list"]},
            "train_neg_sample_args": None,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "mode": "full",
                "group_by": "user",
            },
            "use_gpu": False,
        },
    )
    dataset = create_dataset(config)
    lines = (found.folder / "toy.item").read_bytes().decode("utf-8").split("\n")[1:-1]
    titles = dict(line.split("\t") for line in lines)
    names = dataset.field2id_token["item_id"]
    for split, part in zip(("train", "valid", "test"), dataset.build(), strict=True):
        feat = part.inter_feat
        rows = []
        for index in range(len(feat)):
            history = feat["item_id_list"][index][: feat["item_length"][index]]
            rows.append(
                {
                    "historyList": "::".join(titles[names[item]] for item in history),
                    "itemList": [titles[names[item]] for item in feat["candidate_id_list"][index] if item],
                    "trueSelection": titles[names[feat["item_id"][index]]],
                }
            )
        assert rows == list(read_back(found.folder, split))
