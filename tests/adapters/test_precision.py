"""Precision: what a model computes in it, whatever its code asks for."""

import pytest
import torch
import transformers
from torch import Tensor

from schemabank.adapters.precision import Precision, in_precision
from tiny import Kind, tiny_model

TOKENS = torch.tensor([[5, 9, 20, 33, 12, 99, 4, 4, 7]])
SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
}
ATTENTION = {
    **SHAPE,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}
EXPERTS = {**ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2}
# Models whose code asks for float32 in many places, or for operations that have no float64.
OTHERS = {
    "Mixtral": EXPERTS,
    "GptOss": EXPERTS,
    "Gemma2": ATTENTION,
    "Mamba": SHAPE,
    "Falcon": {**SHAPE, "num_attention_heads": 4},
}


def logits(model: torch.nn.Module, dtype: torch.dtype, *, backwards: bool = False) -> Tensor:
    with torch.no_grad(), in_precision(model, dtype, backwards=backwards):
        found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def other(name: str) -> torch.nn.Module:
    config = getattr(transformers, f"{name}Config")(**OTHERS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.eval().to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_norms_that_cast_to_float32_do_not_round_here(kind: Kind) -> None:
    """A model cast to float64 rounds to float32 in its norms all the same."""
    model = tiny_model(kind)
    exact = logits(model, torch.float64)
    assert exact.dtype == torch.float64
    assert difference(logits(model, torch.float64, backwards=True), exact) < 1e-14
    with torch.no_grad():
        cast = tiny_model(kind).double()(input_ids=TOKENS, use_cache=False).logits
    assert difference(cast, exact) > 1e-9


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_architecture_computes_in_float64_and_stays_as_it_was(name: str) -> None:
    model = other(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact = logits(model, torch.float64)
    assert exact.dtype == torch.float64
    assert 0 < difference(logits(model, torch.float64, backwards=True), exact) < 1e-14
    assert 1e-9 < difference(logits(model, torch.float32), exact) < 1e-5
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_float32_is_what_a_float32_model_computes_anyway() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        plain = model(input_ids=TOKENS, use_cache=False).logits
    assert torch.equal(logits(model, torch.float32), plain)


def test_what_is_written_into_keeps_its_type() -> None:
    target = torch.zeros(3, dtype=torch.float32)
    with Precision(torch.float64):
        target.add_(torch.ones(3, dtype=torch.bfloat16))
        target.index_add_(0, torch.tensor([0]), torch.ones(1, dtype=torch.float64))
    assert target.dtype == torch.float32
    assert target.tolist() == [2, 1, 1]


def test_whole_numbers_and_truth_values_stay() -> None:
    with Precision(torch.float64):
        assert (torch.arange(3) + 1).dtype == torch.int64
        assert (torch.ones(3) > 0).dtype == torch.bool
        assert torch.zeros(3, dtype=torch.float32).float().dtype == torch.float32, "made, not cast"
        assert (torch.zeros(3) + 1).dtype == torch.float64
