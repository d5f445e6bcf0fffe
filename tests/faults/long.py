"""Suites of hundreds of runs, killed every few seconds until a call ends: none is done twice.

A case is named by its seed: it says when each call is killed. The same suite in one call that
nobody disturbs says what all files are to be, and how much memory and how many files a process
needs while it does hundreds of runs.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import yaml

from faults import ledgers
from faults.hooks import SAVE, Hooks, append
from faults.looks import Looks
from faults.shim import Watch
from faults.world import RUNS, STEPS, Program, Undisturbed, World, contents, import_all

Row = dict[str, Any]
KILLED = -9
NUM_RUNS = 300
ARMS = ("lora", "schemabank", "swap")
AT_ONCE = (1, 4)  # runs of a cohort, by the seed: a cohort a run, and one cohort of all
# After the start of a call, or after its first step: to load a cohort of all takes longer.
KILL_S = (3.0, 9.0)
MOST_FRUITLESS = 20  # calls in a row after which nothing more is kept than before
LONGEST_S = 4 * 3600.0
BEGUN = 1 / 3  # of a call; what it needs until then is loading, and not growth
LAST = 1 / 3  # of its finished runs, when the allocator has come to what it keeps
# Of every finished run 5 KiB stay, its result, which the suite's tables are made from. In a cohort
# of all, the weights of a run that waits for its turn to be evaluated, 29 KiB, lie on disk alone.
# What the allocator keeps comes on top, and after two thirds of the runs that is hardly any more.
# How soon it has come to that differs from call to call: measured are 18 to 46 and 8 to 17 KiB, by
# the runs at once, and 4 to 8 at last, where a leak of a run's weights would show.
MOST_KIB_A_RUN, MOST_KIB_A_RUN_AT_LAST = {1: 60.0, 4: 30.0}, 16.0
MOST_JUMP_MIB = 8.0
MOST_FILES_A_RUN = 0.1
Known = tuple[Undisturbed, Row]
"""What an undisturbed call has come to, and what it needed."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Sampling(Hooks):
    """Hooks that also tell which runs are finished, and what the process needs.

    Args:
        told: gets the lines.
    """

    told: Path | None = None

    def _step(self, call: Callable[..., Any], log: Any, step: Any) -> None:  # noqa: ANN401
        super()._step(call, log, step)
        self._tell()

    def _complete(self, call: Callable[..., Any], claim: Any) -> None:  # noqa: ANN401
        super()._complete(call, claim)
        self._tell(finished=claim.final.name)

    def _tell(self, **more: str) -> None:
        assert self.told is not None
        _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
        # Pages of libraries are no growth: they count from when they are first looked at.
        own = (resident - of_files) * PAGE_BYTES
        files = len([*Path("/proc/self/fd").iterdir()]) - 1  # without the one that lists them
        append(self.told, {"own": own, "files": files, **more})


def tried(world: World, seed: int, known: dict[int, Known], *, num_runs: int = NUM_RUNS) -> Row:
    """Run the case of a seed; ``problems`` of its row is empty if all promises were kept.

    Args:
        world: where.
        seed: of the case.
        known: undisturbed calls, by the runs at once; is added to.
        num_runs: of the suite.
    """
    at_once = AT_ONCE[seed % len(AT_ONCE)]
    program = _program(world, at_once, num_runs)
    if at_once not in known:
        known[at_once] = _undisturbed(world, program, num_runs)
    whole, needed = known[at_once]
    place = world.root / "cases" / f"long-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    killing = _Killing(world, program, place, whole, random.Random(f"long {seed}"), at_once)
    row = {
        "seed": seed,
        "at_once": at_once,
        "runs": num_runs,
        **killing.row(),
        "needed": needed,
    }
    row["problems"] += grown(needed, at_once)
    if not row["problems"]:
        shutil.rmtree(place)
    return row


def growth(samples: Sequence[Row], num_runs: int) -> Row:
    """Return what a call needed after its first third, and by how much more from run to run.

    Memory is what the process has for itself. Its largest single rise is told apart: when a table
    of Python's doubles, which it does at ever longer intervals, some MiB come at once.

    Args:
        samples: of the call, at times that follow its work.
        num_runs: that it did.
    """
    later = samples[int(len(samples) * BEGUN) :]
    own, files = ([each[name] for each in later] for name in ("own", "files"))
    finished = [each["own"] for each in samples if "finished" in each]
    at_last = finished[-max(2, int(len(finished) * LAST)) :]
    smooth, jump = _without_jump(own)
    per_sample = len(samples) / num_runs
    return {
        "samples": len(later),
        "first_mib": round(own[0] / 2**20, 1),
        "last_mib": round(own[-1] / 2**20, 1),
        "most_mib": round(max(own) / 2**20, 1),
        "kib_a_run": round(_slope(smooth) * per_sample / 2**10, 2),
        "kib_a_run_at_last": round(_slope(_without_jump(at_last)[0]) / 2**10, 2),
        "jump_mib": round(jump / 2**20, 1),
        "files": [min(files), max(files)],
        "files_a_run": round(_slope(files) * per_sample, 4),
    }


def grown(needed: Row, at_once: int) -> Iterator[str]:
    """Say what of a call with so many runs at once was not flat, as :func:`growth` tells it."""
    for name, most in (
        ("kib_a_run", MOST_KIB_A_RUN[at_once]),
        ("kib_a_run_at_last", MOST_KIB_A_RUN_AT_LAST),
        ("jump_mib", MOST_JUMP_MIB),
        ("files_a_run", MOST_FILES_A_RUN),
    ):
        if needed[name] > most:
            yield f"an undisturbed call grows: {name} is {needed[name]:g}, allowed is {most:g}"


