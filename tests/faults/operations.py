"""File operations that fail: the program copes or says so, and the next call ends with the bytes.

A case is named by its seed: a program, the number of a file operation, and what it meets there. It
is an I/O error, a full disk, half a write or an interrupted call, once or from there on.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.child import Ended
from faults.hooks import Hooks
from faults.looks import Looks
from faults.shim import Fault, Watch
from faults.world import REPORT, Program, World

Row = dict[str, Any]
FAULTS = (Fault.EIO, Fault.ENOSPC, Fault.SHORT, Fault.EINTR)
FOR_GOOD = 1_000_000
# A call that is always interrupted never ends, on any system: it is tried again each time.
MOST_INTERRUPTED = 20
PROGRAMS = ("lora",) * 9 + ("schemabank",) * 7 + ("search",) * 3 + (REPORT,)
FAILED = (1, 2, 3)  # exit codes of a program that says what failed


@dataclass(frozen=True)
class Case:
    """What a seed names.

    Attributes:
        seed: its name.
        program: that meets the fault.
        fault: what it meets.
        at: the number of the operation.
        repeats: how many operations fail from that one on.
    """

    seed: int
    program: Program
    fault: Fault
    at: int
    repeats: int


def planned(world: World, seed: int) -> Case:
    """Return the case of a seed: all faults, once and for good, come in turn."""
    draw = random.Random(f"operation {seed}")
    fault, is_once = FAULTS[seed % 4], seed // 4 % 2 == 0
    name = draw.choice(PROGRAMS)
    events = world.undisturbed(name).events
    for_good = MOST_INTERRUPTED if fault is Fault.EINTR else FOR_GOOD
    at = draw.randint(1, events[-1].number)
    return Case(seed, world.programs[name], fault, at, 1 if is_once else for_good)


def tried(world: World, seed: int) -> Row:
    """Run the case of a seed; ``problems`` of its row is empty if all promises were kept."""
    case = planned(world, seed)
    place = world.root / "cases" / f"operation-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    looks = Looks(place, case.program.target, world.undisturbed(case.program.name))
    fault = {"fault": case.fault, "at": case.at, "repeats": case.repeats}
    ended, watch = _run(world, case.program, place, **fault)
    problems = [*_said(ended), *looks.half_written()]
    if case.fault in (Fault.SHORT, Fault.EINTR) and ended.code:
        problems.append(f"{case.fault.name} was not tried again: {ended.said[-500:]}")
    if ended.code and not (place / REPORT).exists():  # which a second report would refuse
        after, _ = _run(world, case.program, place)
        problems += [f"the next call: {after.said[-500:]}"] if after.code else []
    problems += looks.differences()
    row = {
        "seed": seed,
        "program": case.program.name,
        "fault": case.fault.name,
        "at": case.at,
        "once": case.repeats == 1,
        "fired": watch.fired,
        "met": watch.last.partition(" ")[0],
        "code": ended.code,
        "problems": problems,
    }
    if not problems:
        shutil.rmtree(place)
    return row


def _run(world: World, program: Program, place: Path, **fault: Any) -> tuple[Ended, Watch]:  # noqa: ANN401
    name = ".watch" if fault else ".after"  # what the first one says is still to be read
    watch = Watch(place.with_suffix(name), place, **fault)
    return world.run(program, place, watch, Hooks(watch, waits=True)), watch


def _said(ended: Ended) -> list[str]:
    """What a program must not do about a fault."""
    found = []
    if ended.code not in (0, *FAILED):
        found.append(f"exit code {ended.code}")
    if "Traceback" in ended.said:
        found.append(f"a traceback: {ended.said[-1500:]}")
    if ended.code and not ended.said.strip():
        found.append("it failed in silence")
    return found
