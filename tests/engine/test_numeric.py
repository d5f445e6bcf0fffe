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
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.run import Run

IN_TURN = in_turn(PASSING)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return Poison(monkeypatch, len(NAMES))


@pytest.fixture(scope="module")
def untouched() -> tuple[Cohort, dict[str, list[RunStep]]]:
    """The runs of a cohort in which nothing is changed at all."""
    trained = new_cohort(run_configs())
    return trained, reports(trained)


def ids(step: RunStep, run: Run) -> tuple[str, ...]:
    """The examples of a step's batch."""
    epoch, position = divmod(step.step, DATA.schedule.steps_per_epoch)
    rows = DATA.schedule.rows(run.seed, epoch)[position]
    return tuple(DATA.examples[row].id for row in rows if row >= 0)


def test_a_fault_leaves_out_one_step_of_one_run(poison: Poison) -> None:
    configs = run_configs(max_skipped_ratio=1.0)
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


def test_what_watches_for_faults_changes_no_bit(
    poison: Poison, untouched: tuple[Cohort, dict[str, list[RunStep]]]
) -> None:
    """The steps with all masks, none of which is set, are those of the engine as it is."""
    before, expected = untouched
    trained = new_cohort(run_configs())
    poison.follow(trained, {})
    found = reports(trained)
    for name in NAMES:
        assert found[name] == expected[name]
        assert_same_end(trained, before, name)


def test_a_weight_that_is_not_finite_ends_its_run_at_once(
    poison: Poison, untouched: tuple[Cohort, dict[str, list[RunStep]]]
) -> None:
    last, *victims = reversed(NAMES)
    schedule: dict[tuple[str, int], Place] = {
        (name, 3 + 4 * number): "weight" for number, name in enumerate(victims)
    }
    before, expected = untouched
    trained = new_cohort(run_configs(max_skipped_ratio=1.0))
    poison.follow(trained, schedule)
    found = reports(trained)
    slots = {slot.run.name: slot for slot in trained.slots}
    for name, step in schedule:
        failure = slots[name].failure
        assert failure is not None
        assert failure.kind == "diverged"
        assert f"weights that are not finite at step {step} (1 of " in failure.message
        assert [each.step for each in found[name]] == [*range(step + 1)]
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
    assert slots[last].failure is None
    assert found[last] == expected[last]
    assert_same_end(trained, before, last)


def test_a_fault_that_stays_fails_its_run_alone(
    poison: Poison, untouched: tuple[Cohort, dict[str, list[RunStep]]]
) -> None:
    victims = dict(zip(("schemabank", "swap", "molf", "muon"), PASSING, strict=True))
    schedule = {(n, step): place for n, place in victims.items() for step in range(5, NUM_STEPS)}
    before, expected = untouched
    trained = new_cohort(run_configs())
    poison.follow(trained, schedule)
    found = reports(trained)
    for slot in trained.slots:
        name = slot.run.name
        if name not in victims:
            assert slot.failure is None
            assert found[name] == expected[name]
            assert_same_end(trained, before, name)
            continue
        assert slot.failure is not None
        assert slot.failure.kind == "diverged"
        assert slot.skipped == [5, 6]
        assert slot.failure.message.startswith("loss or gradient not finite in 2 of the ")
        named = dict.fromkeys(i for each in found[name][5:7] for i in each.examples)
        assert f"examples of the skipped steps ({', '.join(named)})" in slot.failure.message
