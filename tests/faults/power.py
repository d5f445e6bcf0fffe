"""Power losses while runs are saved: what the disk may hold then is the old or the new state.

A case is named by its seed: the log of a program, the moment of the loss, and which of the
operations that nobody had waited for are on the disk. ``disk.py`` says what is possible. The
package reads the result as the next call would, and some of the cases go on to the end.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from faults.disk import ORDERS, Order, Recorded, left_after, put, recorded
from faults.hooks import SAVE, Hooks
from faults.looks import TRAINED, Looks
from faults.shim import Event, Watch
from faults.world import RUNS, Undisturbed, World, sha256

Row = dict[str, Any]
PROGRAMS = ("lora", "schemabank", "train", "search")
FINISHED = -2  # in place of a number of steps
WHOLE_CALLS = 25  # one case of so many goes on to the end
SUITE = f"{RUNS}/suite.json"


@dataclass(frozen=True)
class Log:
    """What a program did to the disk, and what it promised when."""

    whole: Undisturbed

    @cached_property
    def record(self) -> Recorded:
        """Its changes to the disk."""
        return recorded(self.whole.events, self.whole.place)

    @cached_property
    def promises(self) -> Sequence[tuple[int, str, int]]:
        """From which event on a run is kept at a step, trained or finished."""
        found = []
        for event in self.whole.events:
            kind, *rest = Path(event.path).name.split(" ") if event.what == "point" else ("",)
            if kind == "saved":
                found.append((event.number, rest[0], int(rest[1])))
            elif kind in ("trained", "finished"):
                found.append((event.number, rest[0], TRAINED if kind == "trained" else FINISHED))
        return found

    def promised(self, at: int) -> dict[str, int]:
        """What the next call may count on after so many events."""
        return {run: state for number, run, state in self.promises if number <= at}

    @cached_property
    def made(self) -> dict[str, Any]:
        """What each run was trained with, as its checkpoints say."""
        found = {}
        for name, versions in self.record.versions.items():
            if "state.json" in versions[-1]:
                run = Path(name).parts[1].removeprefix(".").removesuffix(".partial")
                found[run] = json.loads(versions[-1]["state.json"])["made_with"]
        return found


def tried(world: World, seed: int, logs: dict[str, Log]) -> Row:
    """Run the case of a seed; ``problems`` of its row is empty if all promises were kept."""
    draw = random.Random(f"power {seed}")
    name, order = PROGRAMS[seed % len(PROGRAMS)], draw.choice(ORDERS)
    log = logs.setdefault(name, Log(world.undisturbed(name)))
    at = _moment(log.whole.events, draw)
    state = left_after(log.record, at.number, order, draw)
    place = world.root / "cases" / f"power-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    put(state, place)
    digest = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
    problems = list(_half(log, state))
    if seed % WHOLE_CALLS == 0:
        problems += _gone_on(world, name, log, place)
    else:
        problems += [p for run in log.made for p in _read(log, run, place, at.number)]
    if not problems:
        shutil.rmtree(place)
    return {
        "seed": seed,
        "program": name,
        "at": at.number,
        "place": at.place,
        "order": order,
        "state": digest[:16],
        "whole": seed % WHOLE_CALLS == 0,
        "problems": problems,
    }


def _moment(events: Sequence[Event], draw: random.Random) -> Event:
    """The last event before the loss: mostly within a save, or where a run gets its name."""
    near = [e for e in events if SAVE in e.place or "evaluate" in e.place]
    return draw.choice(near if draw.random() < 0.8 else events)


def _half(log: Log, state: dict[str, bytes | None]) -> Iterator[str]:
    """What has its name and is neither old nor new: runs that are finished, and a suite's list."""
    if SUITE in state and {"": state[SUITE]} not in log.record.versions[SUITE]:
        yield f"{SUITE} is neither old nor new"
    for run in log.made:
        name = f"{RUNS}/{run}/"
        now = {n: c for n, c in state.items() if n.startswith(name) and c is not None}
        whole = {n: d for n, d in log.whole.files.items() if n.startswith(name)}
        if f"{RUNS}/{run}" in state:
            digests = {n: hashlib.sha256(c).hexdigest() for n, c in now.items() if n in whole}
            if digests != whole:
                yield f"{run} has its name and is not whole"


def _read(log: Log, run: str, place: Path, at: int) -> Iterator[str]:
    """Read a run as the next call does; say where it is less than was promised, or another."""
    from schemabank.config.file import load_run
    from schemabank.runs.folder import claimed
    from schemabank.runs.resuming import begun

    out, promised = place / RUNS, log.promised(at).get(run, 0)
    if (out / run).exists():
        return
    notes: list[str] = []
    settings = load_run(log.whole.place / RUNS / run / "config.yaml")
    with claimed(out / run) as claim:
        member = begun(run, settings, claim, log.made[run], notes.append)
        step = 0 if member.begun is None else member.begun.standing.state.step
        if step:
            tensors = claim.path / "checkpoints" / f"step-{step}" / "weights.safetensors"
            if sha256(tensors) != log.whole.saves[run, step]:
                yield f"{run}: the tensors of step {step} are others"
    if member.failure is not None:
        yield f"{run} failed: {member.failure}"
    if promised == FINISHED:
        yield f"{run} was finished, and is not there"
    elif member.trained is None and (promised == TRAINED or step < promised):
        yield f"{run} was kept at {promised} (-1: trained), and goes on at {step}: {notes}"
    if any("newer checkpoint is not used" in note for note in notes):
        yield f"{run}: {notes}"


def _gone_on(world: World, name: str, log: Log, place: Path) -> Iterator[str]:
    """Call the program on what the disk held; it ends with the very bytes."""
    watch = Watch(place.with_suffix(".watch"), place)
    ended = world.run(world.programs[name], place, watch, Hooks(watch, waits=True))
    if ended.code:
        yield f"the next call: exit code {ended.code}: {ended.said[-500:]}"
    yield from Looks(place, RUNS, log.whole).differences()


__all__ = ["Log", "Order", "tried"]
