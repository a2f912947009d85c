"""Backbones that cannot be used are refused with a message that names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model import backbone
from recbole_dynamicpo.language_model.backbone import (
    backbone_fingerprint,
    load_backbone,
    quantized_fingerprint,
    resolve_dtype,
)


def test_a_local_folder_loads_frozen(tiny_backbone: Path) -> None:
    loaded = load_backbone(str(tiny_backbone), dtype="float64")
    assert loaded.dtype == torch.float64
    assert loaded.shares_prompt
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize(
    "name", ["no-such-model", "__import__('os').system('true')", "../../no-such", "a/b/c", "../x"]
)
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(BackboneError, match="wanted 'smollm2-135m'"):
        load_backbone(name)


def test_an_unreachable_hub_model_says_so() -> None:
    with pytest.raises(BackboneError, match=r"'nobody/nothing' cannot be loaded.*network"):
        load_backbone("nobody/nothing")


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="got BertForMaskedLM, wanted a causal language model"):
        load_backbone(str(tmp_path))


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(str(tmp_path))


def test_four_bit_needs_cuda(tiny_backbone: Path) -> None:
    with pytest.raises(BackboneError, match=r"load_in_4bit.*wanted CUDA"):
        load_backbone(str(tiny_backbone), load_in_4bit=True)


def test_other_weights_have_another_fingerprint(tiny_backbone: Path, tmp_path: Path) -> None:
    from ..conftest import make_model

    make_model(seed=9).save_pretrained(tmp_path)
    name = str(tiny_backbone)
    assert backbone_fingerprint(name, name) == backbone_fingerprint(name, "another name")
    assert backbone_fingerprint(name, name) != backbone_fingerprint(str(tmp_path), str(tmp_path))


def lacks_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=5)


def lacks_its_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "lm_head.weight"}, folder / "model.safetensors")


def has_other_shapes(folder: Path) -> None:
    change_config(folder, intermediate_size=64)


def has_a_larger_vocabulary(folder: Path) -> None:
    change_config(folder, vocab_size=500)


def is_no_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")


def is_infinite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacks_layers, r"weight model\.layers\.2\..* is missing \(27 such weights\)"),
        (lacks_its_head, r"weight lm_head\.weight is missing; wanted"),
        (has_other_shapes, r"weight model\.layers\.0\.mlp\.\w+\.weight is \(.*48.*\), wanted \(.*64.*\)"),
        (has_a_larger_vocabulary, r"weight lm_head\.weight is \(257, 32\), wanted \(500, 32\)"),
        (is_no_number, r"weight model\.norm\.weight holds NaN or infinity; wanted"),
        (is_infinite, r"weight model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_named(
    damage: Callable[[Path], None], said: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Transformers would draw what is missing at random, in each process anew."""
    shutil.copytree(tiny_backbone, tmp_path / "own")
    damage(tmp_path / "own")
    with pytest.raises(BackboneError, match=rf"backbone '.*own': {said}"):
        load_backbone(str(tmp_path / "own"), dtype="float32")


def test_weights_of_4_bits_have_another_fingerprint(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that was trained on them is not taken for one of the whole weights."""
    whole = load_backbone(str(tiny_backbone), dtype="float32")
    load = backbone._from_pretrained
    monkeypatch.setattr(backbone, "_from_pretrained", lambda *given: load(*given[:-1], False))  # no CUDA here
    cut = load_backbone(str(tiny_backbone), dtype="float32", load_in_4bit=True)
    assert (whole.quantization, cut.quantization) == ("", "nf4")
    assert cut.fingerprint == quantized_fingerprint(whole.fingerprint, "nf4") != whole.fingerprint
    prints = {quantized_fingerprint(one, how) for one in ("a", "b") for how in ("", "nf4", "int8")}
    assert len(prints) == 6


def test_dtype_auto_is_decided_by_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (1e-6, 1.0, 2.9, 3.1, 9.0):
        measured = {torch.bfloat16: seconds, torch.float32: 3.0}
        monkeypatch.setattr(backbone, "_product_seconds", measured.__getitem__)
        assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
        assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_a_faster_dtype_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(backbone, "_product_seconds", lambda dtype: 1.0 if "16" in str(dtype) else 2.1)
    backbone.advise_dtype("auto", torch.device("cpu"))
    assert "bfloat16 is 2.1 times faster here" in caplog.text
    assert "--dtype=bfloat16" in caplog.text
    caplog.clear()
    backbone.advise_dtype("float32", torch.device("cpu"))
    monkeypatch.setattr(backbone, "_product_seconds", lambda dtype: 1.0)
    backbone.advise_dtype("auto", torch.device("cpu"))
    assert caplog.text == ""
