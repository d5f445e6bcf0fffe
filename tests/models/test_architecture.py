"""What a model's class calls a thing."""

from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch

from schemabank.models.architecture import cache_keyword
from tiny import tiny_model


def older(tokens: object, past_key_values: object = None) -> object:
    return tokens, past_key_values


def newer(tokens: object, cache: object = None) -> object:
    return tokens, cache


@wraps(newer)
def warned(*args: object, **kwargs: object) -> object:
    """As transformers 5.24 wraps it, to warn of the older name."""
    return newer(*args, **kwargs)


def test_a_model_is_given_its_cache_by_the_name_that_it_knows() -> None:
    def named(forward: object) -> str:
        model: Any = SimpleNamespace(base_model=SimpleNamespace(forward=forward))
        return cache_keyword(model)

    assert named(older) == "past_key_values"
    assert named(newer) == named(warned) == "cache"


def test_a_real_model_takes_its_cache_by_that_name() -> None:
    model = tiny_model("llama")
    asked: dict[str, Any] = {cache_keyword(model): None, "use_cache": True}
    with torch.no_grad():
        found = model.base_model(torch.arange(4)[None], **asked)
    assert found.last_hidden_state.shape[:2] == (1, 4)
