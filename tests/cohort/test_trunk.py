"""The cache of states below the first bank: limits, recomputation, and the model on top of it."""

from collections.abc import Hashable, Sequence

import pytest
import torch
from torch import Tensor

from cohorts import BANK, LORA
from schemabank.cohort.lora import dropout_keys
from schemabank.cohort.stack import AdapterStack
from schemabank.cohort.trunk import TrunkCache
from tiny import Kind, tiny_model

TOKENS, HIDDEN = 3, 2
ROW_BYTES = TOKENS * HIDDEN * 4
Batch = Sequence[Hashable | None]
BATCHES: tuple[Batch, ...] = (
    ["a", "b", "c"],
    ["b", None, "d"],
    [None, None, None],
    ["a", "e", "a"],
    ["e", "d", "c"],
    ["c", "b", "a"],
)


def row_of(key: Hashable | None) -> Tensor:
    """The states of one row; undefined for a row without an example."""
    if key is None:
        return torch.full((TOKENS, HIDDEN), torch.nan)
    return torch.arange(TOKENS * HIDDEN).view(TOKENS, HIDDEN) + 10.0 * ord(str(key))


class Model:
    """Counts how often states are computed; its result is overwritten by the next one."""

    def __init__(self) -> None:
        self.calls = 0
        self.result = torch.zeros(3, TOKENS, HIDDEN)

    def states(self, cache: TrunkCache, keys: Batch) -> Tensor:
        def compute() -> Tensor:
            self.calls += 1
            self.result.copy_(torch.stack([row_of(key) for key in keys]))
            return self.result

        out = torch.full((3, TOKENS, HIDDEN), torch.nan)
        cache.states(keys, compute, out)
        self.result.fill_(torch.nan)
        return out


@pytest.mark.parametrize("rows", [0, 0.9, 1, 2, 4, 4.5, 5, 1000])
def test_any_limit_is_respected_and_changes_no_state(rows: float) -> None:
    cache, model = TrunkCache(int(rows * ROW_BYTES)), Model()
    for keys in (*BATCHES, *BATCHES):
        found = model.states(cache, keys)
        for state, key in zip(found, keys, strict=True):
            assert key is None or torch.equal(state, row_of(key))
        assert cache.used_bytes == len(cache) * ROW_BYTES <= cache.limit_bytes
    assert len(cache) == min(int(rows), 5)


def test_what_is_kept_is_not_computed_again() -> None:
    cache, model = TrunkCache(1000 * ROW_BYTES), Model()
    for keys in BATCHES:
        model.states(cache, keys)
    assert model.calls == 3, "d and e were new to the second and fourth batch, no row to the others"
    for keys in BATCHES:
        model.states(cache, keys)
    assert model.calls == 3


def test_without_room_every_batch_with_examples_is_computed() -> None:
    cache, model = TrunkCache(0), Model()
    for keys in (*BATCHES, *BATCHES):
        model.states(cache, keys)
    assert model.calls == 2 * 5
    assert len(cache) == 0


def test_what_does_not_fit_is_computed_again_and_nothing_is_evicted() -> None:
    cache, model = TrunkCache(2 * ROW_BYTES), Model()
    model.states(cache, ["a", "b", "c"])
    for calls, keys in enumerate((["c", "d", "e"], ["a", "c", None], ["d", "d", "d"]), start=2):
        model.states(cache, keys)
        assert model.calls == calls
    model.states(cache, ["b", "a", "b"])
    assert model.calls == 4
    assert len(cache) == 2


def test_rows_without_an_example_are_never_kept_and_never_undefined() -> None:
    """Undefined states would reach other rows' gradients as zero times not-a-number."""
    cache, model = TrunkCache(1000 * ROW_BYTES), Model()
    model.states(cache, [None, None, None])
    assert (model.calls, len(cache)) == (0, 0)
    for _ in range(2):
        found = model.states(cache, [None, "b", None])
        assert found.isfinite().all()
        assert (model.calls, len(cache)) == (1, 1)


def test_rows_of_other_shapes_live_beside_each_other() -> None:
    limit = ROW_BYTES + 2 * ROW_BYTES
    cache = TrunkCache(limit)
    for width, made in ((TOKENS, 1.0), (2 * TOKENS, 2.0), (2 * TOKENS, 3.0)):
        out = torch.zeros(1, width, HIDDEN)
        cache.states([(width, "a")], lambda m=made, o=out: torch.full_like(o, m), out)
        assert torch.equal(out, torch.full_like(out, min(made, 2.0)))
    assert cache.used_bytes == limit


# On a model.


def stack(kind: Kind) -> AdapterStack:
    """Two slots whose LoRA is untouched, with dropout and routed banks on the last two blocks."""
    bank = BANK.model_copy(update={"last_n": 2})
    made = AdapterStack(tiny_model(kind), lora=[LORA, LORA], bank=bank)
    for slot in range(2):
        made.initialise(slot, slot)
    return made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@torch.no_grad()
def test_trunk_gives_the_base_models_states_and_the_model_starts_from_them(kind: Kind) -> None:
    made = stack(kind)
    tokens = torch.arange(2, 2 + 4 * 12).view(2, 2, 12)
    keys = torch.tensor(dropout_keys([(1, 0), (2, 0)]), dtype=torch.int32)
    made.begin_step(keys, torch.ones(2))
    expected = made.hidden(tokens)
    states = made.trunk(tokens.flatten(0, 1))
    plain = tiny_model(kind)
    found: list[Tensor] = []
    plain.model.layers[1].register_forward_hook(lambda _m, _i, out: found.append(out))
    plain(tokens.flatten(0, 1))
    assert torch.equal(states, found[0])
    assert made.banks.routing == "on"
    assert torch.equal(made.hidden(tokens, states=states), expected)
    assert len(made.banks.routed) == 2
    assert torch.equal(made.hidden(tokens), expected), "forward passes are what they were before"
    assert not torch.equal(made.hidden(tokens, states=states + 1), expected)


@torch.no_grad()
def test_adapters_do_not_act_on_the_trunk() -> None:
    made = stack("llama")
    tokens = torch.arange(2, 14)[None]
    made.begin_step(torch.tensor(dropout_keys([(1, 0), (2, 0)]), dtype=torch.int32), torch.ones(2))
    before = made.trunk(tokens)
    for layer in made.lora.values():
        layer.B.fill_(1.0)
    assert torch.equal(made.trunk(tokens), before)
    assert made.dropout.adapters
