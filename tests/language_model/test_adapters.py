"""The short way of a LoRA layer and of switching, against peft's own: values, gradients, what peft says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.adapters import Adapters, RowDropout, Rows, _mixed
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import Policy

from ..conftest import make_model, make_tokenizer

NAMES = ("policy", "reference")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}


class _Shell(nn.Linear):
    """A linear layer that is not torch's very own, as those of 4 bits are."""


def toy(
    kind: type = nn.Linear, dtype: torch.dtype = torch.float64, drop: float = 0.0, bias: bool = True
) -> Any:
    """Return a peft model of one layer, 6 wide to 5, with two adapters that add something."""
    torch.manual_seed(0)
    layer = Conv1D(5, 6) if kind is Conv1D else kind(6, 5, bias=bias)
    if bias:
        nn.init.normal_(layer.bias)
    base = nn.ModuleDict({"layer": layer}).to(dtype)
    config = LoraConfig(
        r=3, lora_alpha=7, lora_dropout=drop, target_modules=["layer"], fan_in_fan_out=kind is Conv1D
    )
    found = get_peft_model(base, config, adapter_name=NAMES[0])
    found.add_adapter(NAMES[1], config)
    keep = torch.promote_types(dtype, torch.float32)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(keep)
    found.set_adapter(NAMES[0])
    return found


def both(**given: Any) -> tuple[Any, Any, Adapters]:
    """Return peft's model and the same made fast, and what switches the latter."""
    theirs = toy(**given)
    ours = copy.deepcopy(theirs)
    adapters = Adapters(ours, NAMES[0])
    # Peft, too, multiplies in the dtype of the activations here; see ``Adapters``.
    for layer in theirs.modules():
        if hasattr(layer, "lora_A"):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.__class__ = type(adapters.layers[0].lora_A[NAMES[0]])
    return theirs, ours, adapters


def through(model: Any, x: Tensor, again: bool = False) -> tuple[Tensor, list[Tensor | None]]:
    """Return the layer's output and the gradients of its input and of all parameters."""
    layer = model.base_model.model["layer"]
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    out = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
    model.zero_grad()
    (out * torch.arange(1.0, out.numel() + 1).view(out.shape).sin()).sum().backward()
    return out.detach(), [x.grad, *(p.grad for p in model.parameters())]


def assert_same(ours: Any, theirs: Any, x: Tensor, *, again: bool = False) -> None:
    tolerance = TOLERANCE[x.dtype]
    found, of_found = through(ours, x, again)
    wanted, of_wanted = through(theirs, x, again)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())
    for mine, right in zip(of_found, of_wanted, strict=True):
        assert (mine is None) == (right is None)
        if right is not None and mine is not None:
            assert mine.dtype == right.dtype
            torch.testing.assert_close(mine, right, rtol=0, atol=tolerance * right.abs().max().item())
    with torch.no_grad():  # without a gradient the same operations run, so the same bits come
        layer = ours.base_model.model["layer"]
        torch.manual_seed(5)
        assert torch.equal(layer(x), found)


def some(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2, 4, 6)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D, _Shell])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_one_adapter(kind: type, dtype: torch.dtype, bias: bool, name: str) -> None:
    if kind is Conv1D and not bias:
        bias = True  # it always has one
    theirs, ours, adapters = both(kind=kind, dtype=dtype, bias=bias)
    assert_same(ours, theirs, some(dtype))
    theirs.set_adapter(name, inference_mode=name != NAMES[0])
    with adapters.speaking_as(name):
        assert_same(ours, theirs, some(dtype))


