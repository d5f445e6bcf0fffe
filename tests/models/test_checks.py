"""checks.py: models that see what they are to predict, or that fail on text, are refused."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from architectures import tiny_architecture
from schemabank.common.errors import InputError
from schemabank.models.basemodel import load_base_model
from schemabank.models.checks import check_causal, check_reads, loading
from tiny import VOCAB_SIZE, tiny_tokenizer
from tinyruns import write_model


def bert(*, is_decoder: bool, spread: float = 0.3) -> PreTrainedModel:
    return BertLMHeadModel(
        BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            is_decoder=is_decoder,
            initializer_range=spread,
        )
    ).eval()


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free some space, or let HF_HOME name a folder that has room and "),
        (errno.EDQUOT, "free some space, or let HF_HOME name a folder that has room and "),
        (errno.EROFS, "let HF_HOME name a folder that has room and that you may write to."),
        (errno.EACCES, "give a causal model known to transformers "),
        (errno.EIO, "give a causal model known to transformers "),
    ],
)
def test_a_cache_that_is_full_is_no_fault_of_the_model(number: int, mend: str) -> None:
    said = f"'a/b' could not be loaded: .*; {mend}"
    with pytest.raises(InputError, match=said), loading("a/b"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(InputError, match=said), loading("a/b"):
        raise RuntimeError("no such weights") from OSError(number, os.strerror(number))


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


@pytest.mark.filterwarnings("ignore:.*is_decoder")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_sees_little_of_later_tokens_is_refused_in_every_type(
    dtype: torch.dtype,
) -> None:
    """Its logits differ by less than those of some models do by rounding alone."""
    torch.manual_seed(0)
    check_causal(bert(is_decoder=True, spread=0.02).to(dtype))
    with pytest.raises(InputError, match="is not causal"):
        check_causal(bert(is_decoder=False, spread=0.02).to(dtype))


@pytest.mark.parametrize(
    ("rounding", "precise", "passes"),
    [
        (0.0, 0.5, True),  # nobody asks
        (0.03, 0.0, True),
        (0.5, 0.0, True),
        (0.03, 0.03, False),
        (0.5, 0.5, False),
        (0.03, torch.OutOfMemoryError(), True),
        (0.5, torch.OutOfMemoryError(), False),
        (0.03, RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (0.03, RuntimeError("expected BFloat16 but found Float"), True),
        (0.5, RuntimeError("expected BFloat16 but found Float"), False),
    ],
)
def test_what_rounding_alone_may_have_made_is_asked_again_in_float32(
    rounding: float, precise: float | Exception, *, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a mixture's router changes its mind for a rounded number."""
    model = tiny_architecture("llama").to(torch.bfloat16)  # type: ignore[arg-type]  # for devices
    plain = model.forward

    def forward(input_ids: torch.Tensor, **options: object) -> object:
        by = rounding if model.dtype == torch.bfloat16 else precise
        if isinstance(by, Exception):
            raise by
        output = plain(input_ids=input_ids, **options)
        changed = output.logits.float()
        changed += by * changed.abs().max() * (input_ids[:, -1:, None] - 4)
        output.logits = changed
        return output

    tensors = [*model.parameters(), *model.buffers()]
    before = [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]
    monkeypatch.setattr(model, "forward", forward)
    with nullcontext() if passes else pytest.raises(InputError, match="is not causal"):
        check_reads("mine", model)
    assert [(tensor.data_ptr(), tensor.dtype) for tensor in tensors] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_whose_logits_are_not_finite_is_refused(value: float, dtype: torch.dtype) -> None:
    """As by a buffer that is damaged: weights are looked at one by one."""
    model = tiny_architecture("llama").to(dtype)
    next(model.get_output_embeddings().parameters()).data[7] = value
    with pytest.raises(InputError, match=r"LlamaForCausalLM gives logits that are not finite"):
        check_reads("mine", model)


def test_a_model_whose_logits_are_all_zero_passes() -> None:
    model = tiny_architecture("llama")
    next(model.get_output_embeddings().parameters()).data.zero_()
    check_causal(model)


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


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**30), ("num_hidden_layers", 1e30), ("num_local_experts", 10**9)],
)
def test_more_layers_than_any_model_has_are_refused_before_one_is_made(
    tmp_path: Path, key: str, value: float
) -> None:
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": {key: value}}))
    with pytest.raises(InputError, match=f"as {key} in its configuration, allowed are at most"):
        load_base_model(str(tmp_path), dtype=torch.float32, device=torch.device("cpu"))
