"""The command line: what users type, what they read, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.cli import main, run_recbole
from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.evaluation.ranks import read_ranks, write_ranks
from recbole_dynamicpo.evaluation.report import Contestant, summarize
from recbole_dynamicpo.scoring import prompt_lengths as prompt_check
from recbole_dynamicpo.scoring.prompt_lengths import load_prompt_check

from .helpers.published_data import AS_PUBLISHED, CANDIDATES, small_published

# RecBole 1.2.1 counts the items of pre-split rows by a deprecated way of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:using .* in Series.agg:FutureWarning")


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


def save_ranks(folder: Path, ranks: list[int]) -> str:
    rows = [str(row) for row in range(len(ranks))]
    write_ranks(folder / "ranks.parquet", rows, rows, np.array(ranks))
    return str(folder)


# --- the whole way: prepare, run, evaluate, compare, baselines, rank ---


@pytest.fixture
def trained(
    toy_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, list[str]]:
    """The folder of a run on prepared data, and the flags that name the data."""
    source, data = small_published(tmp_path / "in"), tmp_path / "prepared"
    assert main(["prepare", "--dataset", "lastfm", "--source", str(source), "--out", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "lastfm: " in printed
    assert "the test split was made from the validation rows" in printed
    assert "prompts that are too long were not counted: name a backbone with --backbone" in printed
    assert f"written: {data / 'lastfm'}\n" in printed
    assert printed.endswith(f"next: run_recbole --model=DynamicPO --dataset=lastfm --data_path={data}\n")
    kept = {k: v for k, v in toy_settings.items() if k not in ("load_col", "data_path", "num_candidates")}
    kept |= {"data_path": data, "seed": 11, "eval_rows": 9, **AS_PUBLISHED}
    assert run_recbole(["--model=DynamicPO", "--dataset=lastfm", *flags(kept)]) == 0
    (run,) = Path(toy_settings["checkpoint_dir"]).glob("DynamicPO-*")
    return run, ["--dataset", "lastfm", "--data-path", str(data)]


def test_from_published_files_to_a_comparison(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = trained
    first, second = tmp_path / "likelihood", tmp_path / "generate"
    evaluate = ["evaluate", *data, "--model"]
    capsys.readouterr()

    assert main([*evaluate, str(run), "--rows", "9", "--out", str(first)]) == 0
    printed = capsys.readouterr().out
    assert "the test rows were made from the validation rows: no test file was given" in printed
    assert "test rows: 9 of 12" in printed
    ours, its = read_ranks(first), read_ranks(run)
    assert (ours.row_ids, ours.user_ids) == (its.row_ids, its.user_ids)  # the seed is taken from the run
    assert ours.ranks.tolist() == its.ranks.tolist()

    protocol = ["--rows", "0", "--protocol", "generate", "--batch-size", "5", "--out", str(second)]
    assert main([*evaluate, str(run / "preference"), *protocol]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("rows                12\nHR@1, generated     0.0000")
    figures = json.loads((second / "report.json").read_text())
    assert figures["generate"]["likelihood_hits"] == round(12 * figures["likelihood"]["hr_at_1"])
    answers = [json.loads(line) for line in (second / "answers.jsonl").read_text().splitlines()]
    assert [answer["row_id"] for answer in answers] == read_ranks(second).row_ids
    assert {"row_id", "target", "answer"} == answers[0].keys()

    assert main(["compare", str(run), str(first)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"the same 9 rows of \d users, a user's being one observation;", printed)
    assert "only A ranks first: 0; only B: 0; p by users = 1" in printed
    assert main(["compare", str(run), str(second)]) == 2
    assert "a paired comparison needs both runs evaluated on the same rows" in capsys.readouterr().err

    tiny = ["--epochs=1", "--hidden_size=8", "--inner_size=8", "--eval_rows=9", "--seed=11"]
    quiet = ["--show_progress=False", "--state=WARNING", f"--checkpoint_dir={tmp_path / 'base'}"]
    assert main(["baselines", *data, *tiny, *quiet]) == 0
    (fresh,) = (tmp_path / "base").glob("baselines-lastfm-*")
    assert main(["compare", str(fresh / "SASRec"), str(run)]) == 2
    assert "ranked rows with other candidates, histories, places, targets" in capsys.readouterr().err
    shutil.rmtree(fresh)
    assert main(["baselines", *data, *tiny, *quiet, *flags(AS_PUBLISHED)]) == 0
    printed = capsys.readouterr().out
    assert "popularity" in printed
    assert "SASRec, RecBole's metrics over the candidates: hit@1 0." in printed
    (base,) = (tmp_path / "base").glob("baselines-lastfm-*")
    assert main(["compare", str(base / "SASRec"), str(run)]) == 0

    assert main(["rank", "--model", str(run), "--history", "Red Fox|It", "--candidates", "Ash|Blue Owl"]) == 0
    ranked = capsys.readouterr().out.strip().split("\n")[-2:]
    assert {"Ash" in line or "Blue Owl" in line for line in ranked} == {True}


def test_the_number_of_candidates_is_the_datas_own(trained: tuple[Path, list[str]]) -> None:
    """The run was not told; its table's rate of a random choice follows from it."""
    run, _ = trained
    assert json.loads((run / "run.json").read_text())["num_candidates"] == CANDIDATES


