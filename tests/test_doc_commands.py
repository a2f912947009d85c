"""Every ``sh`` block of README.md and docs/ runs, the blocks of a page in order, in a folder of its own.

What a page names as ``saved/<run>`` is there, sizes are those of seconds, the backbone is a tiny one. Each
command is run, or stands in ``EXCEPTIONS``.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_dynamicpo.cli import main, run_recbole

from .helpers.plain_adapter import PROMPTS, write_plain_adapter
from .helpers.published_data import small_published

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(page.read_text())
]
LONG = {"README.md"}

# Kinds of commands that are not run here: how they begin, and why.
EXCEPTIONS = {
    "installs": (
        r"pip install |python3\.11 -m venv|source \.venv|(time )?serving/bin/|du -sm serving",
        "fetches gigabytes; .ci/run does it, and a robustness test serves from such an environment",
    ),
    "tests": (r"pytest ", "would run this test"),
    "servers": (
        r"prefect |recbole-dynamicpo (bootstrap|demo)|mlflow |curl |export AWS_|docker[ /]",
        "needs servers: tests marked servers start Prefect's, MLflow's, a worker and a served model",
    ),
    "processes": (
        r"torchrun |run_recbole .*--nproc=",
        "needs several processes: tests/robustness/test_processes.py starts them, on two machines too",
    ),
}

OURS: dict[str, Callable[[list[str]], int]] = {"run_recbole": run_recbole, "recbole-dynamicpo": main}
QUIET = ["--show_progress=False", "--state=WARNING", "--mlflow_tracking_uri=none"]
SMALL = {
    **{"sft_rows": 8, "preference_rows": 8, "valid_rows": 4, "eval_rows": 4, "sft_batch_size": 8},
    **{"train_batch_size": 8, "max_history": 3, "window": 4, "lora_layers": 0, "dtype": "float32"},
}
STOCK = {"epochs": 1, "hidden_size": 8, "inner_size": 8}
# Of the users of ml-100k, who all rated 20 films or more, those that rated fewest.
FEW_USERS = "--user_inter_num_interval=[0,22)"


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a page's blocks, continued lines and here-documents as one; no comments."""
    for block in BLOCK.findall(text):
        lines = iter(block.splitlines())
        for line in lines:
            command = line
            while command.endswith("\\"):
                command = command[:-1] + next(lines)
            if end := re.search(r"<<'(\w+)'$", command):
                while not command.endswith(f"\n{end[1]}"):
                    command += "\n" + next(lines)
            if command.strip() and not command.startswith("#"):
                yield command


def parts(command: str) -> list[str]:
    """Return what && joins."""
    return [command] if "\n" in command else command.split(" && ")


def excepted(command: str) -> str | None:
    """Return the kind of an exception."""
    plain = re.sub(r"^([A-Z_]+=\S+ )+", "", command)
    return next((kind for kind, (start, _) in EXCEPTIONS.items() if re.match(start, plain)), None)


def small(words: list[str], backbone: Path) -> list[str]:
    """Return settings that make a command of ours one of seconds."""
    if any(word.startswith("--resume=") for word in words):
        return QUIET  # the run's own settings hold
    run: dict[str, object] = {**SMALL, "backbone": backbone}
    if "--dataset=lastfm" in words:
        run["num_negatives"] = 4  # of the six candidates of its rows here
    by_command = {
        "run": STOCK if "--model=SASRec" in words else run,
        "evaluate": {"eval_rows": 4, "load_in_4bit": False},
        "baselines": {**STOCK, "eval_rows": 4},
        "audit": {},
        "study": {**run, "objective": "dmpo", "num_negatives": "[1,2]", "seeds": 1},
        "search": {**run, "num_negatives": 2, "search": 2},
    }
    subcommand = "run" if words[0] == "run_recbole" else words[1]
    if any(word.startswith("--search=") for word in words):
        subcommand = "search"
    if subcommand not in by_command:
        return []
    few = [] if re.search("lastfm|films", " ".join(words)) else [FEW_USERS]
    return [*QUIET, *few, *(f"--{key}={value}" for key, value in by_command[subcommand].items())]


