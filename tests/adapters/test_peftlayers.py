"""peftlayers.py: stock PEFT is asked for its layers before training, and leaves no trace."""

import pytest

from architectures import tiny_architecture
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from tiny import mixed, state, tiny_model


@pytest.mark.parametrize(
    ("name", "targets", "bad"),
    [
        ("deepseek_v3", ("o_proj", "down_proj"), "'down_proj'"),
        ("deepseek_v3", ("up_proj", "o_proj", "down_proj"), "'up_proj', 'down_proj'"),
        ("qwen3_next", ("q_proj", "gate_proj", "up_proj"), "'gate_proj', 'up_proj'"),
        ("mamba", ("in_proj", "out_proj"), "'out_proj'"),
    ],
)
def test_targets_that_peft_takes_for_something_else_are_named(
    name: str, targets: tuple[str, ...], bad: str
) -> None:
    model = tiny_architecture(name)
    before, wanted = dict(model.named_modules()), mixed(model)
    with pytest.raises(InputError, match=rf"target_modules names {bad}, for which stock PEFT"):
        check_peft_layers(model, LoraSettings(target_modules=targets))
    assert dict(model.named_modules()) == before
    assert state(model) == wanted
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("blocks", [None, (1,)])
def test_a_model_on_which_both_agree_is_left_as_it_was(blocks: tuple[int, ...] | None) -> None:
    model = tiny_model("llama")
    before = dict(model.named_modules())
    wanted = mixed(model)
    check_peft_layers(model, LoraSettings(layers_to_transform=blocks))
    assert dict(model.named_modules()) == before
    assert state(model) == wanted
    assert not hasattr(model, "peft_config")
