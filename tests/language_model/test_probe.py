"""What a backbone can do is found out on a miniature of it, and no trick of its own weights hides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from recbole_dynamicpo.errors import BackboneError
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone, load_backbone
from recbole_dynamicpo.language_model.logps import separate_logps, shared_logps
from recbole_dynamicpo.language_model.miniature import make_visible, miniatures, small_config
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.language_model.probe import find_abilities, probe

from ..conftest import make_model, make_tokenizer
from ..helpers.architectures import build
from .test_logps import make_gpt2, one_by_one, ragged_batch


def test_an_ordinary_model_can_do_everything() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = find_abilities(make_model(dtype), "tiny")
        assert found == (True, True, True, ("one",))


def _hide(model: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """Let the decoder see its arguments only after ``change``."""
    decoder = model.get_decoder()
    original = decoder.forward

    def forward(*args: Any, **options: Any) -> Any:
        change(options)
        return original(*args, **options)

    decoder.forward = forward
    return model


def ignores_the_block_mask() -> Any:
    def change(options: dict[str, Any]) -> None:
        mask = options.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            options["attention_mask"] = None

    return _hide(make_model(), change)


def ignores_positions() -> Any:
    return _hide(make_model(), lambda options: options.pop("position_ids", None))


def clamps_positions() -> Any:
    def change(options: dict[str, Any]) -> None:
        ids = options["input_ids"]
        options["position_ids"] = torch.arange(ids.shape[1]).clamp(max=8).expand(ids.shape)

    return _hide(make_model(), change)


def has_a_head_bias() -> Any:
    model = build("phi")
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def caps_its_logits() -> Any:
    return build("gemma3_text", final_logit_softcapping=2.0)


def scales_its_logits() -> Any:
    return build("granite", logits_scaling=8.0)


def biases_by_distance() -> Any:
    """ALiBi is made from a 2-D mask; a 4-D one raises."""
    return build("bloom")


UNSHARED = [ignores_the_block_mask, ignores_positions, clamps_positions, biases_by_distance]


@pytest.mark.parametrize("make", UNSHARED)
@torch.no_grad()
def test_what_cannot_share_is_found_out_and_scored_one_by_one(make: Callable[[], Any]) -> None:
    model, batch = make(), ragged_batch()
    make_visible(model)
    wanted = one_by_one(model, batch)
    found = probe(model)
    assert not found.shares_prompt
    assert not found.replays
    shape = LoraShape(rank=2, alpha=4.0, dropout=0.0, targets=("all-linear",), layers=0)
    policy = Policy(Backbone(model, make_tokenizer(), "odd", "0" * 64, **found._asdict()), shape, seed=0)
    torch.testing.assert_close(policy.logps(batch), wanted, rtol=1e-4, atol=1e-3)


HEADS = [has_a_head_bias, caps_its_logits, scales_its_logits]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_head_that_is_no_matrix_is_left_to_the_model(make: Callable[[], Any], dtype: torch.dtype) -> None:
    """Found out whatever the dtype: rounding in bfloat16 would excuse what is off by whole nats."""
    model, batch = make().to(dtype), ragged_batch()
    found = find_abilities(model, "odd")
    assert found.shares_prompt
    assert not found.plain_head
    wanted = one_by_one(model.float(), batch)
    shared = shared_logps(model, batch, plain_head=False, form=found.mask_forms[0])
    torch.testing.assert_close(shared, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(separate_logps(model, batch, plain_head=False), wanted, rtol=0, atol=1e-4)


LEAKY = [("lfm2", "conv"), ("qwen3_next", "linear_attention"), ("bamba", ""), ("rwkv", ""), ("minimax", "")]


@pytest.mark.parametrize(("name", "kind"), LEAKY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_leak_shows_however_weak_the_weights(name: str, kind: str, dtype: torch.dtype) -> None:
    """With weights of a thousandth a completion that sees its neighbours scores as one that does not."""
    model = build(name)
    for parameter in model.parameters():
        parameter.mul_(1e-3)
    assert not kind or kind in model.config.layer_types
    found = find_abilities(model.to(dtype), name)
    assert not found.shares_prompt


@torch.no_grad()
def test_layers_that_give_more_than_states_are_not_replayed() -> None:
    """Upper layers of Gemma 3n take keys and values from lower ones."""
    found = find_abilities(build("gemma3n_text"), "tiny")
    assert (found.shares_prompt, found.replays) == (True, False)


@pytest.mark.parametrize("name", ["bert", "electra", "roberta"])
def test_an_encoder_is_no_decoder(name: str) -> None:
    with pytest.raises(BackboneError, match=r"'mine' .*see those behind them; .*\"is_decoder\": true"):
        find_abilities(build(name, is_decoder=False), "mine")
    assert find_abilities(build(name), "mine").shares_prompt == (name != "roberta")


def test_a_miniature_has_every_kind_of_layer_and_little_else() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = small_config(build("gemma3_text", num_hidden_layers=12, layer_types=kinds * 2))
    assert config.layer_types == kinds
    assert config.sliding_window == 4
    wide = build("mixtral", intermediate_size=500, num_local_experts=16, vocab_size=5000)
    small = next(miniatures(wide))
    sizes = small.config
    assert (sizes.num_local_experts, sizes.vocab_size, sizes.intermediate_size) == (4, 256, 64)
    assert sizes.num_hidden_layers == 2
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in wide.parameters()) / 10


def test_the_probe_leaves_the_draws_of_the_process_and_the_model_alone() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    find_abilities(model, "tiny")
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "entry", "limit"),
    [
        ("gpt2", "max_position_embeddings", 48),
        ("mistral", "max_position_embeddings", 90),
        ("gemma3_text", "max_position_embeddings", 70),
        ("whisper", "max_target_positions", 60),
    ],
)
def test_the_limit_that_binds_has_a_name(name: str, entry: str, limit: int) -> None:
    """However near its layers look, a row may be as long as the model knows positions."""
    model = build(name, **{entry: limit})
    backbone = Backbone(model, make_tokenizer(), name, "0" * 64, **find_abilities(model, name)._asdict())
    assert backbone.limit == (limit, f"the backbone's {entry}")
    assert backbone.max_length == limit


def long_rope(original: int) -> Any:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    return build("phi3", sliding_window=None, original_max_position_embeddings=original, rope_parameters=rope)


@pytest.mark.parametrize("original", [12, 20, 100])
@torch.no_grad()
def test_rows_do_not_turn_by_the_longest_of_their_batch(original: int) -> None:
    """Beyond the positions that it was first trained with, long RoPE takes other angles for all rows."""
    model = long_rope(original)
    backbone = Backbone(model, make_tokenizer(), "mine", "0" * 64, **find_abilities(model, "mine")._asdict())
    assert backbone.limit == (original, "the backbone's original_max_position_embeddings")
    make_visible(model, 0.3)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, 256, (2, original - 4), generator=draw)
    titles = torch.randint(1, 256, (2, 2, 4), generator=draw)
    both = TokenBatch(prompt, torch.tensor([original - 4, 4]), titles, torch.full((2, 2), 4))
    alone = TokenBatch(*(tensor[1:] for tensor in both))
    torch.testing.assert_close(shared_logps(model, both)[1:], shared_logps(model, alone), rtol=0, atol=1e-4)


WINDOWS = [
    ("mistral", {"sliding_window": 5}, "windowed"),
    ("phi3", {"sliding_window": 3}, "windowed"),
    ("gemma3_text", {"sliding_window": 6}, "by_kind"),
    ("gpt_oss", {"sliding_window": 4}, "by_kind"),
    ("olmo3", {"sliding_window": 7}, "by_kind"),
    ("modernbert-decoder", {"local_attention": 8}, "by_kind"),
    ("llama4_text", {"attention_chunk_size": 4}, "by_kind"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}, "by_kind"),
    ("mistral", {"sliding_window": None}, "one"),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 5}, "one"),
]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "more", "form"), WINDOWS)
@torch.no_grad()
def test_layers_that_look_near_do_so_within_the_shared_pass(
    name: str, more: dict[str, Any], form: str, kernel: str
) -> None:
    """Rows longer than the window score as each completion alone, where the model makes its own mask."""
    model, batch = build(name, **more), ragged_batch()
    if model._supports_sdpa:  # gpt-oss has eager attention alone
        model.set_attn_implementation(kernel)
    found = find_abilities(model, name)
    assert found.shares_prompt
    assert found.mask_forms[0] == form
    make_visible(model, 0.3)
    wanted = one_by_one(model, batch)
    shared = shared_logps(model, batch, plain_head=found.plain_head, form=form)
    torch.testing.assert_close(shared, wanted, rtol=1e-4, atol=1e-3)
    if form != "one":
        far = shared_logps(model, batch, plain_head=found.plain_head)
        assert (far - wanted).abs().max() > 0.05


def test_a_window_that_fits_no_form_of_the_mask_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows another window than its configuration says is scored a sequence a completion."""
    model = build("mistral", sliding_window=5)
    monkeypatch.setattr(
        "recbole_dynamicpo.language_model.decoder.look_back",
        lambda config: {"sliding_attention": (2, "sliding_window")},
    )
    found = find_abilities(model, "odd")
    assert (found.shares_prompt, found.replays, found.mask_forms) == (False, False, ())


@torch.no_grad()
def test_a_model_with_learned_positions_can_share() -> None:
    """GPT-2 takes a 4-D mask and position numbers; restarted ones stay below its 16 positions."""
    model, batch = make_gpt2(), ragged_batch()
    assert find_abilities(model, "gpt2").shares_prompt
    torch.testing.assert_close(shared_logps(model, batch), one_by_one(model, batch), rtol=0, atol=1e-4)


def test_loading_says_that_sharing_does_not_work(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    biases_by_distance().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    assert not backbone.shares_prompt
    assert "each candidate is scored in a sequence of its own" in caplog.text
