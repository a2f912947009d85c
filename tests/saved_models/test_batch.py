"""A file of users ranked into files: the same as one by one, in every format, whatever kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.saved_models.batch import BatchResult, rank_file
from recbole_dynamicpo.serving.recommender import Recommender

from ..helpers.saved_recommender import TITLES, write_recommender

HISTORIES: list[Any] = [["Bear"], [], ["Delta", "nobody knows it"], ["4", "Forest"], ["Canyon"] * 3]


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recommender(tmp_path_factory.mktemp("kept") / "it", tiny_backbone, priors=["popularity"])


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return load_recommender(folder)


def write_users(path: Path, histories: list[Any]) -> Path:
    users = [f"u{number}" for number in range(len(histories))]
    if path.suffix == ".parquet":
        kind = pyarrow.list_(pyarrow.string())
        parquet.write_table(pyarrow.table({"user": users, "history": pyarrow.array(histories, kind)}), path)
    elif path.suffix == ".csv":
        lines = [json.dumps(history).replace('"', '""') for history in histories]
        rows = [f'{user},"{line}"' for user, line in zip(users, lines, strict=True)]
        path.write_text("\n".join(["user,history", *rows]) + "\n")
    else:
        pairs = zip(users, histories, strict=True)
        path.write_text("".join(json.dumps({"user": u, "history": h}) + "\n" for u, h in pairs))
    return path


def read_parts(out: Path) -> list[dict[str, Any]]:
    return [
        row for part in sorted(out.glob("part-*.parquet")) for row in parquet.read_table(part).to_pylist()
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_file_is_ranked_as_its_users_one_by_one(
    suffix: str, recommender: Recommender, tmp_path: Path
) -> None:
    source = write_users(tmp_path / f"users{suffix}", HISTORIES)
    found = rank_file(recommender, source, tmp_path / "out", k=3, part_rows=2, progress=False)
    assert found == BatchResult(parts=3, ranked=5, rejected=0, unknown=1, examples=("nobody knows it",))
    rows = read_parts(tmp_path / "out")
    for number, history in enumerate(HISTORIES):
        mine = [row for row in rows if row["user"] == f"u{number}"]
        alone = recommender.rank(history, k=3)
        assert [row["rank"] for row in mine] == [1, 2, 3]
        assert [row["title"] for row in mine] == [item.title for item in alone]
        assert [row["ids"] for row in mine] == [list(item.ids) for item in alone]
        assert [row["score"] for row in mine] == pytest.approx([item.score for item in alone], abs=1e-5)


def test_rows_that_cannot_be_ranked_are_set_aside(recommender: Recommender, tmp_path: Path) -> None:
    histories = [["Bear"], "Bear", None, [True], [["Bear"]], [99], list(TITLES), ["x" * 4000], ["Delta"]]
    source = write_users(tmp_path / "users.jsonl", histories)
    with source.open("a") as handle:
        handle.write('{"history": ["Bear"]}\n{"user": "u10"\n\n[1]\n')
    with source.open("ab") as handle:
        handle.write(b'"\xff"\n{"user": "u13", "history": ["Delta"]}\n')
    out = tmp_path / "out"
    found = rank_file(recommender, source, out, part_rows=4, progress=False)
    assert (found.parts, found.ranked, found.rejected) == (4, 4, 10)
    lines = [line for path in sorted(out.glob("rejected-*")) for line in path.read_text().splitlines()]
    aside = [json.loads(line) for line in lines]
    assert [row["row"] for row in aside] == [2, 3, 4, 5, 6, 7, 10, 11, 12, 13]
    assert aside[0]["reason"] == "history: got 'Bear', wanted a list of titles and item ids"
    assert "item id 99" in aside[4]["reason"]
    assert "every title of the catalogue" in aside[5]["reason"]
    assert aside[6] == {"row": 10, "user": None, "reason": "user: missing"}
    reasons = ["no JSON object", "got [1], wanted an object", "not UTF-8; save the file as UTF-8"]
    assert all(reason in row["reason"] for row, reason in zip(aside[7:], reasons, strict=True))
    assert {row["user"] for row in read_parts(out)} == {"u0", "u7", "u8", "u13"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("users.txt", "", "wanted a file of users that ends in"),
        ("gone.csv", None, "no such file"),
        ("users.csv", "user,items\n1,[]\n", "has the columns user, items; wanted user and history"),
        ("users.csv", "", "has no columns; wanted user and history"),
        ("users.parquet", "no Parquet", "not a readable Parquet file"),
    ],
)
def test_a_file_that_is_none_is_named(
    name: str, text: str | None, message: str, recommender: Recommender, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        rank_file(recommender, tmp_path / name, tmp_path / "out", progress=False)
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_one_batch(recommender: Recommender, tmp_path: Path) -> None:
    source = write_users(tmp_path / "users.jsonl", HISTORIES)
    rank_file(recommender, source, tmp_path / "out", k=3, progress=False)
    with pytest.raises(SettingsError, match=r"holds a batch of another k \(3, now 4\)"):
        rank_file(recommender, source, tmp_path / "out", k=4, progress=False)
    write_users(source, [*HISTORIES[:2], ["Canyon", "nobody knows it"], *HISTORIES[3:]])
    with pytest.raises(SettingsError, match="holds a batch of another input"):
        rank_file(recommender, source, tmp_path / "out", k=3, progress=False)


def test_a_batch_of_an_earlier_version_is_told(recommender: Recommender, tmp_path: Path) -> None:
    source = write_users(tmp_path / "users.jsonl", HISTORIES)
    rank_file(recommender, source, tmp_path / "out", progress=False)
    (path,) = (tmp_path / "out").glob("*.json")
    kept = json.loads(path.read_text())
    del kept["first_stage"]
    path.write_text(json.dumps(kept))
    with pytest.raises(SettingsError, match=r"holds a batch of another first_stage \(None, now "):
        rank_file(recommender, source, tmp_path / "out", progress=False)


def test_titles_that_the_catalogue_does_not_have_are_counted(
    recommender: Recommender, tmp_path: Path
) -> None:
    """In rows of all parts, those too that were there already, and in no row that has none."""
    histories = [["a", "Bear", "b"], ["a"], ["Bear", 4], "Bear", [True], ["c", "d"], ["e", "4"]]
    source = write_users(tmp_path / "users.jsonl", histories)
    for _ in range(2):
        found = rank_file(recommender, source, tmp_path / "out", part_rows=2, progress=False)
        assert (found.unknown, found.examples) == (4, ("a", "b", "c"))
        assert (found.ranked, found.rejected) == (5, 2)


def test_by_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_users(tmp_path / "users.csv", HISTORIES)
    command = ["rank", "--model", str(folder), "--input", str(source), "--out", str(tmp_path / "out")]
    command += ["-k", "2"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "5 users ranked in 1 part, 0 rows set aside" in said.out
    assert (
        "--input: 1 of 5 histories have titles that are not in the catalogue, such as 'nobody knows it'; "
        "such a title stands in the prompt as text, and the priors pass over it\n"
    ) in said.err
    assert len(read_parts(tmp_path / "out")) == 10
    assert main(["rank", "--model", str(folder)]) != 0
    assert "either --history or --input" in capsys.readouterr().err


_RUN = (
    "import resource, sys; from pathlib import Path; from recbole_dynamicpo import load_recommender; "
    "from recbole_dynamicpo.saved_models.batch import rank_file; "
    "place, rows = [Path(text) for text in sys.argv[1:4]], int(sys.argv[4]); "
    "rank_file(load_recommender(place[0]), place[1], place[2], part_rows=rows, progress=False); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def in_a_process(folder: Path, source: Path, out: Path, part_rows: int) -> subprocess.Popen[str]:
    arguments = [str(value) for value in (folder, source, out, part_rows)]
    command = [sys.executable, "-W", "ignore", "-c", _RUN, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_batch_that_is_killed_twice_ends_with_the_same_bytes(
    folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    """ROBUSTNESS_USERS=100000 ranks so many; memory grows by a tenth at most from an eighth to all."""
    users = int(os.environ.get("ROBUSTNESS_USERS", "480"))
    part_rows = users // 24
    histories = ([[title] for title in TITLES] * (users // len(TITLES) + 1))[:users]
    source = write_users(tmp_path / "users.jsonl", [*histories, [True]])
    few = write_users(tmp_path / "few.jsonl", histories[: users // 8])
    peaks = []
    for name, asked in (("few", few), ("whole", source)):
        said, _ = in_a_process(folder, asked, tmp_path / name, part_rows).communicate()
        peaks.append(int(said))
    assert peaks[1] < 1.1 * peaks[0]
    out, parts = tmp_path / "killed", len(list((tmp_path / "whole").glob("part-*")))
    for reached in (2, 9):
        process = in_a_process(folder, source, out, part_rows)
        deadline = time.monotonic() + 500
        while len(list(out.glob("part-*"))) < reached:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(list(out.glob("part-*"))) < parts
    found = rank_file(recommender, source, out, part_rows=part_rows, progress=False)
    assert found == BatchResult(parts=25, ranked=users, rejected=1)
    files = sorted(
        path.name for path in (tmp_path / "whole").iterdir() if path.suffix in (".parquet", ".jsonl")
    )
    assert len(files) == parts + 1
    assert not list(out.glob(".*.tmp"))
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
