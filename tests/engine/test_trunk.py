"""States below the first bank: limits, recomputation, batches, and the model on top of them."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cohorts import BANK, LORA, step_input, with_banks
from schemabank.engine.execute import Executor
from schemabank.engine.stack import AdapterStack
from schemabank.engine.trunk import TrunkRow, TrunkStates
from schemabank.methods.schemabank.attach import banks_of
from tiny import Kind, tiny_model

HIDDEN = 2
POSITION_BYTES = HIDDEN * 4
WIDTHS = {"a": 3, "b": 3, "c": 3, "d": 3, "e": 3, "w": 5, "x": 5}
BATCHES: tuple[Sequence[str | None], ...] = (
    ["a", "b", "c"],
    ["b", None, "d"],
    [None, None, None],
    ["a", "w", "a"],
    ["e", "d", "c"],
    ["x", "b", "w"],
)
POSITIONS = sum(WIDTHS.values())


def row(key: str, *, lasting: bool = True) -> TrunkRow:
    """A row of one token less than its width."""
    tokens = [ord(key) + i for i in range(WIDTHS[key] - 1)]
    return TrunkRow(key, tokens, WIDTHS[key], lasting)


def states_of(key: str, width: int) -> Tensor:
    """What :class:`Model` makes of a row in a step of a width."""
    states = torch.zeros(width, HIDDEN)
    tokens = torch.tensor([*row(key).tokens, 0])[:, None].float()
    states[: WIDTHS[key]] = tokens + torch.arange(HIDDEN)
    return states


class Model:
    """Counts how often states are computed; each result overwrites the one before."""

    def __init__(self, limit: float, *, ahead: Sequence[str] = ()) -> None:
        self.computed: list[set[int]] = []
        self.results: dict[int, Tensor] = {}
        in_width = {3: [row(k) for k in ahead if WIDTHS[k] == 3]}
        self.states = TrunkStates(
            self.compute,
            num_rows=3,
            like=torch.empty(0, HIDDEN),
            executor=Executor(torch.device("cpu"), capture=False, explain=pytest.fail),
            limit_bytes=int(limit * POSITION_BYTES),
            ahead={width: iter(rows) for width, rows in in_width.items()},
        )

    def compute(self, tokens: Tensor) -> Tensor:
        self.computed.append(set(tokens[:, 0].tolist()) - {0})
        result = self.results.setdefault(tokens.shape[1], torch.empty(*tokens.shape, HIDDEN))
        return result.copy_(tokens[..., None] + torch.arange(HIDDEN))

    def write(self, keys: Sequence[str | None], *, width: int = 5, lasting: bool = True) -> Tensor:
        out = torch.full((3, width, HIDDEN), torch.nan)
        self.states.write([k and row(k, lasting=lasting) for k in keys], out)
        for result in self.results.values():
            result.fill_(torch.nan)
        return out

    def check(self, keys: Sequence[str | None], **options: bool) -> None:
        found = self.write(keys, **options)
        for states, key in zip(found, keys, strict=True):
            expected = torch.zeros(5, HIDDEN) if key is None else states_of(key, 5)
            assert torch.equal(states, expected)


def test_where_memory_runs_out_no_more_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the first step's rows and, once, for those that pass."""
    model, grow = Model(1000), TrunkStates._grow
    sizes: list[int] = []

    def full(states: TrunkStates, positions: int) -> None:
        sizes.append(positions)
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("no room")
        grow(states, positions)

    monkeypatch.setattr(TrunkStates, "_grow", full)
    kept = []
    for batch in BATCHES:
        model.check(batch)
        kept.append(len(model.states))
    assert sizes[1] > sizes[2], "first as much as it would like, then as it must"
    assert kept[-1] == kept[2] < len(WIDTHS), "those before memory ran out"


@pytest.mark.parametrize("limit", [0, 2.9, 3, 5, 9, 14.5, POSITIONS - 1, POSITIONS, 1000])
def test_any_limit_is_respected_and_changes_no_state(limit: float) -> None:
    model = Model(limit)
    for keys in (*BATCHES, *BATCHES):
        model.check(keys)
        assert model.states.used_bytes <= limit * POSITION_BYTES
    assert (len(model.states) == len(WIDTHS)) == (limit >= POSITIONS)
    assert (len(model.states) == 0) == (limit < min(WIDTHS.values()))


