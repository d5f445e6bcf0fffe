"""Which runs have the slots, and when; no tensors here.

All runs follow one schedule of shapes. A run may take a slot only when the schedule is at the place
of its cycle where the run's next step belongs. So what a run computes depends on its own steps and
never on when it got a slot.

A program costs what all slots cost, used or not. So a cohort first takes all steps whose trunk is
the base model's, which cost little (see :class:`schemabank.engine.slots.Kind`), and then all
others. Thus no step needs both kinds of program. A run that has taken its steps of the first kind
gives up its slot until the other runs have, too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

# The time of a step with the base model's trunk over that of another step, roughly: a tenth where
# the states are kept (results/benchmarks/nvidia-h200.json), more where they have to be computed.
CACHED_COST = 0.3


class Progress(Protocol):
    """How far a run has come.

    Attributes:
        step: the next step, from 0.
        num_cached: how many of the first steps have the base model's trunk.
        num_steps: steps in all.
    """

    step: int
    num_cached: int
    num_steps: int

    @property
    def has_ended(self) -> bool:
        """Whether there is no step left to take."""


@dataclass(eq=False)
class Journey:
    """A run of which only the length is known, to plan with; see :class:`Progress`."""

    num_cached: int
    num_steps: int
    step: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether there is no step left to take."""
        return self.step >= self.num_steps


R = TypeVar("R", bound=Progress)


class Seating(Generic[R]):
    """The slots of a cohort and the runs in them.

    Args:
        runs: those with the most steps left get slots first; they may have taken steps already.
        num_slots: how many slots there are.
        cycle: steps after which the schedule's shapes repeat.
        tick: the schedule's next step.
        seated: runs that have a slot already, by its index; those whose next step belongs elsewhere
            in the schedule have to wait for one.

    Attributes:
        slots: the run in each, or ``None``.
    """

    def __init__(
        self,
        runs: Sequence[R],
        *,
        num_slots: int,
        cycle: int,
        tick: int = 0,
        seated: Mapping[int, R] | None = None,
    ) -> None:
        self.runs, self.cycle, self.tick = list(runs), cycle, tick
        fitting = {i: run for i, run in (seated or {}).items() if self._distance(run) == 0}
        self.slots: list[R | None] = [fitting.get(index) for index in range(num_slots)]
        self._was_cached = self.is_cached  # as of the last call of `leave`

    @property
    def seated(self) -> dict[int, R]:
        """The runs that have a slot, by its index."""
        return {index: run for index, run in enumerate(self.slots) if run is not None}

    @property
    def is_cached(self) -> bool:
        """Whether the cohort's next step is one whose trunk is the base model's."""
        return any(run.step < run.num_cached for run in self.runs if not run.has_ended)

    def leave(self) -> dict[int, R]:
        """Take slots from runs that have ended or have to wait; return these runs by their slot.

        When the steps with the base model's trunk are over, the longest run should go on first. If
        it cannot at this place of the schedule, all runs give up their slots: with no run seated,
        the schedule is free to move to its place (see :meth:`enter`).
        """
        cached, before = self.is_cached, self._was_cached
        self._was_cached = cached
        leaving = {i: run for i, run in self.seated.items() if not _may_step(run, cached=cached)}
        if before and not cached and any(map(self._distance, self._longest(self.runs)[:1])):
            leaving = self.seated
        self.vacate(leaving)
        return leaving

    def enter(self) -> dict[int, R]:
        """Give free slots to runs that can go on now; return these runs by their slot.

        While no run has a slot, the schedule can move: it goes to where the first run can go on.
        """
        called = self._called()
        if called and not self.seated:  # nobody's steps depend on where the schedule stands
            self.tick += self._distance(called[0])
        fitting = [run for run in called if self._distance(run) == 0]
        free = [index for index, run in enumerate(self.slots) if run is None]
        entering = dict(zip(free, fitting, strict=False))
        for index, run in entering.items():
            self.slots[index] = run
        return entering

    def vacate(self, indices: Iterable[int]) -> None:
        """Take these slots from their runs."""
        for index in indices:
            self.slots[index] = None

    def steps_to_change(self) -> int:
        """Return how many steps at least pass until a run can leave or enter; 0 without any run."""
        cached = self.is_cached
        left = [_num_left(run, cached=cached) for run in self.seated.values()]
        return min([*left, *map(self._distance, self._called())], default=0)

    def _called(self) -> list[R]:
        """Return the runs for the free slots: those with most steps left, even if they must wait.

        A shorter run that could enter at once does not get the slot: the longest would end last and
        delay the whole cohort.
        """
        seated = self.seated.values()
        waiting = self._longest([run for run in self.runs if run not in seated])
        return waiting[: len(self.slots) - len(seated)]

    def _longest(self, runs: Sequence[R]) -> list[R]:
        """Return the runs that may take the next kind of step, those with most steps left first."""
        cached = self.is_cached
        able = [run for run in runs if _may_step(run, cached=cached)]
        return sorted(able, key=lambda run: -_num_left(run, cached=cached))

    def _distance(self, run: R) -> int:
        """Return the number of steps until the schedule is where a run can go on."""
        return (run.step - self.tick) % self.cycle


@dataclass(frozen=True)
class Stretch:
    """Successive steps that the same runs take.

    Attributes:
        tick: the schedule's step at the first of them.
        num_steps: how many steps.
        num_runs: how many runs take them.
        is_cached: whether their trunk is the base model's.
    """

    tick: int
    num_steps: int
    num_runs: int
    is_cached: bool


def stretches(
    runs: Sequence[Progress],
    *,
    num_slots: int,
    cycle: int,
    tick: int = 0,
    seated: Mapping[int, Progress] | None = None,
) -> Iterator[Stretch]:
    """Yield the steps that a cohort still takes, in order.

    Args:
        runs: the cohort's runs.
        num_slots: how many slots there are.
        cycle: steps after which the schedule's shapes repeat.
        tick: the schedule's next step.
        seated: those of the runs that have a slot, by its index.
    """
    going = [run for run in runs if not run.has_ended]
    journeys = [Journey(run.num_cached, run.num_steps, run.step) for run in going]
    places = {
        index: journeys[going.index(run)] for index, run in (seated or {}).items() if run in going
    }
    seating = Seating(journeys, num_slots=num_slots, cycle=cycle, tick=tick, seated=places)
    while not all(journey.has_ended for journey in journeys):
        seating.leave()
        seating.enter()
        steps, taking = seating.steps_to_change(), seating.seated.values()
        if taking:
            yield Stretch(seating.tick, steps, len(taking), seating.is_cached)
        seating.tick += steps
        for journey in taking:
            journey.step += steps


def count_steps(
    runs: Sequence[Progress],
    *,
    num_slots: int,
    cycle: int,
    tick: int = 0,
    seated: Mapping[int, Progress] | None = None,
) -> tuple[int, int]:
    """Return how many steps a cohort still takes: with the base model's trunk, and others.

    The arguments are those of :func:`stretches`.
    """
    counts = {True: 0, False: 0}
    taken = stretches(runs, num_slots=num_slots, cycle=cycle, tick=tick, seated=seated)
    for stretch in taken:
        counts[stretch.is_cached] += stretch.num_steps
    return counts[True], counts[False]


def _num_left(run: Progress, *, cached: bool) -> int:
    """Return how many steps a run has left: with the base model's trunk, or in all."""
    return (run.num_cached if cached else run.num_steps) - run.step


def _may_step(run: Progress, *, cached: bool) -> bool:
    """Whether a run's next step is of a kind: with the base model's trunk, or not."""
    return not run.has_ended and (run.step < run.num_cached) == cached
