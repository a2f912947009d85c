"""Readers of data, settings and templates, each with a valid specimen and a judge of what it returns."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_dynamicpo.data.bad_rows import BadRows
from recbole_dynamicpo.data.catalogue import read_titles
from recbole_dynamicpo.data.published import PublishedRow, read_rows
from recbole_dynamicpo.data.sequences import Sequences, read_sequences, write_sequences
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.evaluation.ranks import read_ranks, write_ranks
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.scoring.prompts import Templates, load_templates

from ..conftest import write_dataset
from ..helpers.published_data import published_rows
from .harness import Target

TITLES = ["Toy Story", "Heat (1995)", 'The "Best"', "Émile :: 東京", "NA", "a,b", "😀 film", "::"]


# --- data files ---


def item(folder: Path) -> Target:
    file = folder / "x.item"
    lines = [f"i{number}\t{title}\t{number}" for number, title in enumerate(TITLES)]
    file.write_text(
        "item_id:token\ttitle:token_seq\tyear:float\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )

    def right(titles: dict[str, str], data: bytes) -> bool:
        """Each title stands behind its id, cell for cell, and no line is forgotten."""
        head, *rows = data.decode().split("\n")
        names = [cell.partition(":")[0] for cell in head.removeprefix("\ufeff").split("\t")]
        title = next(name for name in ("movie_title", "title", "name") if name in names)
        rows = [row.removesuffix("\r") for row in rows]
        cells = [row.split("\t") for row in rows if row]
        return titles == {row[names.index("item_id")]: row[names.index(title)] for row in cells}

    return Target(
        "titles (.item)", file, lambda: read_titles(file, id_field="item_id", title_field=None), right
    )


def inter(folder: Path) -> Target:
    """The interactions as RecBole reads them for us, and our splits of them."""
    home = write_dataset(folder, "toy", users=4, items=30)
    file = home / "toy" / "toy.inter"
    file.write_text("\n".join(file.read_text().split("\n")[:26]) + "\n")
    settings = {
        "data_path": str(home), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "num_candidates": 3, "num_negatives": 2, "state": "ERROR", "eval_rows": 3, "valid_rows": 3,
        "checkpoint_dir": str(folder),
    }  # fmt: skip

    def read() -> Any:
        data = DynamicPODataset(PlainConfig("DynamicPO", "toy", [], settings))
        data.build()
        used, _ = data.subsampled()["test"]
        assert used == len(data.built["test"].inter_feat)
        return data

    def right(data: Any, content: bytes) -> bool:
        """Each user's items are the lines' in the order of their times."""
        head, *rows = content.decode().removesuffix("\n").split("\n")
        names = [cell.partition(":")[0] for cell in head.split("\t")]
        at = [names.index(name) for name in ("user_id", "item_id", "timestamp")]
        lines = [row.rstrip("\r").split("\t") for row in rows if row.strip("\r")]
        cells = [[line[place] for place in at] for line in lines]
        found: dict[str, list[tuple[float, str]]] = {}
        for user, item_, time in cells:
            found.setdefault(user, []).append((float(time), item_))
        return all(
            sorted(found[row[0]], key=lambda pair: pair[0])[-1][1] == row[1]
            for row in _test_rows(data)
            if len(found[row[0]]) > 2
        )

    return Target("interactions (.inter)", file, read, right, named=False, slow=2)


def _test_rows(data: Any) -> list[tuple[str, str]]:
    rows = data.built["test"].inter_feat
    users = data.id2token(data.uid_field, rows[data.uid_field].numpy())
    items = data.id2token(data.iid_field, rows[data.iid_field].numpy())
    return list(zip(map(str, users), map(str, items), strict=True))


def _json_rows(data: bytes, rows: list[PublishedRow]) -> bool:
    """The rows are those that the standard library finds at the same places."""
    values = json.loads(data.decode("utf-8-sig", "surrogateescape"), strict=False)
    same = [values[row.number - 1] for row in rows]
    return all(
        (row.history, list(row.candidates), row.target)
        == (value["historyList"], value["itemList"], value["trueSelection"])
        for row, value in zip(rows, same, strict=True)
    )


def published(folder: Path) -> Target:
    file = folder / "lastfm-train.json"
    file.write_text(json.dumps(published_rows(2, seed=1)), encoding="utf-8")
    return Target(
        "published rows (.json)", file, lambda: list(read_rows(file, BadRows(skip=True))),
        lambda rows, data: _json_rows(data, rows), structure=True,
    )  # fmt: skip


def published_strict(folder: Path) -> Target:
    target = published(folder)
    target.name, target.read = "published rows, stopping", lambda: list(read_rows(target.file, BadRows()))
    return target


def published_gz(folder: Path) -> Target:
    file = folder / "lastfm-val.json.gz"
    file.write_bytes(gzip.compress(json.dumps(published_rows(2, seed=2)).encode(), mtime=0))
    return Target(
        "published rows (.json.gz)", file, lambda: list(read_rows(file, BadRows(skip=True))),
        lambda rows, data: _json_rows(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, rows),
    )  # fmt: skip


def sequences(folder: Path, suffix: str) -> Target:
    file = folder / f"own{suffix}"
    rows = [(f"u{n % 3}", f"i{n % 5}", str(1_700_000_000 + 7 * n), TITLES[n % 5]) for n in range(12)]
    names = ("user", "item", "time", "title")
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        parquet.write_table(pyarrow.table({**columns, "time": [int(time) for time in columns["time"]]}), file)
    elif suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([names, *rows])
    else:
        file.write_text("\n".join("\t".join(row) for row in [names, *rows]) + "\n", encoding="utf-8")

    def right(found: Sequences, data: bytes) -> bool:
        """What is written can be split into the same cells again, times rising within each user."""
        write_sequences(found, folder, "again")
        inter_ = [line.split("\t") for line in (folder / "again.inter").read_text("utf-8").split("\n")[1:-1]]
        items = [line.split("\t") for line in (folder / "again.item").read_text("utf-8").split("\n")[1:-1]]
        times: dict[str, list[float]] = {}
        for user, _, time in found.interactions:
            times.setdefault(user, []).append(float(time))
        return (
            [tuple(row) for row in inter_] == found.interactions
            and {row[0]: row[1] for row in items} == found.titles
            and all(series == sorted(series) and all(map(math.isfinite, series)) for series in times.values())
        )

    return Target(
        f"plain sequences ({suffix})", file, lambda: read_sequences(file, BadRows(skip=True)), right
    )


def ranks(folder: Path) -> Target:
    file = folder / "ranks.parquet"
    rows, users = [str(n) for n in range(40)], [f"u{n % 7}" for n in range(40)]
    values = [1 + n * n % 6 for n in range(40)]
    write_ranks(file, rows, users, values)

    def right(found: Any, data: bytes) -> bool:
        """Pages carry checksums: what is read is what was written."""
        return bool((found.row_ids, found.user_ids, found.ranks.tolist()) == (rows, users, values))

    return Target("ranks (.parquet)", file, lambda: read_ranks(file), right)


# --- settings and templates ---


def settings_file(folder: Path) -> Target:
    file = folder / "own.yaml"
    file.write_text(
        "# mine\nobjective: dmpo\nbeta: 1e-1\nlora_targets: [q_proj, v_proj]\nsft_adapter: null\n"
        "load_col: {inter: [user_id, item_id, timestamp]}\nseed: 7\ndynamic: true\ntopk: [1, 5]\n"
        "data_note: 'it''s: one'\nbase: &b {x: 1}\nmore: *b\n",
        encoding="utf-8",
    )

    def right(values: dict[str, Any], data: bytes) -> bool:
        return all(isinstance(key, str) for key in values) and len(repr(values)) < 10**7

    return Target(
        "settings (.yaml)",
        file,
        lambda: PlainConfig._load_config_files(None, [str(file)]),
        right,  # type: ignore[arg-type]
    )


def run_settings(folder: Path) -> Target:
    """The same, up to checked settings of a run."""
    from recbole_dynamicpo.settings import read_settings

    target = settings_file(folder)
    text = target.file.read_text().replace(
        "base: &b {x: 1}\nmore: *b\n", "metrics: ['Hit', 'NDCG']\nvalid_metric: NDCG@5\nstopping_step: 3\n"
    )
    target.file.write_text(text)

    def read() -> Any:
        return read_settings(PlainConfig("DynamicPO", "toy", [str(target.file)], {"state": "ERROR"}))

    target.name, target.read, target.named = "settings of a run (.yaml)", read, False
    target.right = lambda found, data: found.num_negatives < found.num_candidates
    return target


def template(folder: Path) -> Target:
    file = folder / "own.txt"
    file.write_text(
        "He liked {history:, }.\nOf {num_candidates}:\n{candidates}\nAnswer:\n---\n"
        "{num_history} films: {history}\n",
        encoding="utf-8",
    )

    def right(found: Templates, data: bytes) -> bool:
        """Every template writes all titles of the history, unchanged."""
        texts = [found.render(TITLES, TITLES, number) for number in range(len(found))]
        return all(title.strip() in text for text in texts for title in TITLES)

    return Target("prompt template", file, lambda: load_templates(str(file), folder / "none"), right)


DATA: dict[str, Callable[..., Target]] = {
    "item": item,
    "inter": inter,
    "published": published,
    "published-strict": published_strict,
    "published-gz": published_gz,
    "csv": lambda folder: sequences(folder, ".csv"),
    "tsv": lambda folder: sequences(folder, ".tsv"),
    "parquet": lambda folder: sequences(folder, ".parquet"),
    "ranks": ranks,
    "settings": settings_file,
    "run-settings": run_settings,
    "template": template,
}
