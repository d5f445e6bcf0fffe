"""A model that other code was lent is given back as it was."""

from contextlib import suppress

import pytest
from peft import LoraConfig, LoraModel
from torch import nn

from schemabank.frozen import lent
from tiny import tiny_model


def marked(model: nn.Module) -> list[bool]:
    """Let every second parameter train, and every third module be in training mode."""
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    return state(model)


def state(model: nn.Module) -> list[bool]:
    trained = [parameter.requires_grad for parameter in model.parameters()]
    return [*trained, *(module.training for module in model.modules())]


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
    before, wanted = dict(model.named_modules()), marked(model)
    names = set(vars(model))
    with suppress(RuntimeError), lent(model):
        wrap(model, fails=fails)
    assert dict(model.named_modules()) == before
    assert state(model) == wanted
    assert set(vars(model)) == names
    assert model.mark is before_mark
