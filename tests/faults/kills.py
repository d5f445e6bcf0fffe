"""Kills at chosen moments: the next call ends with the very bytes, and repeats nothing.

A case is named by its seed. It is a program whose process group is killed at one event, or which
is killed once more while it goes on, and the same call after that. Afterwards all that was said of
the promise is looked at: files, checkpoints, what was done again, what was left over.
"""

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from faults import ledgers
from faults.child import Ended, run
from faults.hooks import EVALUATE, RECOVER, SAVE, TRAIN, Hooks
from faults.looks import Looks
from faults.shim import VARIABLE, Event, Fault, Watch
from faults.world import AT_ONCE, ITEMS, REPORT, STEPS, Program, Undisturbed, World

Row = dict[str, Any]
KILLED = -9
# Completions that end at once, or losses that are measured at once, are kept together.
MOST_ANSWERS_LOST = {"completion": STEPS - 1 + AT_ONCE, "losses": STEPS - 1 + ITEMS}
AGAIN_AMONG = 60  # the first events of a program that goes on, among which it is killed again
STAGES = {"router": 1, "schemas": 2, "joint": 3}  # of the curriculum in the tiny world


def kind_of(place: str) -> str:
    """What a program was doing, for counting."""
    if SAVE in place:
        return "save"
    if place.startswith(RECOVER):
        return "recovering"
    if EVALUATE in place:
        return "evaluation"
    return "training" if TRAIN in place else "beginning"


def stage_of(place: str) -> int:
    """The stage of the curriculum whose step was the last that ended; 0: of another method."""
    return next((n for name, n in STAGES.items() if f"stage={name} " in place), 0)


def epoch_of(place: str) -> int:
    """The epoch of the last step that ended."""
    return int(place.partition("epoch=")[2].partition(" ")[0] or 0)


def _in_stage(number: int) -> Callable[[Event], bool]:
    return lambda event: kind_of(event.place) == "training" and stage_of(event.place) == number


# Which program a seed kills, and among which of its events: twenty seeds make one round.
ROUND: Sequence[tuple[str, Callable[[Event], bool]]] = (
    *[("train", lambda event: kind_of(event.place) == "save")] * 6,
    *[("schemabank", _in_stage(1)), ("train", _in_stage(2)), ("train", _in_stage(3))],
    ("train", lambda event: epoch_of(event.place) >= 1 and kind_of(event.place) == "training"),
    ("train", lambda event: epoch_of(event.place) >= 1 and kind_of(event.place) == "save"),
    *[("search", lambda event: "search" in event.place)] * 3,
    ("search", lambda event: "search" not in event.place),
    *[("train", lambda event: kind_of(event.place) == "evaluation")] * 2,
    *[(REPORT, lambda _: True)] * 2,
    ("lora", lambda _: True),  # as a program that starts from nothing
)
REAL = len(ROUND) - 1


@dataclass(frozen=True)
class Case:
    """What a seed names.

    Attributes:
        seed: its name.
        program: that is killed.
        at: the events at which it is killed: first, and while it goes on.
        waits: whether training waits for checkpoints, so that events come in one order.
        is_real: whether it starts as a user's does, instead of being forked.
    """

    seed: int
    program: Program
    at: Sequence[int]
    waits: bool
    is_real: bool


def planned(world: World, seed: int, *, on_device: bool = False) -> Case:
    """Return the case of a seed."""
    draw = random.Random(f"kill {seed}")
    place = seed % len(ROUND)
    name, wanted = ROUND[place]
    if on_device:  # compiling takes most of the time there, so that all cases share one program
        wanted = wanted if name == "train" else ROUND[0][1]
        name = "train"
    whole = world.undisturbed(name)
    events = [event.number for event in whole.events if wanted(event)]
    at = [draw.choice(events)]
    if name != REPORT and draw.random() < 0.3:
        at.append(draw.randint(1, AGAIN_AMONG))
    is_real = place == REAL and not on_device
    return Case(seed, world.programs[name], at, draw.random() < 0.7, is_real)


def tried(world: World, seed: int, *, on_device: bool = False) -> Row:
    """Run the case of a seed; ``problems`` of its row is empty if all promises were kept."""
    case = planned(world, seed, on_device=on_device)
    place = world.root / "cases" / f"kill-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    killing = _Killing(world, case, place, world.undisturbed(case.program.name))
    row = killing.row()
    if not row["problems"]:
        shutil.rmtree(place)
    return row


