"""Tiny models with random weights and their tokenizer, for every test that needs some model."""

from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 300
END_TOKEN = "<|end|>"  # noqa: S105 -- a token of text, no secret
END_TOKEN_ID = 0
CORPUS = (
    "Natalia sold 48 clips in April, and then she sold half as many clips in May.",
    "How many clips did Natalia sell altogether in April and May? The answer is 72.",
    "What is the capital of France? The capital of France is Paris.",
)

Kind = Literal["llama", "qwen2", "gemma3"]


def tiny_model(kind: Kind, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model of 3 blocks in eval mode; the same seed gives the same weights.

    Output and input embeddings are tied in Qwen2 (as in its 0.5B) and Gemma 3, not in Llama.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(kind).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text comes back unchanged, digits stand alone, nothing is added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_TOKEN, clean_up_tokenization_spaces=False
    )


def sentencepiece_tokenizer(
    *, end: bool = False, byte_fallback: bool = True
) -> PreTrainedTokenizerFast:
    """As Llama 2's: a blank before every text, which decoding takes away, and bytes as a fallback.

    Without ``byte_fallback`` other characters than ASCII's are unknown. ``<s>`` stands before a
    text and, with ``end``, ``</s>`` behind it (``add_eos_token``).
    """
    unknown, start, end_of_text = special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *map(chr, range(33, 127)), "▁▁", "▁▁▁▁"]
    merges = [("▁", "▁"), ("▁▁", "▁▁")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            byte_fallback=byte_fallback,
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end_of_text,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )


def _build(kind: Kind) -> PreTrainedModel:
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": END_TOKEN_ID,
        "pad_token_id": None,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **shape,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=512,
            layer_types=layer_types,
            tie_word_embeddings=True,
        )
    )


def mixed(model: nn.Module) -> list[bool]:
    """Let every second parameter train, and every third module be in training mode."""
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return state(model)


def state(model: nn.Module) -> list[bool]:
    """What trains, and which modules are in training mode."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    return [*trained, *(module.training for module in model.modules())]
