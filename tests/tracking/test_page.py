"""A run as one page of HTML: complete, safe to open, and sufficient to itself."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.cli import main
from recbole_dynamicpo.evaluation.exposure import Exposure, beyond_accuracy
from recbole_dynamicpo.evaluation.report import VIEWS, Contestant, summarize
from recbole_dynamicpo.evaluation.segments import by_segment
from recbole_dynamicpo.storage import write_json

from ..helpers.run_folders import PARAMS, RunFolder, toy_record

EVIL = "<script>alert('x')</script>"
RANKS = {"popularity": [3, 1, 2, 5], EVIL: [2, 2, 2, 2], "after DynamicPO": [1, 1, 2, 4]}


class Page(HTMLParser):
    """Keeps every tag with its attributes, and the text of every cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((dict(attrs).get("class") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            kind, text = self.rows[-1][-1]
            self.rows[-1][-1] = kind, text + data


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    params = {**PARAMS, "beta": 7.5, "mlflow_tracking_uri": "http://me:secret@host"}
    run = RunFolder(tmp_path / "run", toy_record(params=params)).whole()
    contestants = [Contestant(name, np.array(ranks), np.arange(len(ranks))) for name, ranks in RANKS.items()]
    some = {"all rows": np.ones(4, bool), "history of 0 to 5": np.array([True, False, True, False])}
    report = {
        "contestants": [summarize(one) for one in contestants],
        "segments": {"candidates": by_segment(contestants, some, VIEWS["candidates"], "popularity")},
        "seconds": {"sft": 3.2},
        "notes": [f"a note & {EVIL}"],
    }
    write_json(run.path / "report.json", report)
    return run


def page_of(run: RunFolder) -> tuple[str, Page]:
    path = run.path.parent / "out" / "report.html"
    assert main(["show", str(run.path), "--html", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_it_fetches_nothing(run: RunFolder) -> None:
    text, page = page_of(run)
    named = [tags.get(name) for _, tags in page.tags for name in ("src", "href", "action", "srcset")]
    assert all(value.startswith("data:image/png;base64,") for value in named if value)
    assert "default-src 'none'" in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in text
    assert page.open == []


def test_the_table_has_intervals_and_the_winner_of_each_column(run: RunFolder) -> None:
    _, page = page_of(run)
    rows = {row[0][1]: row[1:] for row in page.rows if len(row) == 5}
    assert list(rows) == ["", *RANKS]
    for name, ranks in RANKS.items():
        line = summarize(Contestant(name, np.array(ranks), np.arange(len(ranks))))
        for (_, text), key in zip(rows[name], ("hr_at_1", "ndcg_at_5", "mrr"), strict=False):
            shown = [float(number) for number in re.findall(r"\d\.\d{4}", text)]
            assert shown == pytest.approx([line[key], line[f"{key}_low"], line[f"{key}_high"]], abs=5e-5)
        assert rows[name][3][1] == "4"
    marked = {name: ["best" in kind for kind, _ in cells] for name, cells in rows.items() if name}
    best = {"popularity": [False] * 4, EVIL: [False] * 4, "after DynamicPO": [True, True, True, False]}
    assert marked == best


def test_it_holds_figures_segments_settings_and_provenance(run: RunFolder) -> None:
    text, page = page_of(run)
    images = {str(t["alt"]): str(t["src"]) for tag, t in page.tags if tag == "img"}
    assert {"loss and validation", "reward", "boundary", "beta", "hit rate"} == set(images)
    for source in images.values():
        assert base64.b64decode(source.partition(",")[2]).startswith(b"\x89PNG")
    for wanted in (
        "history of 0 to 5",
        "d" * 64,
        "c" * 40,
        "not as the defaults",
        "seconds of sft",
        "RecBole",
    ):
        assert wanted in text
    cells = [tuple(text for _, text in row) for row in page.rows]
    assert ("beta", "7.5") in cells
    assert ("mlflow_tracking_uri", "http://host") in cells  # no password


def test_what_the_first_titles_show(run: RunFolder) -> None:
    """Two titles of four, one of them never taken."""
    path, shown = run.path / "report.json", Exposure(4, 2)
    shown.add(np.array([[0, 3]]), np.array([7]))
    line = beyond_accuracy(EVIL, shown, np.array([9, 2, 1, 0]))
    write_json(path, {**json.loads(path.read_text()), "beyond": [line]})
    text, page = page_of(run)
    (cells,) = [[text for _, text in row[1:]] for row in page.rows if len(row) == 8 and row[0][1] == EVIL]
    assert cells == ["0.500", "0.500", f"{line['novelty']:.3f}", "0.500", "0.000", "0.000", "0.500"]
    assert EVIL not in text


def test_names_are_text_and_no_tags(run: RunFolder) -> None:
    text, _ = page_of(run)
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_reports_of_earlier_versions_show_what_has_an_interval(run: RunFolder) -> None:
    path = run.path / "report.json"
    report: Any = json.loads(path.read_text())
    for line in report["contestants"]:
        for key in [key for key in line if re.match(r"(mrr|ndcg.*)_(low|high)", key)]:
            del line[key]
    write_json(path, report)
    _, page = page_of(run)
    assert [text for _, text in page.rows[0]] == ["", "HR@1", "rows"]


def test_a_damaged_report_is_named_and_no_page_is_left(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(run.path / "report.json", {"contestants": [{"name": "x"}]})
    assert main(["show", str(run.path), "--html", str(tmp_path / "r.html")]) == 2
    assert "report.json: not a readable report" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
