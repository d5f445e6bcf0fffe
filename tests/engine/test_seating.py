"""Who has a slot when: every run takes all its steps in order, each at its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemabank.engine.seating import Journey, Seating, count_steps, stretches


@st.composite
def journeys(draw: st.DrawFn) -> list[Journey]:
    """Runs of up to 40 steps, some on their way."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        num_steps = draw(st.integers(1, 40))
        num_cached = draw(st.one_of(st.just(0), st.integers(0, num_steps)))
        step = draw(st.one_of(st.just(0), st.integers(0, num_steps)))
        found.append(Journey(num_cached, num_steps, step))
    return found


def walk(
    runs: list[Journey], *, num_slots: int, cycle: int, tick: int = 0
) -> list[tuple[int, dict[int, Journey]]]:
    """Let a cohort take its steps one by one: where the schedule stood, and who took a step."""
    seating = Seating(runs, num_slots=num_slots, cycle=cycle, tick=tick)
    steps = []
    while True:
        left = seating.leave()
        entered = seating.enter()
        assert not set(left) & {i for i, r in seating.seated.items() if i not in entered}
        if not seating.seated:
            return steps
        steps.append((seating.tick, seating.seated))
        for run in seating.seated.values():
            run.step += 1
        seating.tick += 1


@given(
    runs=journeys(),
    num_slots=st.integers(1, 14),
    cycle=st.integers(1, 9),
    tick=st.integers(0, 20),
)
def test_a_cohort_step_by_step(runs: list[Journey], num_slots: int, cycle: int, tick: int) -> None:
    expected = count_steps(runs, num_slots=num_slots, cycle=cycle, tick=tick)
    next_step = [run.step for run in runs]
    cached = []
    for at, seated in walk(runs, num_slots=num_slots, cycle=cycle, tick=tick):
        assert 1 <= len(seated) <= num_slots
        indices = [runs.index(run) for run in seated.values()]
        assert len(set(indices)) == len(indices)
        kinds = {next_step[i] < runs[i].num_cached for i in indices}
        assert len(kinds) == 1, "one kind of trunk at a time"
        cached += kinds
        for index in indices:
            assert (next_step[index] - at) % cycle == 0, "the schedule is at the run's own place"
            next_step[index] += 1
    assert next_step == [run.num_steps for run in runs], "all have ended"
    assert (sum(cached), len(cached) - sum(cached)) == expected
    assert cached == sorted(cached, reverse=True), "the base model's trunk comes first"


def test_a_run_keeps_its_slot_until_it_ends_or_is_ahead() -> None:
    runs = [Journey(0, 9), Journey(0, 4), Journey(0, 7)]
    seats = [
        {runs.index(run): slot for slot, run in seated.items()}
        for _, seated in walk(runs, num_slots=2, cycle=3)
    ]
    assert seats == [{0: 0, 2: 1}] * 7 + [{0: 0}] * 2 + [{1: 0}] * 4


@pytest.mark.parametrize(
    ("lengths", "slots", "steps"),
    [
        ((10, 8, 6, 4, 2), 3, 10),  # 8 + 2 and 6 + 4 fill a slot
        ((10, 8, 6, 4, 2), 2, 16),
        ((5, 5, 5), 1, 15),
        ((5,), 9, 5),
    ],
)
def test_the_longest_go_first_and_others_follow(
    lengths: tuple[int, ...], slots: int, steps: int
) -> None:
    runs = [Journey(0, 100 * length) for length in lengths]
    assert count_steps(runs, num_slots=slots, cycle=100) == (0, 100 * steps)


def test_the_longest_does_not_wait_for_its_place_where_the_base_models_trunk_is_done_with() -> None:
    """Ten cycles of plain LoRA beside runs that are through after 2.1: ten more, not 10.9."""
    runs = [Journey(21, 70), Journey(0, 70), Journey(21, 70)]
    assert count_steps(runs, num_slots=3, cycle=10) == (21, 70)
    seats = walk(runs, num_slots=3, cycle=10)
    assert [len(seated) for _, seated in seats] == [*[2] * 21, 1, *[3] * 49, *[1] * 20]
    assert seats[21][0] == 30, "the schedule moved to the beginning of a cycle"


def test_the_schedule_moves_on_where_nobody_can_take_a_step() -> None:
    """A run that stopped at step 2 of a cycle of 5 goes on there, at once."""
    run = Journey(0, 9, step=2)
    assert [at for at, _ in walk([run], num_slots=1, cycle=5, tick=10)] == list(range(12, 19))


@pytest.mark.parametrize(("cycle", "steps"), [(10, 100), (20, 100), (40, 120), (10**6, 140)])
def test_a_longer_cycle_makes_runs_of_other_lengths_wait(cycle: int, steps: int) -> None:
    """Lengths of 2 to 10 epochs of 10 steps, in as many slots as 10 epochs ask for."""
    runs = [Journey(0, 10 * epochs) for epochs in (10, 8, 6, 4, 2)]
    assert count_steps(runs, num_slots=3, cycle=cycle) == (0, steps)


@pytest.mark.parametrize("cycle", [10, 20, 40, 10**6])
def test_runs_of_equal_length_never_wait(cycle: int) -> None:
    """Plain LoRA and runs whose first steps have the base model's trunk, in two waves."""
    runs = [Journey(num_cached, 20) for num_cached in (0, 6) for _ in range(4)]
    assert count_steps(runs, num_slots=4, cycle=cycle) == (6, 34)


@given(runs=journeys(), num_slots=st.integers(1, 14), cycle=st.integers(1, 9))
def test_stretches_are_the_steps_one_by_one(
    runs: list[Journey], num_slots: int, cycle: int
) -> None:
    told = [
        (stretch.tick + step, stretch.num_runs)
        for stretch in stretches(runs, num_slots=num_slots, cycle=cycle)
        for step in range(stretch.num_steps)
    ]
    taken = walk(runs, num_slots=num_slots, cycle=cycle)
    assert told == [(tick, len(seated)) for tick, seated in taken]
