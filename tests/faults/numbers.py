"""Numbers that are not finite, in each slot of a cohort in turn: one run pays, and no other.

A case is named by its seed: a kind of run, where the number is put, and whether it comes once or
stays. Its neighbours must end with the same bits as in a cohort that nothing spoils. The run itself
leaves out the one step and says so, or fails: it never ends as if nothing had been.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, get_args

import pytest
import torch

import poison
from cohorts import ended
from poison import NAMES, NUM_STEPS, PASSING, Place, Poison
from schemabank.engine.cohort import Cohort, RunStep

Row = dict[str, Any]
LASTING: tuple[Place, ...] = tuple(place for place in get_args(Place) if place != "skip")
CASES: Sequence[tuple[str, Place, bool]] = [
    *((name, place, False) for name in NAMES for place in PASSING),
    *((name, place, True) for name in NAMES for place in LASTING),
]
NUMBER = len(CASES)
LATEST = NUM_STEPS - 8  # of the first spoilt step: two more must follow


class Clean(NamedTuple):
    """A cohort that nothing spoils, and what its runs reported."""

    cohort: Cohort
    steps: dict[str, list[RunStep]]


@cache
def clean() -> Clean:
    """Train it once."""
    cohort = poison.new_cohort(poison.run_configs())
    return Clean(cohort, poison.reports(cohort))


def tried(seed: int) -> Row:
    """Spoil one run of a cohort, and compare all of them with the clean cohort's."""
    victim, place, stays = CASES[seed % NUMBER]
    num_steps = len(clean().steps[victim])
    at = random.Random(seed).randrange(2, min(LATEST, num_steps - 6))
    steps = range(at, NUM_STEPS) if stays else (at,)
    with pytest.MonkeyPatch.context() as patch:
        spoiler, cohort = Poison(patch, len(NAMES)), poison.new_cohort(poison.run_configs())
        spoiler.follow(cohort, {(victim, step): place for step in steps})
        reported = poison.reports(cohort)
    problems = [
        *_neighbours(cohort, reported, victim),
        *_victim(cohort, reported, victim, at, stays=stays),
    ]
    said = next(slot.failure for slot in cohort.slots if slot.run.name == victim)
    return {
        "seed": seed,
        "run": victim,
        "place": place,
        "stays": stays,
        "step": at,
        "neighbours": len(NAMES) - 1,
        "ended": "failed" if said else "left the step out",
        "problems": problems[:10],
    }


def _neighbours(cohort: Cohort, reported: dict[str, list[RunStep]], victim: str) -> Iterator[str]:
    """Yield what is other in another run than in the clean cohort."""
    own, steps = clean()
    for slot in cohort.slots:
        name = slot.run.name
        if name == victim:
            continue
        if slot.failure is not None or slot.skipped:
            yield f"{name}: {slot.failure} {slot.skipped}"
        if reported[name] != steps[name]:
            yield f"{name}: other steps"
        ends, wanted = ended(cohort).get(name, {}), own.finished[name]
        if ends.keys() != wanted.keys() or not all(
            torch.equal(ends[key], wanted[key]) for key in wanted
        ):
            yield f"{name}: other weights"


def _victim(
    cohort: Cohort, reported: dict[str, list[RunStep]], victim: str, at: int, *, stays: bool
) -> Iterator[str]:
    """Yield where the spoilt run ends as if nothing had been."""
    (slot,) = (slot for slot in cohort.slots if slot.run.name == victim)
    before = [each for each in reported[victim] if each.step < at]
    if before != [each for each in clean().steps[victim] if each.step < at]:
        yield "the steps before are others"
    if stays and (slot.failure is None or slot.failure.kind != "diverged"):
        yield f"a success: {slot.failure}"
    if not stays and (slot.failure is not None or slot.skipped != [at]):
        yield f"{slot.failure}, left out {slot.skipped}, not step {at}"
    ends = ended(cohort).get(victim)
    if not stays and (ends is None or not all(torch.isfinite(row).all() for row in ends.values())):
        yield "weights that are not finite"


def summary(rows: Sequence[Row]) -> Row:
    """What the record holds of the campaign."""
    ends = Counter((row["place"], row["ended"]) for row in rows)
    return {
        "neighbours": sum(row["neighbours"] for row in rows),
        "runs": sorted({row["run"] for row in rows}),
        "by_place": {
            place: {"cases": sum(row["place"] == place for row in rows)}
            | {end: ends[place, end] for end in ("left the step out", "failed")}
            for place in LASTING
        },
    }
