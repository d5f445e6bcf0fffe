"""Losses, gradients and weights that are not finite: each costs its own run alone, and only that.

Every run is spoilt once in every place, each at a step of its own. The cohort beside it has no
number that is not finite, and the same steps are left out. So equal bits say that a fault spoils
neither a neighbour nor what comes after it in its own run.
"""

import pytest

from poison import (
    DATA,
    NAMES,
    NUM_STEPS,
    PASSING,
    Place,
    Poison,
    assert_same_end,
    assert_same_steps,
    in_turn,
    new_cohort,
    reports,
    run_configs,
)
from schemabank.engine.cohort import RunStep
from schemabank.engine.run import Run

IN_TURN = in_turn(PASSING)
LASTING: dict[str, Place] = {
    **dict(zip(("schemabank", "swap", "molf", "muon"), PASSING, strict=True)),
    "experts": "weight",
}


def ids(step: RunStep, run: Run) -> tuple[str, ...]:
    """The examples of a step's batch."""
    epoch, position = divmod(step.step, DATA.schedule.steps_per_epoch)
    rows = DATA.schedule.rows(run.seed, epoch)[position]
    return tuple(DATA.examples[row].id for row in rows if row >= 0)


def test_a_fault_leaves_out_one_step_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    poison, configs = Poison(monkeypatch, len(NAMES)), run_configs(max_skipped_ratio=1.0)
    spoilt, clean = new_cohort(configs), new_cohort(configs)
    poison.follow(spoilt, IN_TURN)
    found = reports(spoilt)
    poison.follow(clean, dict.fromkeys(IN_TURN, "skip"))
    expected = reports(clean)
    for slot in spoilt.slots:
        name = slot.run.name
        faults = [step for run, step in IN_TURN if run == name]
        assert (slot.failure, slot.skipped, len(faults)) == (None, faults, len(PASSING))
        assert [each.step for each in found[name] if each.skipped] == faults
        for each in found[name]:
            assert each.examples == (ids(each, slot.run) if each.skipped else ())
        assert not any(each.skipped for each in expected[name])
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        assert_same_end(spoilt, clean, name)


def test_a_fault_that_stays_fails_its_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are those of the engine as it is, in which nothing puts such numbers."""
    before = new_cohort(run_configs())
    expected = reports(before)
    schedule = {(n, step): place for n, place in LASTING.items() for step in range(5, NUM_STEPS)}
    poison, trained = Poison(monkeypatch, len(NAMES)), new_cohort(run_configs())
    poison.follow(trained, schedule)
    found = reports(trained)
    for slot in trained.slots:
        name = slot.run.name
        if name not in LASTING:
            assert slot.failure is None
            assert found[name] == expected[name]
            assert_same_end(trained, before, name)
            continue
        assert slot.failure is not None
        assert slot.failure.kind == "diverged"
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        if LASTING[name] == "weight":
            assert [each.step for each in found[name]] == [*range(6)]
            assert slot.failure.message.startswith("weights that are not finite at step 5 (1 of ")
            continue
        assert slot.skipped == [5, 6]
        assert slot.failure.message.startswith("loss or gradient not finite in 2 of the ")
        named = dict.fromkeys(i for each in found[name][5:7] for i in each.examples)
        assert f"examples of the skipped steps ({', '.join(named)})" in slot.failure.message
