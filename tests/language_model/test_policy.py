"""Policy, reference and bare backbone on one model; adapter folders that are whole, damaged or foreign."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_dynamicpo.errors import AdapterError, BackboneError, NumericsError
from recbole_dynamicpo.language_model.adapter_folder import LoraShape, read_adapter, read_lora_shape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.logps import shared_logps
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import Policy

from ..conftest import make_model, make_tokenizer

BATCH = TokenBatch(
    torch.tensor([[5, 6, 7], [8, 9, 0]]),
    torch.tensor([3, 2]),
    torch.tensor([[[10, 11, 0], [12, 13, 0]], [[14, 0, 0], [15, 16, 17]]]),
    torch.tensor([[2, 3], [1, 3]]),
)
WEIGHTS = "adapter_model.safetensors"


def make_policy(
    targets: tuple[str, ...] = ("q_proj", "v_proj"), layers: int = 0, rank: int = 2, seed: int = 1
) -> Policy:
    """Return a policy on a tiny three-layer model; its adapter adds nothing yet."""
    backbone = Backbone(make_model(layers=3), make_tokenizer(), "tiny", "0" * 64, True)
    return Policy(backbone, LoraShape(rank, 8.0, 0.0, targets, layers), seed)


def disturb(policy: Policy, seed: int = 0) -> None:
    """Move the adapter away from where it is, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


@torch.no_grad()
def speak(policy: Policy, voice: str = "policy") -> Tensor:
    with policy.speaking_as(voice):
        return policy.logps(BATCH)


@pytest.fixture
def policy() -> Policy:
    made = make_policy()
    disturb(made)
    return made


def test_a_new_adapter_adds_nothing() -> None:
    """LoRA's second matrix starts at zero, so the policy is the bare backbone, to the bit."""
    bare = shared_logps(make_model(layers=3), BATCH).detach()
    made = make_policy()
    assert torch.equal(speak(made), bare)
    assert torch.equal(speak(made, "backbone"), bare)


def test_the_backbone_stays_what_it_was(policy: Policy) -> None:
    bare = shared_logps(make_model(layers=3), BATCH).detach()
    before = speak(policy)
    assert torch.equal(speak(policy, "backbone"), bare)
    assert torch.equal(speak(policy), before)
    assert (before - bare).abs().min() > 1e-3


def test_policy_equals_reference_when_frozen(policy: Policy) -> None:
    before = speak(policy)
    assert not policy.has_reference
    policy.freeze_reference()
    assert policy.has_reference
    assert torch.equal(speak(policy, "reference"), before)
    assert torch.equal(speak(policy), before)


def test_weights_bear_the_names_of_a_peft_folder(policy: Policy) -> None:
    from peft import get_peft_model_state_dict

    theirs = get_peft_model_state_dict(policy.peft, adapter_name="policy")
    assert policy._weights("policy").keys() == theirs.keys()
    assert all(torch.equal(policy._weights("policy")[name], theirs[name]) for name in theirs)


