"""What is copied of runs between two steps, and runs that are put back into slots."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

import cohorts
from schemabank.config.methods import SWAPSettings
from schemabank.config.settings import LoraSettings
from schemabank.engine import cohort as cohort_module
from schemabank.engine.cohort import Cohort
from schemabank.engine.finished import Finished
from schemabank.engine.keeping import Standing
from schemabank.engine.run import OnCourse
from schemabank.engine.slots import NO_ROWS, Halted, Slot
from schemabank.engine.stack import RANK, AdapterStack
from schemabank.methods.shrink import ShrinkCourse
from schemabank.methods.swap import SWAPCourse
from tiny import tiny_model

DATA = cohorts.data()


def going_on(standings: dict[str, Standing], made: Cohort, stack: AdapterStack) -> Cohort:
    """A cohort of the same runs, which stand where those of another one stood."""
    slots = [Slot(slot.run, DATA) for slot in made.slots]
    for slot in slots:
        slot.restore(standings[slot.run.name].state)
    rows = {name: each.rows for name, each in standings.items()}
    seats = {each.seat: name for name, each in standings.items() if each.seat is not None}
    halted = Halted(slots, Finished(), rows, tick=made.tick, seats=seats)
    return Cohort(stack, [slot.run for slot in slots], DATA, halted=halted)


def test_reports_that_come_late_are_waited_for_before_runs_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where the host is some steps ahead of what it knows."""
    made = cohorts.cohort([cohorts.lora_run(1), cohorts.lora_run(2)], DATA)
    monkeypatch.setattr(made, "device", torch.device("cuda"))
    monkeypatch.setattr(cohort_module, "DEPTH", 4)
    monkeypatch.setattr(made, "_shapes_to_come", lambda _: [])
    told, asked, saved = list[int](), list[int](), list[tuple[int, int]]()

    def is_due() -> bool:
        asked.append(len(told))
        return len(asked) % 5 == 0

    made.is_due = is_due
    made.save = lambda: saved.append((len(told), made.standings()["lora-1"].state.step))
    for reports in made.steps():
        told.append(len(reports))
    assert asked[:5] == [0, 0, 0, 0, 1], "reports come late"
    assert saved == [(4, 4), (9, 9)]
    assert len(told) == made.slots[0].num_steps


def test_skipped_steps_go_with_a_run() -> None:
    slot = Slot(cohorts.lora_run(1, max_steps=100, max_skipped_in_row=2), DATA)
    for step in range(10):
        slot.count(step, slot.settings(), skipped=step in {3, 8, 9})
        slot.step += 1
    again = Slot(slot.run, DATA)
    again.restore(slot.state())
    assert again.num_updates == slot.num_updates == {"lora": 7}
    for each in (slot, again):
        each.count(10, each.settings(), skipped=True)
    assert again.failure == slot.failure is not None
    assert "3 steps in a row" in slot.failure.message


def test_a_reduced_run_that_is_put_back_has_its_own_rank() -> None:
    """Muon's updates have the size that belongs to the rank."""
    course = OnCourse(lambda run, data: ShrinkCourse(run, data, ratio=0.5), {RANK: 16})
    run = replace(cohorts.lora_run(1, optimizer="muon"), method=course)
    wide = LoraSettings(r=16, lora_dropout=0.2)

    def new_stack() -> AdapterStack:
        return AdapterStack(tiny_model("llama"), lora=[wide])

    made = Cohort(new_stack(), [run], DATA)
    steps, found = made.steps(), list[tuple[int, float, int]]()
    reduced_at = made.slots[0].course.reduced_at
    assert reduced_at == 6
    for _ in range(7):
        next(steps)
        again = going_on(made.standings(), made, new_stack())
        muon = again.optimizers["lora"].muon
        assert muon is not None
        found.append((again.slots[0].step, muon.ranks.item(), again.stack.lora.ranks[0]))
    assert found[5:] == [(6, 16, 16), (7, 4, 4)], "before the step that reduces it, and after"


def test_no_run_is_copied_that_has_not_begun_or_has_ended() -> None:
    runs = [cohorts.lora_run(1), cohorts.lora_run(2, max_steps=2), cohorts.lora_run(3)]
    stack = AdapterStack(tiny_model("llama"), lora=[cohorts.LORA] * 2)
    made, found = Cohort(stack, runs, DATA), list[dict[str, int | None]]()
    made.is_due = lambda: True
    made.save = lambda: found.append({n: each.seat for n, each in made.standings().items()})
    list(made.steps())
    assert found[0] == {}
    assert found[1] == {"lora-1": 0, "lora-3": 1}
    assert {"lora-2": 0} in found or {"lora-2": 1} in found
    assert all(len(names) <= 2 for names in found)


def test_a_run_that_has_ended_lets_go_of_what_its_steps_alone_needed() -> None:
    swap = SWAPSettings(num_branches=2, branch_ratio=0.5)
    branched = replace(cohorts.lora_run(1), method=OnCourse(partial(SWAPCourse, swap=swap)))
    runs = [branched, cohorts.lora_run(2), replace(branched, name="last", seed=3)]
    made, held = cohorts.cohort(runs, DATA, slots=1), Counter[str]()
    for _ in made.steps():
        going = [slot for slot in made.slots if slot.step > 0 and not slot.has_ended]
        held["rows"] += sum(slot._epoch_rows is not NO_ROWS for slot in going)
        held["origins"] += sum(slot.origin is not None for slot in going)
        ended = [slot for slot in made.slots if slot.run.name in made.finished]
        assert all(slot._epoch_rows is NO_ROWS and slot.origin is None for slot in ended)
    assert min(held["rows"], held["origins"]) > 0
    assert all(slot._epoch_rows is NO_ROWS and slot.origin is None for slot in made.slots)
