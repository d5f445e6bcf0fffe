"""What a model's class calls a thing."""

from collections.abc import Callable
from functools import wraps

import pytest
import torch
from torch import nn

from schemabank.models.architecture import cache_keyword
from tiny import tiny_model


def renamed(forward: Callable[..., object]) -> Callable[..., object]:
    """A call that takes ``cache``, and ``past_key_values`` with a warning, as transformers 5.24."""

    def newer(*args: object, cache: object = None, **kwargs: object) -> object:
        return forward(*args, past_key_values=cache, **kwargs)

    @wraps(newer)
    def warned(*args: object, **kwargs: object) -> object:
        assert "past_key_values" not in kwargs, "deprecated"
        return newer(*args, **kwargs)

    return warned


@pytest.mark.parametrize("is_newer", [False, True])
def test_a_model_is_given_its_cache_by_the_name_that_it_knows(
    is_newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    kind: type[nn.Module] = type(model.base_model)
    older = kind.forward
    if cache_keyword(model) == "cache":  # by the library that is installed

        def with_the_old_name(
            *args: object, past_key_values: object = None, **rest: object
        ) -> object:
            return older(*args, cache=past_key_values, **rest)

        older = with_the_old_name
    monkeypatch.setattr(kind, "forward", renamed(older) if is_newer else older)
    assert cache_keyword(model) == ("cache" if is_newer else "past_key_values")
    tokens = torch.arange(4)[None]
    with torch.no_grad():
        found = model.base_model(tokens, **{cache_keyword(model): None}, use_cache=False)
    assert found.last_hidden_state.shape[:2] == (1, 4)
