"""Replacing what decoder blocks compute for a while, in the form in which blocks return it.

Most blocks return their hidden states alone. Older ones (GPT-J, Falcon, BLOOM) return a tuple that
begins with them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.engine.loss import Head, output_head

Forward = Callable[..., object]


def probed(
    model: PreTrainedModel, blocks: Sequence[nn.Module]
) -> tuple[Head, Mapping[nn.Module, int]]:
    """Run a few tokens through a model.

    Returns:
        The output layer, and how long the tuples are of the blocks that return some.

    Raises:
        InputError: a block returns something else, or the output layer is of an unknown kind.
    """
    outputs: dict[nn.Module, object] = {}

    def note(block: nn.Module, _args: object, output: object) -> None:
        outputs[block] = output

    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        head = output_head(model)
    finally:
        for hook in hooks:
            hook.remove()
    for output in outputs.values():
        if not isinstance(_states_of(output), Tensor):
            raise InputError(
                f"the blocks of {type(model).__name__} return a {type(output).__name__}: allowed "
                "are hidden states alone or first in a tuple, use a model of that kind"
            )
    return head, {block: len(out) for block, out in outputs.items() if isinstance(out, tuple)}


def noting(forward: Forward, found: list[Tensor]) -> Forward:
    """Return a block's forward pass that also adds its hidden states to ``found``."""

    def run(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        found.append(_states_of(output))
        return output

    return run


def returning(states: Tensor | None, *, length: int | None) -> Forward:
    """Return a block's forward pass that computes nothing.

    Args:
        states: what it returns, ``(row, token, hidden)``; ``None``: its input.
        length: of the tuple that begins with them, and holds nothing else; ``None``: no tuple.
    """

    def forward(hidden_states: Tensor, *_args: object, **_kwargs: object) -> object:
        given = hidden_states if states is None else states
        return given if length is None else (given, *[None] * (length - 1))

    return forward


@contextmanager
def replaced(blocks: Sequence[nn.Module], make: Callable[[nn.Module], Forward]) -> Iterator[None]:
    """Give blocks another ``forward`` for a while; their hooks stay."""
    # The class's method is found again when the instance's attribute is gone, so an attribute is
    # put back only if there was one: a compiled block has its own.
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = make(block)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _states_of(output: Any) -> Tensor:  # noqa: ANN401 -- whatever a block returned
    """The hidden states, if there are any."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