def test_what_is_kept_is_not_computed_again() -> None:
    model = Model(1000)
    for keys in (*BATCHES, *BATCHES):
        model.check(keys)
    assert model.computed == [{ord(k) for k in new} for new in ("abc", "d", "w", "e", "x")]


def test_without_room_a_step_computes_every_row_once_for_each_width() -> None:
    model = Model(0)
    for keys in (*BATCHES, *BATCHES):
        model.check(keys)
    once = [{ord(k) for k in rows} for rows in ("abc", "bd", "a", "w", "edc", "b", "xw")]
    assert model.computed == 2 * once
    assert len(model.states) == 0


def test_what_does_not_fit_is_computed_again_and_nothing_is_evicted() -> None:
    model = Model(2 * 3)
    model.check(["a", "b", "c"])
    for calls, keys in enumerate((["c", "d", "e"], ["a", "c", None], ["d", "d", "d"]), start=2):
        model.check(keys)
        assert len(model.computed) == calls
    model.check(["b", "a", "b"])
    assert len(model.computed) == 4
    assert len(model.states) == 2


def test_what_does_not_last_is_not_kept() -> None:
    model = Model(1000)
    for _ in range(2):
        model.check(["a", "w", None], lasting=False)
    assert len(model.states) == 0
    assert len(model.computed) == 4


def test_free_rows_of_a_batch_are_computed_ahead() -> None:
    model = Model(1000, ahead="abcde")
    model.check(["b", None, "w"])
    assert model.computed == [{ord(k) for k in "bac"}, {ord("w")}]
    model.check(["a", "c", "d"])
    assert model.computed[2:] == [{ord(k) for k in "de"}]
    model.check(["e", "d", "b"])
    assert len(model.computed) == 3


def test_a_step_of_nothing_gets_defined_states() -> None:
    """Undefined states would reach other rows' gradients as zero times not-a-number."""
    model = Model(1000)
    model.check([None, None, None])
    assert model.computed == []


# On a model.


def stack(kind: Kind) -> AdapterStack:
    """Two slots whose LoRA is untouched, with dropout and routed banks on the last two blocks."""
    bank = BANK.model_copy(update={"last_n": 2})
    made = AdapterStack(tiny_model(kind), lora=[LORA, LORA], attach=with_banks(bank))
    for slot in range(2):
        made.initialise(slot, slot)
    return made


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@torch.no_grad()
def test_trunk_gives_the_base_models_states_and_the_model_starts_from_them(kind: Kind) -> None:
    made = stack(kind)
    tokens = torch.arange(2, 2 + 4 * 12).view(2, 2, 12)
    made.begin_step(step_input([(1, 0), (2, 0)]))
    expected = made.hidden(tokens)
    states = made.trunk(tokens.flatten(0, 1))
    plain = tiny_model(kind)
    found: list[Tensor] = []
    plain.model.layers[1].register_forward_hook(lambda _m, _i, out: found.append(out))
    plain(tokens.flatten(0, 1))
    assert torch.equal(states, found[0])
    assert banks_of(made).routing == "on"
    assert torch.equal(made.hidden(tokens, states=states), expected)
    assert len(banks_of(made).routed) == 2
    assert torch.equal(made.hidden(tokens), expected), "forward passes are what they were before"
    assert not torch.equal(made.hidden(tokens, states=states + 1), expected)


@torch.no_grad()
def test_adapters_do_not_act_on_the_trunk() -> None:
    made = stack("llama")
    tokens = torch.arange(2, 14)[None]
    made.begin_step(step_input([(1, 0), (2, 0)]))
    before = made.trunk(tokens)
    for layer in made.lora.layers.values():
        layer.B.fill_(1.0)
    assert torch.equal(made.trunk(tokens), before)
    assert made.lora.dropout.adapters
