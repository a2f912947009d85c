"""Backbones that cannot be used are refused with a message that names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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
    for seconds in (1.0, 9.0):
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
