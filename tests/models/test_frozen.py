"""A model that other code was lent is given back as it was."""

from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import nn

from schemabank.models.frozen import lent
from tiny import mixed, state, tiny_model


def wrap(model: nn.Module, *, fails: bool) -> None:
    before = dict(model.named_modules())
    config = LoraConfig(target_modules=["q_proj", "down_proj"])
    LoraModel(model, config, "default")  # type: ignore[no-untyped-call]
    model.eval()
    assert hasattr(model, "peft_config")
    assert dict(model.named_modules()) != before
    if fails:
        raise RuntimeError("gave up")


@pytest.mark.parametrize("fails", [False, True])
def test_modules_attributes_and_state_are_given_back(fails: bool) -> None:
    model = tiny_model("llama")
    model.mark = before_mark = {"a": 1}  # type: ignore[assignment]
    before, wanted = dict(model.named_modules()), mixed(model)
    names = set(vars(model))
    with suppress(RuntimeError), lent(model):
        wrap(model, fails=fails)
    assert dict(model.named_modules()) == before
    assert state(model) == wanted
    assert set(vars(model)) == names
    assert model.mark is before_mark


def test_what_was_deleted_shared_or_put_in_another_place_is_given_back() -> None:
    model = tiny_model("llama")
    layers = model.get_submodule("model.layers")
    layers[0].again = layers[0].mlp  # type: ignore[operator, union-attr]
    before = list(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters())
    with suppress(RuntimeError), lent(model):
        layers[0].again = nn.Identity()  # type: ignore[operator, union-attr]
        del layers[1]  # type: ignore[operator]
        model.lm_head.weight = nn.Parameter(torch.zeros(2, 2))  # type: ignore[union-attr]
        raise RuntimeError("gave up")
    assert list(model.named_modules(remove_duplicate=False)) == before
    found = dict(model.named_parameters())
    assert list(found) == list(parameters)
    assert all(found[name] is parameter for name, parameter in parameters.items())