def test_the_reference_stays_while_the_policy_learns(policy: Policy) -> None:
    policy.freeze_reference()
    frozen = speak(policy, "reference")
    optimizer = torch.optim.SGD(policy.trainable(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        policy.logps(BATCH).sum().backward()
        optimizer.step()
        assert torch.equal(speak(policy, "reference"), frozen)
    assert (speak(policy) - frozen).abs().min() > 1e-3


def test_freezing_again_replaces_the_reference(policy: Policy) -> None:
    policy.freeze_reference()
    disturb(policy, seed=1)
    policy.freeze_reference()
    assert torch.equal(speak(policy, "reference"), speak(policy))


def test_only_the_policy_learns(policy: Policy) -> None:
    """Also after the reference has spoken, and when it is made or speaks in between."""
    policy.freeze_reference()
    speak(policy, "reference")
    speak(policy, "backbone")
    policy.logps(BATCH).sum().backward()
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learning
    assert all(".policy." in name for name in learning)
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == learning
    assert len(policy.trainable()) == len(learning) == 3 * 2 * 2  # layers, targets, two matrices


def test_the_policy_speaks_again_after_an_error(policy: Policy) -> None:
    before = speak(policy)
    policy.freeze_reference()
    disturb(policy, seed=1)
    changed = speak(policy)
    for voice in ("reference", "backbone"):
        with pytest.raises(KeyError), policy.speaking_as(voice):
            raise KeyError
        assert torch.equal(speak(policy), changed)
    assert torch.equal(speak(policy, "reference"), before)


def test_the_seed_decides_the_first_weights() -> None:
    first, second, third = make_policy(seed=3), make_policy(seed=3), make_policy(seed=4)
    assert first.digest() == second.digest() != third.digest()


def test_the_draws_of_the_process_go_on_undisturbed() -> None:
    backbone = Backbone(make_model(), make_tokenizer(), "tiny", "0" * 64, True)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Policy(backbone, LoraShape(2, 8.0, 0.0, ("q_proj",), 0), seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_save_and_load(policy: Policy, tmp_path: Path) -> None:
    """Bit for bit, into a policy that began elsewhere, and as the reference too."""
    policy.save(tmp_path)
    other = make_policy(seed=9)
    assert other.digest() != policy.digest()
    other.load(tmp_path)
    assert other.digest() == policy.digest()
    assert torch.equal(speak(other), speak(policy))
    third = make_policy(seed=9)
    untouched = speak(third)
    third.load(tmp_path, "reference")
    assert torch.equal(speak(third, "reference"), speak(policy))
    assert torch.equal(speak(third), untouched)


def test_an_adapter_folder_is_an_ordinary_peft_folder(policy: Policy, tmp_path: Path) -> None:
    from peft import PeftModel

    policy.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", WEIGHTS]
    loaded = PeftModel.from_pretrained(make_model(layers=3), tmp_path)
    with torch.no_grad():
        assert torch.equal(shared_logps(loaded.get_base_model(), BATCH), speak(policy))
    names = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qv"]
    assert read_lora_shape(tmp_path) == LoraShape(2, 8.0, 0.0, tuple(names), 0)


@pytest.mark.parametrize(
    ("layers", "wanted"), [(0, {0, 1, 2}), (1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (9, {0, 1, 2})]
)
def test_only_the_topmost_layers_carry_lora(layers: int, wanted: set[int], tmp_path: Path) -> None:
    made = make_policy(layers=layers)
    names = [name for name, p in made.named_parameters() if p.requires_grad]
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in names} == wanted
    made.save(tmp_path)
    shape = read_lora_shape(tmp_path)
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in shape.targets} == wanted
    again = make_policy(targets=shape.targets, layers=shape.layers)
    again.load(tmp_path)
    assert again.bare_layers == made.bare_layers == min(wanted)


@pytest.mark.parametrize("layers", [0, 1])
def test_all_linear_layers(layers: int) -> None:
    """Seven linear layers in each of the transformer layers, and never the head."""
    made = make_policy(targets=("all-linear",), layers=layers)
    names = [name for name, p in made.named_parameters() if p.requires_grad]
    assert len(names) == (layers or 3) * 7 * 2
    assert not any("lm_head" in name for name in names)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(
        BackboneError, match=r"lora_targets: .*'tiny'.*: no_such_proj is not there.*wanted some of"
    ):
        make_policy(targets=("no_such_proj",))


def edit(folder: Path, change: dict[str, Tensor | None]) -> str:
    """Replace (or, by None, drop) tensors of a saved adapter; return the first tensor's name."""
    weights = load_file(folder / WEIGHTS)
    weights.update({name: value for name, value in change.items() if value is not None})
    kept = {name: value for name, value in weights.items() if change.get(name, value) is not None}
    save_file(kept, folder / WEIGHTS)
    return sorted(kept)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(policy: Policy, tmp_path: Path, value: float) -> None:
    policy.save(tmp_path)
    name = edit(tmp_path, {})
    broken = load_file(tmp_path / WEIGHTS)[name]
    broken[0, 0] = value
    edit(tmp_path, {name: broken})
    before = speak(policy)
    with pytest.raises(NumericsError, match=f"{WEIGHTS}: tensor {name} holds NaN or infinity"):
        policy.load(tmp_path)
    assert torch.equal(speak(policy), before)


def test_a_wrong_shape_is_named(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    name = edit(tmp_path, {})
    edit(tmp_path, {name: torch.zeros(2, 5)})
    with pytest.raises(AdapterError, match=rf"1 of 12 tensors differ, first {name}: got \(2, 5\), wanted"):
        policy.load(tmp_path)


def test_missing_and_additional_tensors_are_named(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    name = edit(tmp_path, {"zzz": torch.zeros(1)})
    with pytest.raises(AdapterError, match=r"first zzz: got \(1,\), wanted None"):
        policy.load(tmp_path)
    edit(tmp_path, {"zzz": None, name: None})
    with pytest.raises(AdapterError, match=f"first {name}: got None, wanted"):
        policy.load(tmp_path)


def test_an_adapter_of_another_size_does_not_fit(policy: Policy, tmp_path: Path) -> None:
    make_policy(rank=3).save(tmp_path)
    with pytest.raises(AdapterError, match=r"not an adapter for backbone 'tiny' .* 12 of 12 tensors differ"):
        policy.load(tmp_path)


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (self.mark,)


def test_a_pickle_is_refused_and_not_opened(policy: Policy, tmp_path: Path) -> None:
    folder, mark = tmp_path / "adapter", tmp_path / "unpickled"
    folder.mkdir()
    policy.save(folder)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Trap(str(mark))))
    with pytest.raises(
        AdapterError, match=rf"{WEIGHTS} \(adapter_model\.bin, a pickle, is not read\); found"
    ):
        policy.load(folder)
    assert not mark.exists()


def test_damaged_and_missing_folders(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        read_adapter(tmp_path / "nowhere")
    policy.save(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (b"", whole[:100], whole[:-1]):
        (tmp_path / WEIGHTS).write_bytes(damaged)
        with pytest.raises(AdapterError, match="damaged safetensors file"):
            policy.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"r": 8}', '{"r": "x", "target_modules": []}'])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=r"adapter_config\.json: not a LoRA configuration"):
        read_lora_shape(tmp_path)


def test_a_saved_configuration_names_the_backbone(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    assert config["peft_type"] == "LORA"
    with pytest.raises(AdapterError, match="cannot be read"):
        read_lora_shape(tmp_path / "nowhere")


class _Products(TorchDispatchMode):
    """Notes shape and dtype of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.found.append((tuple(result.shape), result.dtype))
        return result


def test_a_bfloat16_backbone_multiplies_the_adapter_in_bfloat16_and_trains_it_in_float32() -> None:
    backbone = Backbone(make_model(torch.bfloat16), make_tokenizer(), "tiny", "0" * 64, True)
    policy = Policy(backbone, LoraShape(2, 8.0, 0.0, ("q_proj",), 0), seed=1)
    disturb(policy)
    policy.freeze_reference()
    with _Products() as seen:
        policy.logps(BATCH).sum().backward()
        with policy.speaking_as("reference"), torch.no_grad():
            policy.logps(BATCH)
    narrow = [dtype for shape, dtype in seen.found if 2 in shape]  # of rank 2: x A', (x A') B', gradients
    assert set(narrow) == {torch.bfloat16}
    # Of two layers: twice forward what is (n, 2), and backward what is (n, 2), A's gradient and B's.
    assert len(narrow) == 2 * (2 + 3)
    assert {(p.dtype, p.grad.dtype) for p in policy.trainable() if p.grad is not None} == {
        (torch.float32, torch.float32)
    }


MORE_THAN_LORA = [
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is"),
    ({"target_parameters": ["experts.down_proj"]}, "target_parameters is"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
    ({"use_dora": True}, "use_dora is True"),
    ({"use_rslora": True}, "use_rslora is True"),
    ({"lora_bias": True}, "lora_bias is True"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
    ({"a_setting_of_next_year": 1}, "a_setting_of_next_year is 1"),
]


@pytest.mark.parametrize(("change", "reason"), MORE_THAN_LORA)
def test_an_adapter_that_is_more_than_lora_is_refused(
    policy: Policy, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    policy.save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = speak(policy)
    with pytest.raises(AdapterError, match=rf"{path.name}: .*{reason}.*more than plain LoRA"):
        policy.load(tmp_path)
    assert torch.equal(speak(policy), before)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_first_weights_that_leave_the_backbone_alone_are_fine(start: object, tmp_path: Path) -> None:
    """What peft trained and saved says the same here."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    theirs = get_peft_model(make_model(layers=3), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink(missing_ok=True)
    ours = make_policy()
    ours.load(tmp_path)
    with torch.no_grad():
        wanted = shared_logps(theirs.get_base_model(), BATCH)
        torch.testing.assert_close(speak(ours), wanted, rtol=0, atol=1e-4)
        assert (wanted - shared_logps(make_model(layers=3), BATCH)).abs().max() > 0.1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_peft_saves_of_such_starts_is_refused(start: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    get_peft_model(make_model(layers=3), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=f"init_lora_weights is '{start}'"):
        make_policy().load(tmp_path)


@pytest.mark.parametrize(("layers", "wanted"), [(1, [1, 1, 2]), (2, [1, 2, 2]), (0, [2, 2, 2])])
def test_only_layers_that_need_a_gradient_are_computed_again(layers: int, wanted: list[int]) -> None:
    """Each layer runs once forward, and those from the lowest adapter on once more backward."""
    backbone = Backbone(make_model(layers=3), make_tokenizer(), "tiny", "0" * 64, True, recomputes=True)
    policy = Policy(backbone, LoraShape(2, 8.0, 0.0, ("q_proj", "v_proj"), layers), seed=1)
    plain = make_policy(layers=layers)
    for each in (policy, plain):
        disturb(each)
        each.train()
    calls = [0, 0, 0]
    for index, layer in enumerate(backbone.model.get_decoder().layers):

        def count(*args: object, index: int = index) -> None:
            calls[index] += 1

        layer.self_attn.register_forward_pre_hook(count)
    policy.logps(BATCH).sum().backward()
    assert calls == wanted
    plain.logps(BATCH).sum().backward()
    for found, right in zip(policy.trainable(), plain.trainable(), strict=True):
        torch.testing.assert_close(found.grad, right.grad)
    speak(policy)
    assert calls == [count + 1 for count in wanted]  # nothing is computed again without a gradient
