"""Compiling a stack and taking that back; what its adapters compute is tested beside the engine."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from cohorts import BANK, LORA, with_banks
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
TOKENS = torch.arange(2, 2 + 2 * 12).view(2, 1, 12)


class Compiler:
    """Stands for torch.compile: what it returns computes the same, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, forward: Callable[..., object], *, dynamic: bool, options: Mapping[str, object]
    ) -> Callable[..., object]:
        assert not dynamic
        assert options["deterministic"] is True

        def run(*args: object, **kwargs: object) -> object:
            self.calls += 1
            return forward(*args, **kwargs)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(torch, "compile", made)
    return made


def new_stack(kind: Kind = "llama") -> AdapterStack:
    """Two slots with adapters and routed banks that matter."""
    stack = AdapterStack(tiny_model(kind), lora=[LORA] * 2, attach=with_banks(BANK))
    for slot in range(2):
        stack.initialise(slot, slot)
    stack.groups["lora"].weights.add_(0.01)
    stack.groups["lora"].publish()
    return stack


def modules(stack: AdapterStack) -> list[nn.Module]:
    """All that is compiled."""
    return [*stack.blocks, *banks_of(stack).banks.values()]


@torch.no_grad()
def hidden(stack: AdapterStack) -> Tensor:
    stack.lora.dropout.begin_step(None)
    banks_of(stack).routing = "on"
    return stack.hidden(TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_uncompiled_again_a_stack_computes_the_same(
    kind: Kind, compiler: Compiler
) -> None:
    stack = new_stack(kind)
    expected = hidden(stack)
    for calls in (1, 2):
        stack.compile()
        stack.compile()
        assert torch.equal(hidden(stack), expected)
        assert compiler.calls == calls * len(modules(stack)), "each is compiled once"
        stack.uncompile()
        stack.uncompile()
        assert torch.equal(hidden(stack), expected)
        assert compiler.calls == calls * len(modules(stack))


def test_uncompiling_leaves_plain_blocks_with_adapters_and_banks(compiler: Compiler) -> None:
    stack = new_stack()
    hooks = {module: len(module._forward_hooks) for module in stack.model.modules()}
    stack.compile()
    assert all("forward" in vars(module) for module in modules(stack))
    assert len(stack.model.get_input_embeddings()._forward_hooks) == 1
    stack.uncompile()
    assert not any("forward" in vars(m) for m in [*stack.model.modules(), *modules(stack)])
    assert {module: len(module._forward_hooks) for module in stack.model.modules()} == hooks
    assert sum(hooks.values()) == len(banks_of(stack).handles) - 1 == len(banks_of(stack).banks)
    assert stack.attached
    assert compiler.calls == 0


def test_removing_takes_compiling_back_as_well(compiler: Compiler) -> None:
    plain = tiny_model("llama")
    stack = new_stack()
    stack.compile()
    stack.remove()
    assert not any("forward" in vars(module) for module in stack.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in stack.model.modules())
    with torch.no_grad():
        tokens = TOKENS.flatten(0, 1)
        assert torch.equal(stack.model(tokens).logits, plain(tokens).logits)
    assert compiler.calls == 0


def test_what_was_not_compiled_here_is_left_alone() -> None:
    stack = new_stack()
    own = stack.blocks[0].forward
    stack.blocks[0].forward = own
    stack.uncompile()
    stack.remove()
    assert stack.blocks[0].forward is own
