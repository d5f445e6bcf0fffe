"""Parts that a router gives no weight are found, and no others; looking changes nothing."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import cohorts
from cohorts import BANK, bank_run, lora_run
from schemabank.config.settings import Stage
from schemabank.engine import idle
from schemabank.engine.cohort import Cohort
from schemabank.engine.idle import Neglected
from schemabank.engine.run import Run
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routed, SchemaBank

STAGE = Stage(name="all", ratio=1.0, train=("router", "schemas", "lora"), learning_rate=1e-3)
NUM_STEPS = 25
UNUSED = [2, 5, 6]


def run(seed: int, **changes: object) -> Run:
    """All schemas of a token are used by some of its layers' routers, unless something hinders."""
    bank = BANK.model_copy(update={"top_k": 8})
    given = {"max_steps": NUM_STEPS, "stages": (STAGE,), "bank": bank, **changes}
    return bank_run(seed, **given)  # type: ignore[arg-type]


@pytest.fixture
def _hindered(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first slot, some schemas of every bank but the last get no weight; looks are close."""
    monkeypatch.setattr(idle, "EVERY", 5)
    route = SchemaBank.route

    def hindered(self: SchemaBank, states: Tensor) -> Routed:
        routed = route(self, states)
        gates = routed.gates.clone()
        if self.hinders:  # type: ignore[truthy-function]
            gates[0, ..., UNUSED] = 0
        return replace(routed, gates=gates)

    monkeypatch.setattr(SchemaBank, "route", hindered)
    monkeypatch.setattr(SchemaBank, "hinders", True, raising=False)


def trained(runs: Sequence[Run], *, look: bool = True) -> tuple[Cohort, list[list[Neglected]]]:
    """A cohort at its end, and what was found after every step."""
    made = cohorts.cohort(runs, cohorts.data())
    *_, last = banks_of(made.stack).modules
    last.hinders = False  # type: ignore[assignment]
    return made, [made.idle_parts() if look else [] for _ in made.steps()]


@pytest.mark.usefixtures("_hindered")
def test_nothing_is_kept_of_runs_that_have_ended() -> None:
    made, _ = trained([run(seed, max_steps=steps) for seed, steps in ((1, 25), (2, 6), (3, 15))])
    assert {name: seen.slot.has_ended for name, seen in made._idle._seen.items()} == {}


@pytest.mark.usefixtures("_hindered")
def test_schemas_without_any_weight_are_found_after_some_looks_in_a_row() -> None:
    made, found = trained([run(1), run(2), lora_run(3, max_steps=NUM_STEPS)])
    assert [number + 1 for number, each in enumerate(found) if each] == [20, 25]
    (first,) = found[19]
    hindered = [f"block {index}" for index in banks_of(made.stack).banks][:-1]
    assert first.parts == dict.fromkeys(hindered, UNUSED)
    assert (first.run, first.step, first.num_steps) == ("bank-1", 14, 10)
    every = len(hindered) + 1
    assert (first.num_parts, first.num_all) == (3 * (every - 1), 8 * every)
    before, _ = trained([run(1), run(2), lora_run(3, max_steps=NUM_STEPS)], look=False)
    for name, rows in cohorts.ended(made).items():
        for group, row in rows.items():
            assert torch.equal(row, before.finished[name][group])


@pytest.mark.usefixtures("_hindered")
def test_what_a_step_does_not_train_is_not_idle() -> None:
    """A stage of the router alone, and steps without the bank, say nothing of the schemas."""
    router = STAGE.model_copy(update={"name": "router", "ratio": 0.5, "train": ("router",)})
    bare = STAGE.model_copy(update={"ratio": 0.5, "bare_tail_ratio": 0.5})
    _, found = trained([run(1, stages=(router, bare))])
    assert not any(found)


@pytest.mark.usefixtures("_hindered")
def test_a_new_stage_is_looked_at_anew() -> None:
    """Without a new stage there is something to find after step 20, as the first test says."""
    halves = tuple(STAGE.model_copy(update={"name": n, "ratio": 0.5}) for n in "ab")
    _, found = trained([run(1, stages=halves, max_steps=24)])
    assert not any(found)


def test_runs_without_routers_are_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "EVERY", 1)
    monkeypatch.setattr(idle, "Fetch", None)
    made = cohorts.cohort([lora_run(1, max_steps=4)], cohorts.data())
    assert [made.idle_parts() for _ in made.steps()] == [[]] * 4