# --- prepare ---


def test_prompts_are_counted_for_a_named_backbone(
    tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token a letter: with 40 all prompts are too long, with 4,000 none."""
    command = ["prepare", "--dataset", "lastfm", "--source", str(small_published(tmp_path / "in"))]
    command += ["--out", str(tmp_path / "data"), "--backbone", str(tiny_backbone), "--max-length"]
    audit = tmp_path / "data" / "lastfm" / "audit.json"
    for limit, share in ((40, 1.0), (4000, 0.0)):
        assert main([*command, str(limit)]) == 0
        printed = capsys.readouterr().out
        assert f"  prompts: backbone {tiny_backbone}, template sequence, max history " in printed
        assert f", max length {limit}\n" in printed
        assert "prompts, truncated share" in printed
        assert json.loads(audit.read_text())["splits"]["test"]["prompts"]["truncated_share"] == share
    stamp = audit.stat().st_mtime_ns
    assert main([*command, "4000"]) == 0
    assert f"unchanged: {tmp_path / 'data' / 'lastfm'}\n" in capsys.readouterr().out
    assert audit.stat().st_mtime_ns == stamp


def test_measured_tokens_are_those_of_the_prompt_and_its_longest_title(tiny_backbone: Path) -> None:
    check = load_prompt_check("lastfm", str(tiny_backbone), 100)
    assert check is not None
    # each title with a space before it and a line break behind it, then " Ddd" and the end
    text = "Titles that one person chose, in this order: A\n B\n"
    assert check.measure([(["A", "B"], ["Cc", "Ddd"])]) == [len(text) + 5]


def test_nothing_is_downloaded_to_count_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path))
    monkeypatch.setattr(prompt_check, "resolve_backbone", lambda name: pytest.fail("looked up"))
    assert load_prompt_check("lastfm") is None


def test_a_backbone_without_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="its tokenizer cannot be loaded"):
        load_prompt_check("lastfm", str(tmp_path))


def test_prepare_reports_bad_rows_and_drops_them_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small_published(tmp_path / "in")
    rows = json.loads((source / "lastfm-val.json").read_text())
    rows[4]["trueSelection"] = "nobody"
    (source / "lastfm-val.json").write_text(json.dumps(rows))
    command = ["prepare", "--dataset", "lastfm", "--source", str(source), "--out", str(tmp_path / "data")]
    assert main(command) == 2
    assert "lastfm-val.json, row 5" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([*command, "--skip-bad-rows"]) == 0
    assert "bad rows dropped: 1" in capsys.readouterr().out


def test_plain_sequences_run_by_the_command_that_is_printed(
    toy_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"u{user},Film {(5 * user + step) % 30},{step}" for user in range(9) for step in range(6)]
    (tmp_path / "own.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")
    command = ["prepare", "--dataset", "own", "--source", str(tmp_path / "own.csv"), "--out", str(tmp_path)]
    assert main(command) == 0
    printed = shlex.split(capsys.readouterr().out.rstrip().split("\n")[-1])
    assert printed[:2] == ["next:", "run_recbole"]
    own = {key: value for key, value in toy_settings.items() if key not in ("load_col", "data_path")}
    assert run_recbole([*printed[2:], *flags({**own, "compare_stages": False})]) == 0


# --- compare ---


def test_compare_prints_figures_made_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A alone is right in 2 rows, B alone in 10, both in 30, neither in 158; p = 2 * 79 / 4096 = 0.0386:
    of 12 rows at most 2 fall to one side in 1 + 12 + 66 = 79 of 4096 ways.
    """
    a = [1] * 2 + [2] * 10 + [1] * 30 + [2] * 158
    b = [2] * 2 + [1] * 10 + [1] * 30 + [2] * 158
    folders = [save_ranks(tmp_path / name, ranks) for name, ranks in (("a", a), ("b", b))]
    assert main(["compare", *folders]) == 0
    printed = capsys.readouterr().out
    assert "the same 200 rows" in printed
    assert "HR@1 of A        0.1600" in printed
    assert "HR@1 of B        0.2000" in printed
    assert "rows that only A ranks first: 2; only B: 10; McNemar p = 0.0386" in printed
    assert "NDCG@5, B - A   +0.0148" in printed  # 8 more rows at 1 instead of 1 / log2(3), over 200


def test_compare_says_when_fifty_rows_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = [1] * 10 + [2] * 40, [1] * 9 + [2] * 38 + [1] * 3
    folders = [save_ranks(tmp_path / name, ranks) for name, ranks in (("a", a), ("b", b))]
    assert main(["compare", *folders]) == 0
    assert "n = 50 is too small to tell" in capsys.readouterr().out


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "none", "none"], "none: no such file"),
        (
            ["evaluate", "--model", "none", "--dataset", "lastfm"],
            "none: wanted the folder of a run, or a recom",
        ),
        (
            ["baselines", "--dataset", "lastfm"],
            "Run `recbole-dynamicpo prepare --dataset lastfm --out dataset`",
        ),
        (["baselines", "--dataset", "lastfm", "--epochs", "3"], "got '--epochs', wanted --key=value"),
        (["prepare", "--dataset", "own", "--source", "none"], "none: no such file or folder"),
        (["prepare", "--dataset", "own"], "the hub has goodreads, lastfm, steam, got 'own'"),
        (["prepare", "--dataset", "own", "--max-length", "-1"], "--max-length: got -1, wanted at least 1"),
        (["prepare", "--dataset", "own", "--backbone", "none"], "backbone: got 'none'"),
        (["rank", "--model", "none", "--history", "A"], "none: wanted the folder of a run"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["compare", "a", "b", "--seed=1"], ["evaluate", "--protocol", "x"], []]
)
def test_unknown_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: recbole-dynamicpo" in capsys.readouterr().err


