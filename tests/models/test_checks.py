"""checks.py: models that see what they are to predict, or that fail on text, are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from architectures import tiny_architecture
from schemabank.common.errors import InputError
from schemabank.models.basemodel import load_base_model
from schemabank.models.checks import check_causal, check_reads
from tiny import VOCAB_SIZE, tiny_tokenizer


def bert(*, is_decoder: bool) -> PreTrainedModel:
    return BertLMHeadModel(
        BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            is_decoder=is_decoder,
            initializer_range=0.3,
        )
    ).eval()


@pytest.mark.filterwarnings("ignore:.*is_decoder")
def test_a_model_whose_tokens_see_later_ones_is_refused(tmp_path: Path) -> None:
    check_causal(bert(is_decoder=True))
    with pytest.raises(InputError, match="BertLMHeadModel is not causal, its tokens see later one"):
        check_causal(bert(is_decoder=False))
    bert(is_decoder=False).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is not causal"):
        load_base_model(str(tmp_path), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "mamba", "mixtral", "qwen2_vl"])
def test_a_causal_model_passes(name: str, dtype: torch.dtype) -> None:
    check_causal(tiny_architecture(name).to(dtype))


def failing(error: Exception) -> Callable[..., object]:
    def forward(**_: object) -> object:
        raise error

    return forward


def test_a_model_that_fails_on_text_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_architecture("llama")
    check_reads("mine", model)
    monkeypatch.setattr(model, "forward", failing(ValueError("pixel_values are missing\nand so")))
    with pytest.raises(InputError) as refusal:
        check_reads("mine", model)
    assert str(refusal.value).startswith(
        "Base model 'mine' fails on a text of four tokens: pixel_values are missing; give a causal"
    )


def test_memory_that_runs_out_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_architecture("llama")
    monkeypatch.setattr(model, "forward", failing(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        check_reads("mine", model)
