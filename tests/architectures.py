"""Tiny models of many architectures, with random weights."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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

# What each architecture needs beyond the common settings.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "arcee": {},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**GPT2, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 6},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "ernie4_5": {},
    "exaone4": {"sliding_window": 6},
    "falcon": {},
    "falcon_mamba": {"state_size": 4},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
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
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "sliding_window": 6},
    "gptj": {**GPT2, "rotary_dim": 4},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0},
    "hunyuan_v1_dense": {"head_dim": 8},
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "ministral": {"head_dim": 8, "sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "mixtral": {"num_local_experts": 4, "sliding_window": 6},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
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
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen2_window": {
        "kind": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 8},
    "qwen3_5_text": {
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "qwen3_next": {
        **EXPERTS,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 6,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": {"head_dim": 8},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
}


def tiny_architecture(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:  # noqa: ANN401
    """A float32 model of two blocks, whose weights are large enough to prefer some tokens."""
    given = {**COMMON, **CHANGES[name], **changes}
    kind = given.pop("kind", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gemma3":
            text = {**COMMON, "head_dim": 8, "sliding_window": 6, **changes}
            given = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4}
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **given)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.float().eval()