def test_a_small_layer_by_hand() -> None:
    """x = 2, W = 3, bias 1, A = 5, B = 7, s = 4 / 1: 2 * 3 + 1 + 4 * 2 * 5 * 7 = 287.

    With a gradient of 1: of x 3 + 4 * 5 * 7 = 143, of A 4 * 7 * 2 = 56, of B 4 * 2 * 5 = 40.
    """
    base = nn.ModuleDict({"layer": nn.Linear(1, 1)})
    nn.init.constant_(base["layer"].weight, 3.0)
    nn.init.constant_(base["layer"].bias, 1.0)
    model: Any = get_peft_model(base, LoraConfig(r=1, lora_alpha=4, target_modules=["layer"]))
    layer = model.base_model.model["layer"]
    nn.init.constant_(layer.lora_A["default"].weight, 5.0)
    nn.init.constant_(layer.lora_B["default"].weight, 7.0)
    Adapters(model, "default")
    x = torch.full((1, 1), 2.0, requires_grad=True)
    layer(x).backward()
    assert layer(x).item() == 287
    gradients = (x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad)
    assert [g.item() for g in gradients if g is not None] == [143, 56, 40]


@pytest.mark.parametrize("kind", [nn.Linear, _Shell])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (1, 1, 6), (2, 0, 6), (2, 2, 2, 6)])
def test_any_number_of_dimensions(kind: type, shape: tuple[int, ...]) -> None:
    theirs, ours, _ = both(kind=kind)
    found, wanted = through(ours, some(shape=shape)), through(theirs, some(shape=shape))
    assert found[0].shape == wanted[0].shape
    for mine, right in zip([found[0], *found[1]], [wanted[0], *wanted[1]], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


def test_rows_that_are_not_side_by_side_in_memory() -> None:
    theirs, ours, _ = both()
    x = some(shape=(4, 2, 6)).transpose(0, 1)
    layers = [model.base_model.model["layer"] for model in (ours, theirs)]
    torch.testing.assert_close(layers[0](x), layers[1](x), rtol=1e-12, atol=1e-12)
    for layer in layers:
        layer(x).transpose(0, 1).sum(dim=2).expand(4, 2).sum().backward()
    (mine, right) = ([p.grad for p in layer.parameters() if p.grad is not None] for layer in layers)
    for one, other in zip(mine, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.Linear, _Shell])
@pytest.mark.parametrize("again", [False, True])
def test_dropout_draws_as_peft_does(kind: type, again: bool) -> None:
    """The same seed drops the same inputs, also where activations are computed again; not in evaluation."""
    theirs, ours, adapters = both(kind=kind, drop=0.5)
    quiet = through(ours.eval(), some())[0]
    adapters.train(True)
    theirs.train()
    assert_same(ours, theirs, some(), again=again)
    assert (through(ours, some())[0] - quiet).abs().max() > 0.1
    adapters.train(False)
    theirs.eval()
    assert torch.equal(through(ours, some())[0], quiet)
    assert_same(ours, theirs, some(), again=again)


def test_what_dropout_drops() -> None:
    """The adapter alone sees fewer inputs, doubled at 0.5; W sees them all."""
    _, ours, adapters = both(drop=0.5)
    adapters.train(True)
    layer, x = ours.base_model.model["layer"], some()
    torch.manual_seed(3)
    kept = dropout(x, 0.5, True)
    torch.manual_seed(3)
    found = layer(x)
    a, b = layer.lora_A[NAMES[0]].weight, layer.lora_B[NAMES[0]].weight
    torch.testing.assert_close(
        found, layer.base_layer(x) + kept @ a.T @ b.T * (7 / 3), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D, _Shell])
def test_no_adapter_is_the_layer_alone(kind: type) -> None:
    theirs, ours, adapters = both(kind=kind)
    layer = ours.base_model.model["layer"]
    with adapters.speaking_as(None), theirs.disable_adapter():
        assert torch.equal(layer(some()), layer.base_layer(some()))
        assert_same(ours, theirs, some())


def test_several_adapters_at_once_add_up() -> None:
    theirs, ours, _ = both()
    for model in (theirs, ours):
        model.base_model.set_adapter(list(NAMES))
    assert_same(ours, theirs, some())


def test_a_merged_adapter_adds_nothing_twice() -> None:
    theirs, ours, adapters = both()
    wanted = through(theirs, some())[0]
    ours.merge_adapter([NAMES[0]])
    torch.testing.assert_close(through(ours, some())[0], wanted, rtol=1e-12, atol=1e-12)
    ours.unmerge_adapter()
    assert_same(ours, theirs, some())
    merged: Any = ours.merge_and_unload(adapter_names=[NAMES[0]])
    torch.testing.assert_close(merged["layer"](some()), wanted, rtol=1e-12, atol=1e-12)
    assert type(merged["layer"]) is nn.Linear
    assert adapters.layers