def test_a_damaged_record_of_a_run_is_named(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = trained
    (run / "record.json").write_text("[1")
    assert main(["evaluate", "--model", str(run), *data]) == 2
    assert "record.json: not a readable record of a run" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_trouble(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("recbole-dynamicpo")
    line = summarize(Contestant("a", np.array([1, 2]), np.arange(2)))
    report = {"contestants": [line], "seconds": {}, "segments": {}, "notes": ["x" * 200] * 5000}
    (tmp_path / "report.json").write_text(json.dumps(report))
    command = f"{shlex.quote(str(script))} show {tmp_path} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


def test_old_ways_of_recbole_do_not_fill_the_output(toy_settings: dict[str, Any], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("recbole-dynamicpo")
    chosen = {key: toy_settings[key] for key in ("data_path", "load_col", "checkpoint_dir")}
    command = [str(script), "baselines", "--dataset", "toy", "--model", "none", *flags(chosen)]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--history", "a", "-k", "0"], "-k: got 0, wanted at least 1"),
        ([], "rank: wanted either --history or --input"),
        (
            ["--history", "a", "--dataset", "toy", "--among-top", "5"],
            "rank: got --among-top, but a plain adapter has no priors to choose titles",
        ),
    ],
)
def test_rank_names_the_argument_that_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "--model", "nowhere", *words]) == 2
    assert capsys.readouterr().err.strip().endswith(said)
