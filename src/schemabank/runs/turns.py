"""Runs of a cohort that have trained take turns in the slots, to be measured and written.

There may be more of them than slots, and of those that wait the weights lie on disk alone: see
:mod:`schemabank.engine.finished`.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

from schemabank.common.failure import FAILING, failure_of
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.runs.members import Trainee

T = TypeVar("T", bound=Trainee)


def seated(
    trainees: Sequence[T], stack: AdapterStack, cohort: Cohort | None
) -> Iterator[Sequence[T]]:
    """Put the trained runs into the slots, as many at a time as there are.

    Their weights are in memory meanwhile. A run whose weights cannot be read again fails alone.
    """
    for first in range(0, len(trainees), stack.num_slots):
        part = trainees[first : first + stack.num_slots]
        if cohort is None:
            yield part
            continue
        try:
            for trainee in part:
                _fetch(trainee, cohort)
            cohort.seat([trainee.name for trainee in part])
            yield part
        finally:
            for trainee in part:
                cohort.finished.let_go(trainee.name)


def _fetch(trainee: Trainee, cohort: Cohort) -> None:
    """Hold a run's weights in memory; one that has lost them gets a slot without an adapter.

    So its neighbours have the slots that they would have otherwise, and their answers fit.
    """
    try:
        cohort.finished.fetch(trainee.name)
    except FAILING as error:
        trainee.lose(failure_of(error))
        groups, nothing = cohort.stack.groups, torch.zeros(1)
        cohort.finished[trainee.name] = {n: nothing.expand(g.size) for n, g in groups.items()}