def test_an_output_may_be_changed_in_place() -> None:
    """As that of a plain layer may."""
    for kind in (nn.Linear, _Shell):
        theirs, ours, _ = both(kind=kind)
        found = [model.base_model.model["layer"](some()).mul_(2) for model in (ours, theirs)]
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
        found[0].sum().backward()


def state(model: Any) -> dict[str, Any]:
    """Return all that peft says of what is active and what learns."""
    status = model.get_model_status()
    layers = [part for part in model.modules() if hasattr(part, "lora_A")]
    return {
        "learns": {name: p.requires_grad for name, p in model.named_parameters()},
        "active": (model.active_adapter, model.active_adapters, model.base_model.active_adapters),
        "layers": [(layer.active_adapters, layer.disable_adapters) for layer in layers],
        "status": (status.enabled, status.active_adapters, status.merged_adapters, status.requires_grad),
        "trainable": model.get_nb_trainable_parameters(),
    }


def pair() -> tuple[Any, Any, Adapters]:
    """Return two tiny Llamas of 14 LoRA layers, one of them made fast."""
    models = []
    for _ in range(2):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model: Any = get_peft_model(make_model(), config, adapter_name=NAMES[0])
        model.add_adapter(NAMES[1], config)
        model.set_adapter(NAMES[0])
        torch.manual_seed(7)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        models.append(model)
    return models[0], models[1], Adapters(models[1], NAMES[0])


def _reference(model: Any) -> AbstractContextManager[None]:
    model.set_adapter(NAMES[1], inference_mode=True)
    return nullcontext()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=torch.arange(1, 9)[None], use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("voice", "switch"), [(None, lambda model: model.disable_adapter()), (NAMES[1], _reference)]
)
def test_switches_leave_what_pefts_own_leave(
    voice: str | None, switch: Callable[[Any], AbstractContextManager[None]]
) -> None:
    theirs, ours, adapters = pair()
    assert len(adapters.layers) == 14
    assert state(ours) == state(theirs)
    before = logits(ours)
    for _ in range(2):
        with adapters.speaking_as(voice), switch(theirs):
            assert state(ours) == state(theirs)
            assert not any(p.requires_grad for p in ours.parameters())
            torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-4)
            assert (logits(ours) - before).abs().max() > 0.1
        theirs.set_adapter(NAMES[0])
        assert state(ours) == state(theirs)
        assert torch.equal(logits(ours), before)
        assert sum(p.requires_grad for p in ours.parameters()) == 28 == len(adapters.parameters)


def test_voices_within_voices_come_back() -> None:
    _, ours, adapters = pair()
    first = state(ours)
    with adapters.speaking_as(None):
        alone = state(ours)
        with adapters.speaking_as(NAMES[1]):
            assert ours.active_adapters == [NAMES[1]]
            with adapters.speaking_as(NAMES[0]):
                assert state(ours) == first
            assert ours.active_adapters == [NAMES[1]]
        assert logits(ours).equal(logits(ours))
        assert state(ours)["layers"][0][1] == alone["layers"][0][1] is True
    assert state(ours) == first


def test_pefts_own_switches_still_work() -> None:
    """Whoever holds the peft model may use them."""
    theirs, ours, _ = pair()
    for model in (theirs, ours):
        model.set_adapter(NAMES[1])
    assert state(ours) == state(theirs)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-4)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(logits(ours), logits(theirs))


def test_a_copy_stands_alone() -> None:
    _, ours, adapters = pair()
    copied = copy.deepcopy(ours)
    before = logits(ours)
    copied.set_adapter(NAMES[1])
    assert torch.equal(logits(ours), before)
    with adapters.speaking_as(NAMES[1]):
        assert torch.equal(logits(ours), logits(copied))


