import heapq
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch import cutting
from schemabank.launch.cutting import cut, sizes
from schemabank.runs.experiment import CohortPart
from schemabank.runs.training import Context

CHECKPOINT_S, LEASE_S, START_S = 300.0, 120.0, 60.0


def test_every_run_is_in_one_unit_and_no_unit_leaves_slots_idle_but_the_last() -> None:
    for count in range(1, 60):
        for slots in (1, 2, 7, 16):
            for workers in (1, 2, 8):
                found = sizes(count, slots=slots, num_workers=workers)
                assert sum(found) == count
                assert all(size % slots == 0 for size in found[:-1])
                assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("count", "slots", "workers", "found"),
    [
        (4, 1, 2, [1, 1, 1, 1]),
        (40, 20, 2, [20, 20]),
        (41, 21, 2, [21, 20]),
        (100, 5, 2, [25, 25, 15, 15, 5, 5, 5, 5]),
        (72, 12, 2, [24, 24, 12, 12]),
        (72, 12, 1, [36, 24, 12]),
        (13, 2, 4, [2, 2, 2, 2, 2, 2, 1]),
    ],
)
def test_units_become_smaller_towards_the_end(
    count: int, slots: int, workers: int, found: list[int]
) -> None:
    assert sizes(count, slots=slots, num_workers=workers) == found


def test_the_ids_of_a_cohort_are_computed_once_for_all_its_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [RunConfig(arm="base", seed=seed) for seed in range(30)]
    hashed: list[RunConfig] = []

    def counted(run: RunConfig) -> str:
        hashed.append(run)
        return run_id(run)

    monkeypatch.setattr(cutting, "run_id", counted)
    context = cast(Context, SimpleNamespace(training=None))
    units = cut([CohortPart([run], context, 1, runs) for run in runs], 2)
    assert sorted(unit.runs for unit in units) == sorted([run_id(run)] for run in runs)
    assert all(unit.planned == [*map(run_id, runs)] for unit in units)
    assert len(hashed) == 2 * len(runs)


def makespan_s(units: Sequence[float], speeds: Sequence[float], loss: float) -> tuple[float, float]:
    """Let workers do units in their order, lost and replaced now and then.

    Args:
        units: seconds of work.
        speeds: of the workers; 1 does a second of work in a second.
        loss: share of units whose worker is lost before their end.

    Returns:
        When the last unit ends; and the work that was done, with what was lost since checkpoints.
    """
    drawn = random.Random(7)
    free = [(0.0, number) for number in range(len(speeds))]
    ready, lost = list(enumerate(units)), list[tuple[float, int, float]]()
    ends, done = 0.0, 0.0
    while ready or lost:
        now, number = heapq.heappop(free)
        while lost and (not ready or lost[0][0] <= now):
            at, index, work = heapq.heappop(lost)
            now = max(now, at)
            heapq.heappush(ready, (index, work))
        index, work = heapq.heappop(ready)
        if drawn.random() < loss:
            stopped = work * drawn.random()
            kept = stopped - stopped % (CHECKPOINT_S * speeds[number])
            end = now + stopped / speeds[number]
            heapq.heappush(lost, (end + LEASE_S, index, work - kept))
            heapq.heappush(free, (end + START_S, number))
            done += stopped
            continue
        done += work
        ends = max(ends, now + work / speeds[number])
        heapq.heappush(free, (now + work / speeds[number], number))
    return ends, done


def test_10000_runs_on_64_workers_end_within_2_percent_of_the_bound() -> None:
    """The longest first; workers of three speeds, of which one in a hundred units loses its."""
    drawn = random.Random(1)
    lengths = sorted((drawn.uniform(120, 1200) for _ in range(10_000)), reverse=True)
    assert sizes(len(lengths), slots=1, num_workers=64) == [1] * len(lengths)
    speeds = [0.5 if n % 16 == 0 else 0.9 if n % 4 == 0 else 1.0 for n in range(64)]
    found, done = makespan_s(lengths, speeds, loss=0.01)
    assert done > sum(lengths)
    assert found <= 1.02 * done / sum(speeds)
    # In another order the last unit to be begun may be a long one.
    assert makespan_s(lengths[::-1], speeds, loss=0.01)[0] > found
