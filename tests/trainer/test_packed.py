"""Examples that lie in one row train as those that have rows of their own."""

from pathlib import Path

import pytest
import torch
import trl

from architectures import tiny_architecture
from schemabank import InputError
from schemabank.trainer.packed import check_apart, is_packed, lengths_of
from trainers import PAIRS, ROUNDING, TOLERANCE, engine, furthest, method, tensors, wrapped
from trltrainers import sft_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory"
)

WITHOUT_PADDING = ("lora", "coto", "molf", "schemabank", "shrink", "experts")
ALL_PACKED = ("lora", "coto", "molf", "schemabank", "shrink", "experts")
HASHED = method("experts", experts={"routing": "hash", "consistency_weight": 0.5})
FREE = {"padding_free": True, "max_length": None}
PACKED = {"packing": True, "max_length": 64}
MIXES = r"\(attention .*\) an example then sees the one before it: allowed is False"
ALL = {"per_device_train_batch_size": len(PAIRS), "max_steps": 6, "shuffle_dataset": False}


@pytest.mark.parametrize("arm", WITHOUT_PADDING)
def test_without_padding_it_ends_at_the_engines_weights(arm: str, tmp_path: Path) -> None:
    """With every penalty, tags by example among them."""
    trained = sft_trainer(tmp_path, method(arm), engines_order=True, **FREE)
    trained.train()
    assert furthest(tensors(trained), engine(method(arm))[0]) < ROUNDING


@pytest.mark.parametrize("arm", ALL_PACKED)
def test_all_examples_packed_train_as_all_in_rows(arm: str, tmp_path: Path) -> None:
    own = method(arm, tags={"tagger": "none"}) if arm == "schemabank" else method(arm)
    packed, rows = sft_trainer(tmp_path, own, **ALL, **PACKED), sft_trainer(tmp_path, own, **ALL)
    assert len(packed.train_dataset) < len(PAIRS) / 3
    for each in (packed, rows):
        each.train()
    assert furthest(tensors(packed), tensors(rows)) < ROUNDING
    assert max(float(b.abs().max()) for _, b in tensors(packed).values()) > 0.01, "it has trained"


def test_examples_of_a_row_are_counted_only_where_their_lengths_are_needed() -> None:
    """A tensor without numbers can be asked for none."""
    packed = {"position_ids": torch.tensor([[0, 1, 2, 0, 0, 1]])}
    assert lengths_of(packed) == [3, 1, 2]
    unread = {"position_ids": torch.empty(1, 6, device="meta", dtype=torch.long)}
    assert is_packed(packed)
    assert is_packed(unread)
    rows = {"position_ids": unread["position_ids"].expand(2, 6)}
    for batch in ({}, rows, {**unread, "attention_mask": unread["position_ids"]}):
        assert not is_packed(batch)
        assert lengths_of(batch) is None


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        ("schemabank", PACKED, r"no column example_index any more, .*padding_free"),
        ("hashed", PACKED, r"no column example_index any more, .*experts\.routing to 'random'"),
        ("lora", {**PACKED, "packing_strategy": "wrapped"}, "strategy is 'wrapped'.*bfd or"),
        ("lora", {**FREE, "pad_to_multiple_of": 8}, "pad_to_multiple_of is 8, .*allowed is None"),
    ],
)
def test_packing_that_would_train_otherwise_is_refused(
    arm: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    own = HASHED if arm == "hashed" else method(arm)
    with pytest.raises(InputError, match=message):
        sft_trainer(tmp_path, own, **changes)


def test_experts_by_example_and_two_passes_are_those_of_rows(tmp_path: Path) -> None:
    """In float64: at first both passes are equal, and AdamW stretches the rounding between them."""
    torch.set_default_dtype(torch.float64)
    try:
        trained = sft_trainer(tmp_path, HASHED, engines_order=True, **FREE)
        trained.train()
        assert furthest(tensors(trained), engine(HASHED)[0]) < TOLERANCE
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, MIXES) for name in ("opt", "bloom", "gpt_oss", "mamba")),
        ("lfm2", r"this model cannot compute it \(.*causal_conv1d.*\): allowed is False"),
    ],
)
def test_models_that_mix_the_examples_of_a_row_are_refused(name: str, message: str) -> None:
    packs = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(0, padding_free=True)
    check_apart(wrapped(), packs)
    with pytest.raises(InputError, match=message):
        check_apart(tiny_architecture(name), packs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_whose_logits_are_not_finite_is_refused(value: float) -> None:
    """A difference that is NaN is larger than nothing."""
    packs = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(0, padding_free=True)
    spoilt = wrapped()
    next(spoilt.get_output_embeddings().parameters()).data[7] = value
    with pytest.raises(InputError, match=r"logits for such a row are not finite.*both to False$"):
        check_apart(spoilt, packs)


def test_they_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    mixing = sft_trainer(tmp_path, method("lora"), model=tiny_architecture("opt"), **FREE)
    with pytest.raises(InputError, match="sees the one before it"):
        mixing.train()
    assert mixing.state.global_step == 0


def test_the_model_is_asked_in_the_precision_in_which_it_trains(tmp_path: Path) -> None:
    """FlashAttention, for one, refuses float32."""
    trained = sft_trainer(tmp_path, method("lora"), bf16=True, max_steps=1, **FREE)
    seen = set()
    for name, module in trained.model.named_modules():
        if name.endswith("q_proj"):
            module.register_forward_hook(lambda _module, _args, output: seen.add(output.dtype))
    trained.train()
    assert seen == {torch.bfloat16}