def test_peft_saves_and_loads_what_is_made_fast(tmp_path: Path) -> None:
    _, ours, _ = pair()
    ours.save_pretrained(tmp_path, selected_adapters=[NAMES[0]])
    plain = PeftModel.from_pretrained(make_model(), tmp_path / NAMES[0])
    torch.testing.assert_close(logits(plain), logits(ours), rtol=1e-5, atol=1e-4)
    assert not any(type(part).__name__.startswith("Fused") for part in plain.modules())


# --- dropout by rows ---


def losses(policy: Any, rows: Any) -> Tensor:
    found: Tensor = policy.logps(rows, 60)
    return found


def rows_of(lengths: list[int]) -> list[TokenBatch]:
    """Return rows of one prompt and two completions each, the prompts of these lengths."""
    draw = torch.Generator().manual_seed(4)
    found = []
    for length in lengths:
        tokens = [torch.randint(1, 257, shape, generator=draw) for shape in ((1, length), (1, 2, 3))]
        tokens[1][0, 1, 2] = 0
        ends = (torch.tensor([length]), torch.tensor([[3, 2]]))
        found.append(TokenBatch(tokens[0], ends[0], tokens[1], ends[1]))
    return found


def together(rows: list[TokenBatch]) -> TokenBatch:
    width = max(row.prompt.shape[1] for row in rows)
    prompts = [torch.nn.functional.pad(row.prompt, (0, width - row.prompt.shape[1])) for row in rows]
    return TokenBatch(torch.cat(prompts), *(torch.cat(parts) for parts in list(zip(*rows, strict=True))[1:]))


@pytest.mark.parametrize("shares", [True, False])
def test_a_rows_dropout_is_its_own(shares: bool) -> None:
    """In any company and order, padded or not, computed again or not, the same entries are left out."""
    policy = dropping(0.3, shares)
    rows = rows_of([7, 3, 12, 5])
    alone = [losses(policy, row) for row in rows]
    assert torch.allclose(torch.cat(alone), losses(policy, together(rows)), rtol=0, atol=1e-12)
    swapped = losses(policy, together([rows[2], rows[0]]))
    assert torch.allclose(swapped, torch.cat([alone[2], alone[0]]), rtol=0, atol=1e-12)
    gradients = []
    for parts in ([together(rows)], rows):
        policy.zero_grad()
        for part in parts:
            losses(policy, part).sum().backward()
        gradients.append([p.grad.clone() for p in policy.trainable()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)
    policy.seed_dropout(2)
    assert not torch.allclose(losses(policy, rows[0]), alone[0], atol=1e-3)
    policy.train(False)
    quiet = losses(policy, rows[0])
    policy.seed_dropout(1)
    assert torch.equal(losses(policy, rows[0]), quiet)


def test_dropout_leaves_its_share_out_anywhere() -> None:
    """Of each layer, row and place about p is left out, and no two are left out alike."""
    rows = Rows(None)
    rows.keys = _mixed(torch.arange(4 * 50, dtype=torch.int32).view(4, 50))
    kept = []
    for number in range(3):
        drop = RowDropout(0.3, number, rows).train()
        kept.append(drop(torch.ones(4, 50, 64, dtype=torch.float64)))
        assert set(kept[-1].unique().tolist()) == {0.0, 1 / 0.7}
    there = torch.stack(kept) > 0
    assert there.double().mean().item() == pytest.approx(0.7, abs=0.01)
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        assert (there.double().mean(dim=axes) - 0.7).abs().max() < 0.08
    flat = there.flatten(1).double() - 0.7
    alike = (flat @ flat.T) / flat.shape[1] / 0.21
    assert (alike - torch.eye(3, dtype=torch.float64)).abs().max() < 0.05
    columns = there[0].flatten(0, 1).double() - 0.7  # of one layer, one entry against another
    alike = columns.T @ columns / len(columns) / 0.21
    assert (alike - torch.eye(64, dtype=torch.float64)).abs().max() < 0.4


def dropping(share: float, shares_prompt: bool) -> Any:
    backbone = Backbone(make_model(torch.float64), make_tokenizer(), "tiny", "0" * 64, shares_prompt)
    policy = Policy(backbone, LoraShape(2, 4.0, share, ("all-linear",), 0), 0)
    for parameter in policy.trainable():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).to(
            parameter
        )
    policy.seed_dropout(1)
    return policy.train()