@dataclass(frozen=True)
class _Killing:
    """A case under way."""

    world: World
    case: Case
    place: Path
    whole: Undisturbed

    def row(self) -> Row:
        """Kill the program, call it again, and look at everything."""
        case, problems, killed, lost = self.case, list[str](), list[str](), list[int]()
        again = list[int]()
        looks = self._looks()
        kept: dict[str, int] = {}
        for index, at in enumerate(case.at):
            watch = self._watch(fault=Fault.KILL, at=at)
            ended = self._run(watch, index)
            problems += self._problems_of_end(ended, KILLED)
            problems += self._repeated(index, kept, again)
            if ended.code != KILLED:
                break
            killed.append(watch.place or f"{case.program.name} {watch.last.partition(' ')[0]}")
            problems += looks.half_written()
            before, kept = kept, looks.kept()
            problems += ledgers.gone_back(ledgers.begun_in(self._ledger(index)), before, kept)
            lost += self._lost(index, kept, watch.place, problems)
        problems += self._finished(kept, again)
        return {
            "seed": case.seed,
            "program": case.program.name,
            "at": list(case.at),
            "real": case.is_real,
            "killed": killed,
            "lost": max(lost, default=0),
            "answered_again": max(again, default=0),
            "problems": problems,
        }

    def _finished(self, kept: Mapping[str, int], again: list[int]) -> list[str]:
        """Call the program again, and compare what it has come to."""
        if (self.place / REPORT).exists():  # the kill came after its end, or it would refuse
            return [*self._looks().differences()]
        index = len(self.case.at)
        ended = self._run(self._watch(), index)
        return [
            *self._problems_of_end(ended, 0),
            *self._repeated(index, kept, again),
            *self._looks().differences(),
        ]

    def _looks(self) -> Looks:
        return Looks(self.place, self.case.program.target, self.whole)

    def _watch(self, **fault: Any) -> Watch:  # noqa: ANN401
        return Watch(self.place.with_suffix(".watch"), self.place, **fault)

    def _run(self, watch: Watch, index: int) -> Ended:
        program = self.case.program
        if self.case.is_real and index == 0:
            return run(partial(_replaced, program.called(self.place), watch), self.place.parent)
        ledger = self._ledger(index)
        ledger.unlink(missing_ok=True)
        hooks = Hooks(watch, waits=self.case.waits, again=index > 0, ledger=ledger)
        return self.world.run(program, self.place, watch, hooks)

    def _problems_of_end(self, ended: Ended, allowed: int) -> Iterator[str]:
        if ended.code not in (allowed, 0):
            yield f"exit code {ended.code}: {ended.said[-500:]}"
        if ended.left:
            yield f"of its group go on: {', '.join(ended.left)}"

    def _lost(
        self, index: int, kept: Mapping[str, int], place: str, problems: list[str]
    ) -> Iterator[int]:
        """How many steps of each run were taken and are not kept."""
        for run_name, number in ledgers.lost(self._steps(index), kept).items():
            # While a checkpoint is written, the next step may end.
            allowed = STEPS + (SAVE in place)
            if self.case.waits and number > allowed:
                problems.append(f"{run_name} lost {number} steps, allowed are {allowed} at {place}")
            yield number

    def _repeated(self, index: int, kept: Mapping[str, int], again: list[int]) -> Iterator[str]:
        """Runs that did not go on from where they were kept; counts what was answered twice."""
        yield from ledgers.repeated(self._steps(index), kept)
        *before, now = (ledgers.answers_in(self._ledger(n)) for n in range(index + 1))
        for name, number in ledgers.answered_again(before, now):
            again.append(number)
            if number > MOST_ANSWERS_LOST[name.split()[-1]]:
                yield f"{number} answers were given again: {name}"

    def _steps(self, index: int) -> dict[str, list[int]]:
        return ledgers.steps_in(self._ledger(index))

    def _ledger(self, index: int) -> Path:
        return self.place.with_suffix(f".{index}")


def _replaced(arguments: Sequence[str], watch: Watch) -> None:
    """Become a program that starts as a user's does."""
    command = [sys.executable, "-m", "schemabank", *arguments]
    os.execve(sys.executable, command, {**os.environ, VARIABLE: str(watch.file)})
