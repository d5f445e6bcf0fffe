"""QLoRA: a base model in 4 bits trains as one that has the same weights in full."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from schemabank import InputError, RunConfig, Tuner
from schemabank.trainer import MethodTrainerMixin
from tiny import tiny_tokenizer
from tinyruns import write_model
from trainers import (
    ARGUMENTS,
    BANK,
    LORA,
    ROUNDING,
    TinyTrainer,
    arguments,
    collate,
    furthest,
    logits,
    method,
    rows,
    tensors,
    tokens_of,
)

bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.filterwarnings("ignore")  # of bitsandbytes, on CPUs

STEPS = 5  # through all stages
ARMS = ("lora", "coto", "molf", "schemabank", "shrink", "experts")


class TinySFT(MethodTrainerMixin, trl.SFTTrainer):
    """TRL's trainer under a method."""


def in_4_bits(folder: Path) -> PreTrainedModel:
    """A tiny model in nf4, computed in float32."""
    write_model(folder, "llama")
    wanted = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=wanted
    )
    return model


def in_full(folder: Path) -> PreTrainedModel:
    """The same weights, as numbers of 32 bits."""
    narrow, wide = in_4_bits(folder), AutoModelForCausalLM.from_pretrained(folder)
    for path, module in narrow.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            found = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            layer = wide.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            assert (layer.weight - found).abs().max() > 0.001, "4 bits are fewer than 32"
            layer.weight.data = found.float()
    return wide


def made(folder: Path, model: PreTrainedModel, arm: RunConfig, **changes: object) -> TinyTrainer:
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return TinyTrainer(
        method=arm,
        model=peft.get_peft_model(model, adapter()),
        args=arguments(folder, max_steps=STEPS, **changes),
        train_dataset=rows(tokens_of()),
        data_collator=collate,
        processing_class=tiny_tokenizer(),
    )


def in_sft(folder: Path, arm: RunConfig) -> TinySFT:
    common: dict[str, Any] = {**ARGUMENTS, "bf16": False, "max_steps": STEPS}
    return TinySFT(
        method=arm,
        model=in_4_bits(folder / "model"),
        args=trl.SFTConfig(str(folder), **common),
        train_dataset=rows(tokens_of()),
        processing_class=tiny_tokenizer(),
        peft_config=adapter(),
    )


def adapter() -> peft.LoraConfig:
    return peft.LoraConfig(
        r=LORA.r, lora_alpha=10, target_modules=list(LORA.target_modules), task_type="CAUSAL_LM"
    )


@pytest.mark.parametrize("arm", ARMS)
def test_4_bits_train_as_the_same_weights_in_full(arm: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    narrow = made(tmp_path, in_4_bits(folder), method(arm))
    wide = made(tmp_path, in_full(folder), method(arm))
    for each in (narrow, wide):
        each.train()
    assert furthest(tensors(narrow), tensors(wide)) < ROUNDING
    assert max(float(b.abs().max()) for _, b in tensors(narrow).values()) > 0.01, "it has trained"
    narrow.save_model(str(tmp_path / "adapter"))
    stock = peft.PeftModel.from_pretrained(in_4_bits(folder), tmp_path / "adapter")
    assert torch.equal(logits(stock), logits(narrow.model))


@pytest.mark.parametrize("arm", ARMS)
def test_trl_trains_its_adapter_in_float32(arm: str, tmp_path: Path) -> None:
    """TRL makes it bfloat16 on such a base model, which swallows small updates."""
    trained = in_sft(tmp_path, method(arm))
    assert {weight.dtype for weight in trained._adapter.a} == {torch.float32}
    trained.train()
    weights = [w for pair in tensors(trained).values() for w in pair]
    assert all(not torch.equal(w, w.bfloat16().float()) for w in weights)


def test_it_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    arm = method("schemabank", bank=BANK)
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = made(tmp_path, in_4_bits(tmp_path / "model"), arm, **saving)
    whole.train()
    again = made(tmp_path / "again", in_4_bits(tmp_path / "model"), arm, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert furthest(tensors(again), tensors(whole)) == 0


def test_the_engine_refuses_it(tmp_path: Path) -> None:
    model = in_4_bits(tmp_path / "model")
    with pytest.raises(InputError, match=r"is quantised \(bitsandbytes, .*schemabank\.trainer"):
        Tuner(model, tiny_tokenizer(), RunConfig(arm="lora"))