class Shell:
    """Runs commands in a folder.

    Args:
        backbone: folder of the tiny one.
        patch: for variables of single commands.
    """

    def __init__(self, backbone: Path, patch: pytest.MonkeyPatch) -> None:
        self.backbone, self.patch = backbone, patch

    def run(self, command: str) -> None:
        """Run a command: ours in this process, others in a shell."""
        words = shlex.split(self.named(command), comments="\n" not in command)
        with self.patch.context() as patch:
            while match := re.match(r"([A-Z_]+)=(.*)", words[0]):
                words.pop(0)
                patch.setenv(match[1], match[2])
                if match[1] == "PYTHONPATH":
                    patch.syspath_prepend(ROOT / match[2])
            if words[0] in OURS:
                words = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
                patch.setattr(sys, "argv", [words[0]])
                sizes = small(words, self.backbone)
                fixed = tuple(f"{size.partition('=')[0]}=" for size in sizes)
                kept = [word for word in words[1:] if not word.startswith(fixed)]
                status = OURS[words[0]]([*kept, *sizes])
                # doctor says 2 of a machine that has not what the default job wants.
                assert status == 0 or words[1] == "doctor", command
            else:
                paths = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
                subprocess.run(["bash", "-euc", command], check=True, env=paths, timeout=300)

    def named(self, command: str) -> str:
        """Return a command with what is here for what the page leaves to its reader."""
        command = command.replace("xingyuHuxingyu/DynamicPO/CHECKPOINT@REVISION", "adapter")
        (dataset,) = re.findall(r"--dataset[ =](\S+)", command) or ["ml-100k"]
        if runs := _by_age(f"DynamicPO-{dataset}-*"):
            command = re.sub(r"saved/(<run>|DynamicPO-ml-100k-\.\.\.)", str(runs[0]), command)
        if "<run A>" in command:
            command = command.replace("saved/<run A>", str(_by_age("DynamicPO-*")[-1]))
            command = command.replace("saved/<run B>", str(_by_age("**/ranks.parquet")[-1]))
        return command.replace("FOLDER", "in")


def _by_age(pattern: str) -> list[Path]:
    return sorted(Path("saved").glob(pattern), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def made(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where ml-100k was run, with its model in the registry."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        # MLflow sets it to the last store of whatever test came before.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sys, "argv", ["run_recbole"])
        patch.setenv("RECBOLE_DYNAMICPO_CACHE", str(home / "cache"))
        words = ["run_recbole", "--model=DynamicPO"]
        quiet = [word for word in small(words, tiny_backbone) if "mlflow" not in word]
        assert run_recbole([*words[1:], *quiet]) == 0
    return home


@pytest.fixture
def folder(
    made: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    """A folder with what the pages speak of: a run, its registry, LastFM, users; nothing for the tutorial."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECBOLE_DYNAMICPO_BACKBONE", str(tiny_backbone))
    if request.node.callspec.id != "tutorial.md":
        shutil.copytree(made / "saved", "saved")
        shutil.copyfile(made / "mlflow.db", "mlflow.db")
        small_published(Path("in"))
        assert main(["prepare", "--dataset", "lastfm", "--source", "in", "--out", "dataset/"]) == 0
        write_plain_adapter(Path("adapter"), tiny_backbone)
        Path("DynamicPO/prompt").mkdir(parents=True)
        Path("DynamicPO/prompt/music.txt").write_text(PROMPTS)
        users = {"user": ["a", "b"], "history": [["Toy Story (1995)"], ["Heat (1995)", "Babe (1995)"]]}
        pq.write_table(pa.table(users), "users.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.robustness] if page.name in LONG else [])
        for page in PAGES
    ],
)
def test_the_commands_of_a_page_run(
    page: Path, folder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(tiny_backbone, monkeypatch)
    for command in commands(page.read_text(encoding="utf-8")):
        for part in parts(command):
            if excepted(part) is None:
                shell.run(part)


def test_each_exception_has_commands_and_there_are_few_kinds() -> None:
    every = [part for page in PAGES for command in commands(page.read_text()) for part in parts(command)]
    assert len(every) > 30
    assert {excepted(part) for part in every} == {None, *EXCEPTIONS}
    assert len(EXCEPTIONS) <= 5


def test_commands_are_found_whole() -> None:
    here = "python - <<'EOF'\nif x:\n    y\nEOF"
    text = f"```sh\n# none\na b \\\n  c\n{here}\n\nd   # why\n```\n\n```python\ne\n```\n"
    assert list(commands(text)) == ["a b   c", here, "d   # why"]
    assert parts("pip install x && run") == ["pip install x", "run"]


def test_the_page_of_files_lists_what_a_run_leaves(made: Path) -> None:
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    listed = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
        # Names with a <placeholder> are of files that runs of other settings leave.
        listed[section.partition("\n")[0]] = {
            name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if "<" not in name
        }
    (run,) = (made / "saved").iterdir()
    assert {f"{path.name}/" if path.is_dir() else path.name for path in run.iterdir()} == listed["A run"]
    for stage in ("sft", "preference"):
        assert {path.name for path in (run / stage).iterdir()} == listed["A recommender"]