def _without_jump(values: Sequence[int]) -> tuple[list[int], int]:
    """The most so far of values, without its largest rise at once, and how large that was."""
    most = [*accumulate(values, max)]
    rises = [after - before for before, after in pairwise(most)]
    jump = max(rises)
    at = rises.index(jump) + 1
    return [value - jump * (n >= at) for n, value in enumerate(most)], jump


def _slope(values: Sequence[float]) -> float:
    """The slope of the line through values one apart that has the least squares."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    over = sum((x - middle) * (y - mean) for x, y in enumerate(values))
    return over / sum((x - middle) ** 2 for x in range(len(values)))


def _program(world: World, at_once: int, num_runs: int) -> Program:
    """Write a suite, and return the call of it."""
    name = f"long-{at_once}"
    common = {key: value for key, value in world.settings.items() if key != "arm"}
    suite = {
        "arms": {arm: {} for arm in ARMS},
        "seeds": [*range(1, num_runs // len(ARMS) + 1)],
        "defaults": {
            **common,
            "engine": {**common["engine"], "slots": at_once},
            "train": {"num_train_epochs": 1, "learning_rate": 1e-2},
        },
    }
    path = world.root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite))
    return Program(name, ["suite", str(path)])


def _undisturbed(world: World, program: Program, num_runs: int) -> Known:
    place, told = world.root / "whole" / program.name, world.root / f"{program.name}.told"
    shutil.rmtree(place, ignore_errors=True)
    told.unlink(missing_ok=True)
    place.mkdir(parents=True)
    watch = Watch(world.root / "watch", place)
    ended = world.run(program, place, watch, Sampling(watch, told=told), longest_s=LONGEST_S)
    assert ended.code == 0, ended.said
    if world.forks:
        import_all(world.root / "modules")
    return Undisturbed(contents(place), [], {}, place), growth(ledgers.read(told), num_runs)


@dataclass
class _Killing:
    """A case under way.

    Attributes:
        draw: says when the next call is killed.
        at_once: runs of a cohort.
        problems: promises that were not kept.
        finished: how often each run was finished.
        steps: how often each step of each run was taken.
    """

    world: World
    program: Program
    place: Path
    whole: Undisturbed
    draw: random.Random
    at_once: int

    def __post_init__(self) -> None:
        self.waits = self.draw.random() < 0.5
        self.problems, self.lost = list[str](), list[int]()
        self.finished, self.steps = list[str](), list[tuple[str, int]]()
        self.looks = Looks(self.place, RUNS, self.whole)

    def row(self) -> Row:
        """Call the program until it is not killed any more, and look at everything."""
        kept, fruitless, calls = dict[str, int](), 0, 0
        while not self.problems and fruitless < MOST_FRUITLESS:
            before, calls = kept, calls + 1
            if self._called(kept):
                break
            kept = self.looks.kept()
            fruitless = fruitless + 1 if kept == before else 0
        if fruitless == MOST_FRUITLESS:
            self.problems.append(f"{fruitless} calls in a row have come to nothing")
        self.problems += self.looks.differences()
        self.problems += self._finished_twice()
        return {
            "waits": self.waits,
            "kills": calls - 1,
            "steps": len(set(self.steps)),
            "steps_again": len(self.steps) - len(set(self.steps)),
            "most_steps_lost": max(self.lost, default=0),
            "runs_again": len(self.finished) - len(set(self.finished)),
            "problems": self.problems[:20],
        }

    def _called(self, kept: Mapping[str, int]) -> bool:
        """Call the program, and look at what is there; return whether it was not killed."""
        ledger, told = (self.place.with_suffix(end) for end in (".steps", ".told"))
        for path in (ledger, told):
            path.unlink(missing_ok=True)
        watch = Watch(self.place.with_suffix(".watch"), self.place)
        hooks = Sampling(watch, self.waits, again=True, ledger=ledger, told=told)
        after_s = self.draw.uniform(*KILL_S)
        since = None if self.at_once == 1 else told
        ended = self.world.run(
            self.program,
            self.place,
            watch,
            hooks,
            kill_after_s=after_s,
            kill_since=since,
            longest_s=LONGEST_S,
        )
        steps = ledgers.steps_in(ledger)
        self.steps += [(run, step) for run, own in steps.items() for step in own]
        self.finished += [row["finished"] for row in ledgers.read(told) if "finished" in row]
        self.problems += ledgers.repeated(steps, kept)
        if ended.code not in (KILLED, 0):
            self.problems.append(f"exit code {ended.code}: {ended.said[-500:]}")
        if ended.left:
            self.problems.append(f"of its group go on: {', '.join(ended.left)}")
        if ended.code == KILLED:
            self.problems += self.looks.runs_half_written()
            self._note_lost(ledgers.lost(steps, self.looks.kept()), SAVE in watch.place)
        return ended.code != KILLED

    def _note_lost(self, lost: Mapping[str, int], saving: bool) -> None:
        """Keep how many steps the kill has cost the runs."""
        self.lost += lost.values()
        for run, number in lost.items():
            if self.waits and number > STEPS + saving:
                self.problems.append(f"{run} lost {number} steps")

    def _finished_twice(self) -> Iterator[str]:
        for run in sorted({run for run in self.finished if self.finished.count(run) > 1}):
            yield f"{run} was finished {self.finished.count(run)} times"
