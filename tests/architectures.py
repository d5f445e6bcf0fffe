"""Tiny models of many architectures, with random weights."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from schemabank.models.architecture import auto_class
from tiny import END_TOKEN_ID, VOCAB_SIZE

# What most configurations know, and what GPT-2's kind calls it.
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": END_TOKEN_ID,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}
GPT2: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": None,
    "eos_token_id": END_TOKEN_ID,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}

# Settings of Qwen3-Next's kind, whose every second block is recurrent.
DELTA = {
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# Of mixtures whose first block is dense, with a shared expert in the others.
SHARED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
}
GEMMA = {"head_dim": 8, "sliding_window": 6}
GEMMA4 = {
    "global_head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "pad_token_id": 0,
}

# What each architecture needs beyond the common settings, by its name in transformers or one of
# ours for a variant, whose ``kind`` is that name then.
DENSE: Mapping[str, Mapping[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**GPT2, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 6},
    "ctrl": {**GPT2, "dff": 48},
    "diffllama": {"head_dim": 8},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 6},
    "falcon": {},
    "falcon_new": {"kind": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": {"head_dim": 8},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gemma3n_text": {
        **GEMMA,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "intermediate_size": [48, 48],
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {**GEMMA, **GEMMA4},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
    },
    "gpt_neox": {},
    "gptj": {**GPT2, "rotary_dim": 4},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "llama": {},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "ministral": GEMMA,
    "ministral3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt_projected": {"kind": "opt", "ffn_dim": 48, "word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {},
    "qwen2_window": {
        "kind": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "vaultgemma": GEMMA,
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
}
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {**LATENT, **SHARED, "topk_method": "greedy"},
    "deepseek_v3": {**LATENT, **SHARED},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "glm4_moe": {**SHARED, "head_dim": 8},
    "gpt_oss": {**GEMMA, "num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "mixtral": {"num_local_experts": 4, "sliding_window": 6},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
}
RECURRENT: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    "falcon_mamba": {"state_size": 4},
    "granitemoehybrid": {
        **MAMBA2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"],
        "logits_scaling": 2.0,
    },
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "chunk_size": 8,
        "n_groups": 1,
        "head_dim": 8,
        "layers_block_type": ["mamba", "attention"],
    },
    "qwen3_5_text": DELTA,
    "qwen3_next": {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 6,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 32},
    "zamba2": {
        "mamba_d_state": 4,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "n_mamba_heads": 8,
        "layers_block_type": ["mamba", "hybrid"],
        "adapter_rank": 4,
    },
}

CLIP = {"model_type": "clip_vision_model", **VISION}
PATCHES = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "intermediate_size": 16,
}
IMAGE = 7  # the token that stands for an image; no test's text has it


def by_sections(*sections: int) -> dict[str, Any]:
    """Rotary positions in time, height and width, as Qwen's models have them."""
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [*sections],
        }
    }


# Text models beside a vision tower: what each needs beyond the common settings in its
# ``text_config``, and its other settings.
WRAPPERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "gemma3": (GEMMA, {"vision_config": VISION, "mm_tokens_per_image": 4}),
    "gemma4": (
        {**GEMMA, **GEMMA4},
        {"vision_config": {**VISION, "head_dim": 8}, "pad_token_id": 0},
    ),
    "internvl": (
        {"model_type": "qwen2"},
        {
            "vision_config": {
                **VISION,
                "model_type": "internvl_vision",
                "image_size": [32, 32],
                "patch_size": [16, 16],
            },
            "image_token_id": IMAGE,
        },
    ),
    "llava": ({"model_type": "llama"}, {"vision_config": CLIP, "image_token_index": IMAGE}),
    "mistral3": (
        {"model_type": "mistral", "head_dim": 8},
        {
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": IMAGE,
        },
    ),
    "qwen2_vl": (
        by_sections(1, 1, 2),
        {"vision_config": {**PATCHES, "embed_dim": 16}, "image_token_id": IMAGE},
    ),
    "qwen2_5_vl": (by_sections(1, 1, 2), {"vision_config": PATCHES, "image_token_id": IMAGE}),
    "qwen3_vl": (
        {"head_dim": 8, **by_sections(2, 1, 1)},
        {
            "vision_config": {**PATCHES, "deepstack_visual_indexes": [0]},
            "image_token_id": IMAGE,
        },
    ),
    "smolvlm": (
        {"model_type": "llama"},
        {"vision_config": VISION, "image_token_id": IMAGE, "scale_factor": 1},
    ),
}
GROUPS: Mapping[str, Collection[str]] = {
    "Dense": DENSE,
    "Mixtures of experts": MIXTURES,
    "Recurrent, and hybrids of that and attention": RECURRENT,
    "Text models beside a vision tower": WRAPPERS,
}
NAMES = sorted(name for group in GROUPS.values() for name in group)


def tiny_architecture(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:  # noqa: ANN401
    """A float32 model of two blocks, whose weights are large enough to prefer some tokens."""
    config = _configured(name, changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class(config).from_config(config)
        for parameter in model.parameters():
            # Biases and gates of zero would hide what depends on them.
            if parameter.dim() > 1 or not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return model.float().eval()


def _configured(name: str, changes: Mapping[str, Any]) -> PreTrainedConfig:
    if name in WRAPPERS:
        text, given = WRAPPERS[name]
        given = {"text_config": {**COMMON, **text, **changes}, **given}
    else:
        own = next(group[name] for group in (DENSE, MIXTURES, RECURRENT) if name in group)
        given = {**COMMON, **own, **changes}
    config: PreTrainedConfig = AutoConfig.for_model(given.pop("kind", name), **given)
    return config
