"""The demo: what its page answers, and a real page asked by its API."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.serving.demo import Demo, load_demo

from ..helpers.saved_recommender import BY_POPULARITY, write_recommender

START_SECONDS = 120.0


@pytest.fixture(scope="module")
def run(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the adapters of both stages."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    write_recommender(folder / "sft", tiny_backbone, priors=["popularity"], seed=3)
    write_recommender(folder / "preference", tiny_backbone, priors=["popularity"], seed=4)
    return folder


@pytest.fixture(scope="module")
def demo(run: Path) -> Demo:
    return load_demo(str(run))


def test_a_run_brings_the_model_before_preference_training(run: Path, demo: Demo) -> None:
    now, before = demo.answer(["Bear"], 5)
    assert demo.headers(demo.model) == ["rank", "title", "score, nats", "prior", "language model"]
    for rows, stage in ((now, "preference"), (before, "sft")):
        expected = load_recommender(run / stage).rank(["Bear"], k=5, explain=True)
        assert [row[1] for row in rows] == [item.title for item in expected]
        assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
        for row, item in zip(rows, expected, strict=True):
            assert row[2:] == pytest.approx([item.score, item.prior, item.language_model], abs=6e-4)
    assert now != before


def test_a_folder_alone_and_a_run_that_ends_with_sft_have_none_to_compare_with(
    run: Path, tmp_path: Path
) -> None:
    assert load_demo(str(run / "preference")).answer(["Bear"], 3)[1] == []
    ended = Path(shutil.copytree(run, tmp_path / "run"))
    (ended / "final.json").write_text(json.dumps({"stage": "sft"}))
    assert load_demo(str(ended)).before is None


def test_the_vocabulary_has_no_parts(tiny_backbone: Path, tmp_path: Path) -> None:
    plain = load_demo(str(write_recommender(tmp_path / "plain", tiny_backbone)))
    assert plain.headers(plain.model) == ["rank", "title", "score, nats"]
    rows, _ = plain.answer(None, 4)
    assert [len(row) for row in rows] == [3] * 4


def test_titles_are_offered_by_popularity_and_others_may_be_typed(demo: Demo) -> None:
    assert demo.titles() == BY_POPULARITY
    assert len(demo.answer(["never seen anywhere"], 50)[0]) == 6
    with pytest.raises(DataError, match="history"):
        demo.answer(["  "], 3)


def test_without_the_extra_it_says_what_to_install_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "nowhere"]) == 2
    assert "pip install 'recbole-dynamicpo[demo]'" in capsys.readouterr().err


def _command(run: Path, port: int) -> list[str]:
    arguments = ["demo", "--model", str(run), "--port", str(port)]
    code = f"import sys; from recbole_dynamicpo.cli import main; sys.exit(main({arguments!r}))"
    return [sys.executable, "-c", code]


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[str]:
    """A page that the command shows, in a process of its own that ends when it is told to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log, environment = run.parent / "demo.log", {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(_command(run, port), stdout=out, stderr=out, env=environment)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while f"{address} (end with Ctrl-C)" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 128 + signal.SIGTERM, log.read_text()


@pytest.mark.servers
def test_the_page_answers_by_its_api(page: str, demo: Demo) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(page, verbose=False, analytics_enabled=False)
    found = client.predict(["Bear", "Never seen"], 4, api_name="/rank")
    expected = demo.answer(["Bear", "Never seen"], 4)
    for table, rows in zip(found, expected, strict=True):
        assert table["headers"] == demo.headers(demo.model)
        assert [row[1] for row in table["data"]] == [row[1] for row in rows]
        for row, wanted in zip(table["data"], rows, strict=True):
            assert [float(number) for number in row[2:]] == pytest.approx(wanted[2:], abs=2e-3)
    with pytest.raises(AppError, match="history"):
        client.predict([" "], 4, api_name="/rank")


@pytest.mark.servers
def test_the_page_names_no_other_machine_to_fetch_from(page: str) -> None:
    """Neither fonts nor scripts nor reports of use; links that a reader may follow are none of these."""
    with urllib.request.urlopen(page, timeout=60) as answer:
        text = answer.read().decode()
    fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=[\"'](https?:[^\"']+)", text)
    fetched += re.findall(r"<link[^>]+rel=[\"']stylesheet[^>]+href=[\"'](https?:[^\"']+)", text)
    assert [address for address in fetched if not address.startswith(page)] == []
    with urllib.request.urlopen(f"{page}/config", timeout=60) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert "fonts.googleapis.com" not in json.dumps(config)


@pytest.mark.servers
def test_a_port_that_is_taken_is_named(page: str, run: Path) -> None:
    port = int(page.rpartition(":")[2])
    done = subprocess.run(_command(run, port), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--port: got {port}, which cannot be listened on" in done.stderr
