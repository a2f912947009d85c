"""A small offline world: a random two-layer language model, a byte-pair tokenizer, a synthetic data set."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
# No word to anyone about what is tested here.
os.environ.update(DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true", PREFECT_SERVER_ANALYTICS_ENABLED="false")
# Where a developer records real runs is no place for those of tests.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
os.environ.pop("PREFECT_API_URL", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # programs that a test starts share the cores with other tests

import pytest
import torch

# The models are so small that a second thread would only wait.
torch.set_num_threads(1)

WORDS = [
    "amber", "bear", "canyon", "delta", "ember", "forest", "glass", "harbor", "iron", "jungle",
    "kite", "lemon", "marble", "night", "ocean", "pearl", "quiet", "river", "silver", "zebra",
]  # fmt: skip


def pytest_collection_finish() -> None:
    """What was imported stays, so that collections of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's Config reads the command line of whatever process it runs in."""
    monkeypatch.setattr(sys, "argv", ["test"])


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    """The commands leave a handler of their own behind, as their process ends with them; here it does not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def make_tokenizer() -> Any:
    """Return a byte-level tokenizer without merges: every string has one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{symbol: index + 1 for index, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def make_model(dtype: torch.dtype = torch.float32, layers: int = 2, seed: int = 0) -> Any:
    """Return a random Llama with grouped key-value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_dataset(folder: Path, name: str = "toy", users: int = 12, items: int = 40, seed: int = 1) -> Path:
    """Write a small RecBole data set with titles; times within a user are a few seconds apart."""
    draw = random.Random(seed)
    home = folder / name
    home.mkdir(parents=True)
    titles = [f"{a} {b}" for a in WORDS for b in WORDS]
    draw.shuffle(titles)
    item_lines = [f"i{index}\t{titles[index]}" for index in range(1, items + 1)]
    (home / f"{name}.item").write_text("item_id:token\ttitle:token_seq\n" + "\n".join(item_lines) + "\n")
    lines = []
    for user in range(1, users + 1):
        for position, item in enumerate(draw.sample(range(1, items + 1), 8)):
            lines.append(f"u{user}\ti{item}\t{1_700_000_000 + 1000 * user + 3 * position}")
    draw.shuffle(lines)
    (home / f"{name}.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n"
    )
    return folder


def small_settings(data: Path, backbone: Path) -> dict[str, Any]:
    """Return settings of a run of seconds on the data set of ``write_dataset`` with the tiny backbone."""
    return {
        "data_path": str(data),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "backbone": str(backbone),
        "dtype": "float32",
        # Rows with listed candidates under the vocabulary likelihood; tests of the other way say so.
        "likelihood": "vocabulary",
        "catalogue_prior": None,
        "centre": False,
        "positions": "last",
        "negatives": "uniform",
        "prompt": "neutral",
        "rank_among": ["candidates"],
        "valid_metric": "NDCG@5",
        "num_candidates": 6,
        "num_negatives": 4,
        "max_history": 4,
        "sft_rows": 12,
        "preference_rows": 12,
        "sft_batch_size": 4,
        "train_batch_size": 4,
        "valid_rows": 0,
        "eval_rows": 0,
        "sft_learning_rate": 0.01,
        "learning_rate": 0.01,
        "lora_rank": 4,
        "lora_layers": 0,
        "checkpoint_every": 3,
        "show_progress": False,
        "state": "WARNING",
        "mlflow_tracking_uri": None,
    }


@pytest.fixture
def toy_settings(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run that takes seconds, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    chosen = small_settings(write_dataset(tmp_path / "dataset"), tiny_backbone)
    return {**chosen, "checkpoint_dir": str(tmp_path / "saved")}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""
    from recbole_dynamicpo.tracking.client import connect

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow store of the test's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    (tmp_path / "store").mkdir()
    shutil.copyfile(empty_database, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path}/store/mlflow.db"


@pytest.fixture(scope="session")
def drawn() -> dict[str, bytes]:
    """The figures that were drawn so far, by name and data."""
    return {}


@pytest.fixture
def figures_drawn_once(drawn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of the same data are drawn once, which takes longer than all else that is sent to MLflow."""
    from recbole_dynamicpo.tracking import view as mirror

    really_draw = mirror._draw

    def draw_once(name: str, draw: Any, target: Path) -> None:
        key, place = f"{name} {draw.args}", target / "figures" / f"{name}.png"
        if key in drawn:
            place.parent.mkdir()
            place.write_bytes(drawn[key])
        else:
            really_draw(name, draw, target)
            drawn[key] = place.read_bytes()

    monkeypatch.setattr(mirror, "_draw", draw_once)
