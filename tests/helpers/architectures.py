"""Tiny random models of every causal language model that the installed transformers has.

``TABLE`` says of each model type what must become of it. A type that it does not know is an error, so that a
new release of transformers passes no architecture by in silence.
"""

from __future__ import annotations

from typing import Any

import torch

SHARED, SEPARATE, REFUSED = "shared", "separate", "refused"
LAYERS = 4

_LATENT = {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 16}
_WINDOWED = {"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]}

# Whatever of it a configuration knows.
SIZES: dict[str, Any] = {
    "vocab_size": 257,
    **dict.fromkeys(("hidden_size", "d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "encoder_layers"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    "max_position_embeddings": 1024,
    **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    "is_decoder": True,
    # Less than a row has, so that what such layers must not see is there.
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 8),
    "local_attention": 16,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
}
# What a type needs beside or instead of it, so that what is peculiar to it is there.
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32"),
            *("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"),
        ),
        _LATENT,
    ),
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **_WINDOWED},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, **_WINDOWED},
    "dots3_note": {**_LATENT, "head_dim": 16, "per_layer_config": {}, "layer_types": None},
    "dots3_note_text": {**_LATENT, "head_dim": 16, "per_layer_config": {}, "layer_types": None},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gemma2": _WINDOWED,
    "gemma3_text": _WINDOWED,
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 257,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "intermediate_size": [48] * LAYERS,
        "laurel_rank": 8,
    },
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 8.0},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, "num_experts_per_token": 2},
    **dict.fromkeys(("laguna", "mellum"), _WINDOWED),
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {**_LATENT, "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "modernbert-decoder": {"global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 0},
    "plbart": {"decoder_attention_heads": 4, "decoder_ffn_dim": 48, "decoder_layers": LAYERS},
    "prophetnet": {
        "num_hidden_layers": None,
        "num_decoder_layers": LAYERS,
        "num_encoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "num_encoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
    },
    "qwen3_next": _LINEAR,
    "qwen4_exp": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        **{"layer_types": ["linear_attention", "indexed_attention"] * 2},
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        **{"layer_types": ["linear_attention", "indexed_attention"] * 2},
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "whisper": {
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "decoder_layers": LAYERS,
        "max_target_positions": 512,
    },
    "xlnet": {"max_position_embeddings": None, "n_head": 4, "d_head": 8, "d_inner": 48, "n_layer": LAYERS},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 12,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def build(model_type: str, **more: Any) -> Any:
    """Return a tiny random float32 model of a type."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    general = CONFIG_MAPPING[model_type]().get_text_config(decoder=True)
    entries = {*general.to_dict(), *general.attribute_map}
    sizes = {
        **{key: value for key, value in SIZES.items() if key in entries},
        **MORE.get(model_type, {}),
    }
    config = type(general)(**{key: value for key, value in sizes.items() if value is not None} | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


# All completions of a prompt in one pass.
_SHARED = (
    *("afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "beam", "bert"),
    *("bert-generation", "big_bird", "biogpt", "bitnet", "codegen", "cohere"),
    *("cohere2", "cohere2_moe", "cohere_compass_text", "ctrl", "cwm", "dbrx", "deepseek_v2"),
    *("deepseek_v3", "deepseek_v32", "diffllama", "doge", "dots1", "dots3_note"),
    *("dots3_note_text", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe"),
    *("falcon", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text"),
    *("gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt-sw3"),
    *("gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite"),
    *("granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hunyuan_v1_dense"),
    *("hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe"),
    *("kolibri1", "laguna", "llama", "llama4", "llama4_text", "longcat_flash"),
    *("megatron-bert", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "minimax_m3_vl_text"),
    *("ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "nanochat"),
    *("nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "rembert", "roc_bert", "seed_oss", "smollm3"),
    *("solar_open", "stablelm", "starcoder2", "vaultgemma", "whisper", "xglm", "youtu"),
)
# A sequence a completion: recurrent, convolutional, or with positions of their own.
_SEPARATE = (
    *("bart", "blenderbot-small", "marian", "mvp"),
    "deepseek_v4",
    *("bailing_hybrid", "bamba", "bigbird_pegasus", "blenderbot", "bloom", "camembert"),
    *("data2vec-text", "falcon_h1", "falcon_mamba", "gpt_neo", "granitemoehybrid", "inkling2_text"),
    *("inkling_text", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "mbart"),
    *("minimax", "mpt", "nemotron_h", "olmo_hybrid", "openai-gpt", "pegasus", "plbart", "qwen3_5"),
    *("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text"),
    *("recurrent_gemma", "roberta", "roberta-prelayernorm", "roformer", "rwkv", "trocr"),
    *("xlm-roberta", "xlm-roberta-xl", "xlstm", "xmod", "zamba", "zamba2", "zaya"),
)
# Made of several models, and no causal language model of text alone.
COMPOSITE = (
    *("blt", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified"),
    *("gemma4_unified_assistant", "git", "got_ocr2", "mllama", "moshi", "moss_transcribe_diarize"),
    *("musicgen", "musicgen_melody", "phi4_multimodal"),
)
# Encoders that read ahead, and what else cannot be scored.
_OTHERS = ["reformer", "cpmant", "prophetnet", "xlm", "xlnet", "hrm_text"]
TABLE: dict[str, str] = {
    **dict.fromkeys(_SHARED, SHARED),
    **dict.fromkeys(_SEPARATE, SEPARATE),
    **dict.fromkeys((*COMPOSITE, *_OTHERS), REFUSED),
}
# Other sides of some types.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {"alibi": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("qwen2", {"use_sliding_window": True, **_WINDOWED}),
    ("mistral", {"sliding_window": None}),
]
