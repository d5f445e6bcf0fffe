"""How a round's cohorts are cut into units, so that all workers end at about the same time.

The units are begun the longest first, and whoever is free takes the next one: the last to end is
late by less than its last unit (Graham 1969, "Bounds on multiprocessing timing anomalies"). So
units become smaller towards the end, by factoring: as many equal units as there are workers, which
together hold half of what is left, then the same with the rest (Hummel, Schonberg and Flynn 1992,
"Factoring: a method for scheduling parallel loops"). Every unit costs a start of its own, on a GPU
to capture its programs, so there are no more than that. Each holds as many runs as there are slots,
or a multiple, since a step costs what all its slots cost, used or not.

A result does not depend on the cut: the slots have room for any run of the whole cohort.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.planner import expected_cost, journey
from schemabank.engine.seating import count_steps
from schemabank.launch.rounds import Unit
from schemabank.runs.experiment import CohortPart

SHARES = 2  # of what is left, each worker's part of it is cut off as one unit: 1 / SHARES


def cut(parts: Iterable[CohortPart], num_workers: int) -> list[Unit]:
    """Return the units of a round, in the order in which they are to be begun.

    Args:
        parts: the cohorts, as one process would train them.
        num_workers: processes that share them.
    """
    found: list[tuple[float, Sequence[RunConfig], int, CohortPart]] = []
    for part in parts:
        slots = _slots(part, num_workers)
        ends = [0]
        for size in sizes(len(part.runs), slots=slots, num_workers=num_workers):
            ends.append(ends[-1] + size)
        for first, end in pairwise(ends):
            runs = part.runs[first:end]
            found.append((cost(runs, slots, part), runs, slots, part))
    found.sort(key=lambda unit: -unit[0])
    digits = len(str(len(found)))
    cohorts = {id(part.planned): part.planned for _, _, _, part in found}
    # Once a cohort: an id is a hash of all settings, and there may be as many units as runs.
    names = {key: [*map(run_id, planned)] for key, planned in cohorts.items()}
    return [
        Unit(f"{number:0{digits}}", [*map(run_id, runs)], names[id(part.planned)], slots)
        for number, (_, runs, slots, part) in enumerate(found, start=1)
    ]


def sizes(count: int, *, slots: int, num_workers: int) -> list[int]:
    """Return how many runs go into each unit of a cohort, the most first.

    Args:
        count: runs of the cohort, the longest first.
        slots: how many of them train at the same time.
        num_workers: processes that share them.
    """
    if slots == 1:  # a start of its own costs it little
        return [1] * count
    found: list[int] = []
    while count > 0:
        size = slots * math.ceil(count / (SHARES * num_workers * slots))
        for _ in range(num_workers):
            found.append(min(size, count))
            count -= found[-1]
    return [size for size in found if size]


def cost(runs: Sequence[RunConfig], slots: int, part: CohortPart) -> float:
    """Return what runs cost in so many slots, in no unit: it is for comparing units.

    What does not train is only evaluated. Nobody knows how long that takes, so it begins first.
    """
    data = part.context.training
    if data is None or not runs[0].trains:
        return math.inf
    journeys = [journey(run, epoch=data.schedule.steps_per_epoch) for run in runs]
    steps = count_steps(journeys, num_slots=slots, cycle=data.schedule.cycle)
    return expected_cost(*steps, slots=slots)


def _slots(part: CohortPart, num_workers: int) -> int:
    """The slots of a cohort; fewer where they are ours to choose and a worker would get no run."""
    if part.runs[0].engine.slots != "auto":
        return part.slots
    return min(part.slots, math.ceil(len(part.runs) / num_workers))
