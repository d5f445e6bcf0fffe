"""Joined layers against the separate ones, on their own, in models and under adapters."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.dropout import SlotDropout, dropout_keys
from schemabank.engine.joined import SIBLINGS, JoinedLinear, JoinedLinears, join_linears
from schemabank.engine.lora import StackedLora, install_lora, remove_lora
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
TOKENS = torch.arange(2, 26).view(2, 12)
IN, SIZES = 6, (5, 3, 4)
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class Attention(nn.Module):
    """Three layers as attention has them."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, size in zip(SIBLINGS[0], SIZES, strict=True):
            layer = nn.Linear(IN, size, bias=bias).double().requires_grad_(False)
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
            self.add_module(name, layer)


def parts(*, bias: bool) -> tuple[list[nn.Linear], list[nn.Module]]:
    """Separate layers and equal joined ones."""
    separate, model = Attention(bias=bias), nn.ModuleDict({"attention": Attention(bias=bias)})
    join_linears(model)
    joined = [model.get_submodule(f"attention.{name}") for name in SIBLINGS[0]]
    assert all(isinstance(layer, JoinedLinear) for layer in joined)
    return list(separate.children()), joined


def randoms(*shape: int, seed: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def restore(model: nn.Module, replaced: dict[str, nn.Linear]) -> None:
    for path, layer in replaced.items():
        model.set_submodule(path, layer)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_outputs_and_gradients_are_the_separate_layers_in_any_order(
    order: tuple[int, ...], bias: bool
) -> None:
    separate, joined = parts(bias=bias)
    for inputs in (randoms(2, 7, IN, seed=1), randoms(3, IN, seed=2)):
        found, expected = ([layers[i](inputs) for i in order] for layers in (joined, separate))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)
        gradients = [
            torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs)
            for outputs in (found, expected)
        ]
        torch.testing.assert_close(*gradients, **TOLERANCE)


def test_different_inputs_and_repeated_calls_give_their_own_outputs() -> None:
    separate, joined = parts(bias=True)
    first, second = randoms(4, IN, seed=1), randoms(4, IN, seed=2)
    calls = [(0, first), (1, second), (2, first), (0, first), (0, second), (0, first), (1, first)]
    for index, inputs in [*calls, (2, second), (2, second), (0, second), (2, first)]:
        torch.testing.assert_close(joined[index](inputs), separate[index](inputs), **TOLERANCE)


def test_one_product_serves_all_three_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _, joined = parts(bias=True)
    calls, linear = [], nn.functional.linear

    def counted(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(weight.shape)
        return linear(inputs, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    inputs = randoms(4, IN, seed=1)
    for _ in range(2):
        for layer in joined:
            layer(inputs)
    assert calls == [(sum(SIZES), IN)] * 2, "computed again, so changed inputs give new outputs"
    source = joined[0].joined
    assert isinstance(source, JoinedLinears)
    assert source._inputs is None
    assert source._outputs == ()


def test_layers_that_differ_in_having_a_bias_stay_separate() -> None:
    attention = Attention(bias=True)
    attention.k_proj = nn.Linear(IN, 3, bias=False).double()
    model = nn.ModuleDict({"attention": attention})
    assert join_linears(model) == {}
    assert not any(isinstance(module, JoinedLinear) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_logits_are_those_of_its_separate_layers(kind: Kind) -> None:
    model = tiny_model(kind).double()
    before = logits(model)
    replaced = join_linears(model)
    assert len(replaced) == 3 * 5
    assert any(layer.bias is not None for layer in replaced.values()) == (kind == "qwen2")
    torch.testing.assert_close(logits(model), before, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_restoring_gives_back_modules_and_weights_bit_for_bit(
    kind: Kind, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(kind).to(dtype)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state, before = {n: t.clone() for n, t in model.state_dict().items()}, logits(model)
    restore(model, join_linears(model))
    assert list(dict(model.named_modules())) == list(modules)
    assert all(module is modules[path] for path, module in model.named_modules())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in reloaded.items())


# Under adapters.


def adapted(kind: Kind, targets: tuple[str, ...], *, join: bool) -> tuple[PreTrainedModel, dict]:
    """A float64 model with two slots' adapters and dropout, on joined layers or separate ones."""
    model = tiny_model(kind).double().requires_grad_(False)
    if join:
        join_linears(model)
    dropout = SlotDropout([0.3, 0.1], device=torch.device("cpu"))
    dropout.begin_step(torch.tensor(dropout_keys([(1, 0), (2, 0)]), dtype=torch.int32))
    settings = [LoraSettings(r=r, target_modules=targets) for r in (4, 2)]
    layers = install_lora(model, settings, dropout=dropout)
    for path, layer in layers.items():
        seed = sum(path.encode())
        layer.double()
        layer.A.data = randoms(*layer.A.shape, seed=seed).detach()
        layer.B.data = randoms(*layer.B.shape, seed=seed + 1).detach() / 10
    return model, layers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "targets", [("q_proj", "k_proj", "v_proj", "up_proj"), ("k_proj", "gate_proj", "o_proj")]
)
def test_adapters_on_joined_layers_are_those_on_separate_ones(
    kind: Kind, targets: tuple[str, ...]
) -> None:
    found = []
    for join in (False, True):
        model, layers = adapted(kind, targets, join=join)
        output = model(TOKENS).logits
        leaves = [p for layer in layers.values() for p in (layer.A, layer.B)]
        gradients = torch.autograd.grad(output.square().mean(), leaves)
        keys = {path: layer.layer_key.item() for path, layer in layers.items()}
        found.append((keys, output, gradients))
    (keys, expected, theirs), (joined_keys, output, ours) = found
    assert list(joined_keys.items()) == list(keys.items()), "the same layers, masks and order"
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for mine, reference in zip(ours, theirs, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def test_removing_adapters_then_joints_restores_the_model_bit_for_bit() -> None:
    model = tiny_model("qwen2")
    modules, before = dict(model.named_modules()), logits(model)
    replaced = join_linears(model)
    settings = [LoraSettings(r=2, target_modules=("q_proj", "v_proj", "down_proj"))]
    layers = install_lora(model, settings, dropout=SlotDropout([0.0], device=torch.device("cpu")))
    for layer in layers.values():
        nn.init.normal_(layer.A)
        nn.init.normal_(layer.B)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    remove_lora(model, layers)
    assert not any(isinstance(module, StackedLora) for module in model.modules())
    restore(model, replaced)
    assert all(module is modules[path] for path, module in model.named_modules())
    assert torch.equal(logits(model), before)


def test_targets_on_joined_layers_are_named_as_on_separate_ones() -> None:
    model = tiny_model("llama")
    join_linears(model)
    settings = [LoraSettings(r=2, target_modules=("qproj",))]
    with pytest.raises(InputError) as error:
        install_lora(model, settings, dropout=SlotDropout([0.0], device=torch.device("cpu")))
    assert str(error.value).endswith(
        "allowed are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, name some of "
        "those, such as the attention's [q_proj, k_proj, v_proj, o_proj], or write all-linear"
    )
