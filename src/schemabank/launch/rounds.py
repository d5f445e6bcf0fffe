"""A round of a suite that several processes share: runs that depend on no other runs of the suite.

A suite's search for learning rates, its teachers and its final runs are rounds, one after the
other. A round lies in the suite's folder until all its runs are finished. Its units are decided
once, by the first worker, and stay: with the number of slots they decide the last bits of a result.
A call with other settings, or of another version, begins a round of its own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from schemabank import __version__
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure, read_failure
from schemabank.common.files import read_json
from schemabank.common.folders import remove_empty, remove_tree
from schemabank.common.writing import settle, temporary, write_json
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.packing import packed, unpacked
from schemabank.launch.queue import Queue, Record, publish
from schemabank.runs.folder import is_finished
from schemabank.runs.members import Outcome, finished_outcome

ROUNDS = ".queue"  # folder of a suite's rounds, beside its runs
ROUND, UNITS, WORK = "round.json", "units.json", "units"
GONE = ".gone"  # a round that is being removed
REMOVED = "{!r} was removed, by another call or by hand, before it was done: call again"
PLAN = "plan"  # the unit whose work is to decide on the others
ID_LENGTH = 10


@dataclass(frozen=True)
class Unit:
    """Runs that one process trains at once.

    Attributes:
        name: by which it is claimed.
        runs: ids of its runs.
        planned: ids of all runs of their cohort.
        slots: how many train at the same time.
    """

    name: str
    runs: Sequence[str]
    planned: Sequence[str]
    slots: int


@dataclass(frozen=True)
class Round:
    """Runs that processes share.

    Attributes:
        folder: of the round.
        out: folder of the runs.
        configs: settings by their ids of the runs for which cohorts are planned, finished or not.
        wanted: ids of those that are to be done.
        num_workers: for how many processes the cohorts are cut.
        lease_s: how long a process may be silent.
    """

    folder: Path
    out: Path
    configs: Mapping[str, RunConfig]
    wanted: Sequence[str]
    num_workers: int
    lease_s: float

    @property
    def queue(self) -> Queue:
        """The units as a process sees them that looks at them for the first time."""
        return Queue(self.folder / WORK, self.lease_s)

    def units(self) -> list[Unit] | None:
        """Return what there is to do, in the order in which it is to be begun, once decided."""
        path = self.folder / UNITS
        if not path.exists():
            return None
        told: dict[str, Any] = read_json(path)
        cohorts = told["cohorts"]
        return [Unit(**{**row, "planned": cohorts[row["planned"]]}) for row in told["units"]]

    def decide(self, units: Sequence[Unit]) -> None:
        """Say what there is to do, unless somebody has; a cohort's runs are named once."""
        numbers: dict[tuple[str, ...], int] = {}
        rows = []
        for unit in units:
            number = numbers.setdefault(tuple(unit.planned), len(numbers))
            rows.append({**vars(unit), "planned": number})
        publish(self.folder / UNITS, {"cohorts": [*map(list, numbers)], "units": rows})

    def is_over(self, queue: Queue) -> bool:
        """Whether all units are done."""
        units = self.units()
        return units is not None and all(queue.record(unit.name) is not None for unit in units)

    def outcomes(self, runs: Sequence[RunConfig]) -> dict[RunConfig, Outcome]:
        """Return what has become of runs, once the round is over."""
        queue, failed = self.queue, dict[str, Record]()
        for unit in self.units() or ():
            for row in (queue.record(unit.name) or {"failed": []})["failed"]:
                failed[row["run_id"]] = row
        return {run: self._outcome(run, failed.get(run_id(run))) for run in runs}

    def remove(self) -> None:
        """Remove what only the work needed, at once: to others the round is there or is gone."""
        _remove(self.folder)

    def _outcome(self, run: RunConfig, row: Record | None) -> Outcome:
        folder = self.out / run_id(run)
        if is_finished(folder):
            return replace(finished_outcome(run, folder), reused=False)
        if row is None and not self.folder.exists():
            return Outcome(folder, None, failure=Failure("error", REMOVED.format(str(self.folder))))
        if row is None:
            return Outcome(folder, {}).if_still_there()
        failure, inputs = read_failure(row), dict(row["inputs"])
        return Outcome(Path(row["folder"]), None, failure=failure, inputs=inputs, kept=row["kept"])


def failed_rows(outcomes: Mapping[str, Outcome]) -> Record:
    """Return what a unit's record says of its runs, by their ids."""
    return {
        "failed": [
            {
                "run_id": name,
                **outcome.failure.row(),
                "folder": str(outcome.folder),
                "kept": outcome.kept,
                "inputs": dict(outcome.inputs),
            }
            for name, outcome in outcomes.items()
            if outcome.failure is not None
        ]
    }


def open_round(
    runs: Sequence[RunConfig],
    out: Path,
    *,
    planned: Sequence[RunConfig],
    num_workers: int,
    lease_s: float,
) -> Round:
    """Return the round in which runs are done: the one that is under way, or a new one.

    A round that is over, and had failed runs, is followed by another, which tries them again.

    Args:
        runs: that are to be done, with those of them that are finished already.
        out: their folder.
        planned: these runs and others, for which cohorts are planned.
        num_workers: for how many processes a new round's cohorts are cut.
        lease_s: how long a process may be silent in a new round.

    Raises:
        InputError: the file system of ``out`` cannot hold a round.
    """
    whole = {run: run.model_dump(mode="json") for run in planned}
    rows: Record = {
        "version": __version__,
        "num_workers": num_workers,
        "lease_s": lease_s,
        "wanted": [run_id(run) for run in runs],
        "planned": packed([*whole.values()]),
    }
    # Whole settings, not ids alone: an id leaves out where and how many at once a run trains.
    names = [sorted(json.dumps(whole[run]) for run in each) for each in (runs, planned)]
    name = hashlib.sha256(json.dumps([__version__, names]).encode()).hexdigest()[:ID_LENGTH]
    for number in _numbers(out / ROUNDS, name):
        folder = out / ROUNDS / f"{name}-{number}"
        if not folder.exists():
            _write(folder, rows)
        if (found := _under_way(folder)) is not None:
            for earlier in range(1, number):
                _remove(out / ROUNDS / f"{name}-{earlier}")
            return found
    raise AssertionError


def remove_finished(out: Path) -> None:
    """Remove rounds whose runs are all finished, such as those of a suite before it has grown."""
    for folder in (out / ROUNDS).glob("[!.]*"):
        with suppress(InputError):  # another process is removing it, or it is damaged
            told: dict[str, Any] = read_json(folder / ROUND)
            if all(is_finished(out / name) for name in told["wanted"]):
                _remove(folder)
    for folder in (out / ROUNDS).glob(f".*{GONE}"):  # of a process that was killed over it
        remove_tree(folder)
    with suppress(OSError):  # there is none, or it has rounds
        (out / ROUNDS).rmdir()


def read_round(folder: Path) -> Round:
    """Read a round from its folder, which lies in that of its runs.

    Raises:
        InputError: another version has begun it, or it cannot be read.
    """
    told: dict[str, Any] = read_json(folder / ROUND)
    if told["version"] != __version__:
        raise InputError(
            f"{str(folder)!r} was begun by SchemaBank {told['version']}, and this is {__version__}:"
            " install the same version wherever workers run"
        )
    configs = {run_id(run): run for run in map(RunConfig.model_validate, unpacked(told["planned"]))}
    numbers = told["num_workers"], told["lease_s"]
    return Round(folder, folder.parents[1], configs, told["wanted"], *numbers)


def _numbers(place: Path, name: str) -> Iterator[int]:
    """Yield the numbers of rounds of the same runs from the last one on, or from 1."""
    known = [int(path.name.removeprefix(f"{name}-")) for path in place.glob(f"{name}-*")]
    number = max(known, default=1)
    while True:
        yield number
        number += 1


def _under_way(folder: Path) -> Round | None:
    """Read a round; ``None``: it is over, or another process has just removed it."""
    try:
        found = read_round(folder)
        return None if found.is_over(found.queue) else found
    except InputError:
        if folder.exists():
            raise
        return None


def _remove(folder: Path) -> None:
    gone = temporary(folder).with_suffix(GONE)
    with suppress(OSError):  # another process has removed it
        folder.rename(gone)
    remove_tree(gone)
    with suppress(OSError):  # it has other rounds
        folder.parent.rmdir()


def _write(folder: Path, rows: Record) -> None:
    """Make a round's folder, unless another process is faster."""
    partial = temporary(folder)
    (partial / WORK).mkdir(parents=True)
    write_json(partial / ROUND, rows)
    try:
        _check_links(partial / ROUND)
    except InputError:
        rmtree(partial)
        remove_empty([folder.parent])
        raise
    try:
        settle(partial, folder)
    except OSError:
        if not folder.exists():
            raise
        rmtree(partial)


def _check_links(path: Path) -> None:
    """Find out, before any worker starts, whether a file can have a second name, as units need it.

    Raises:
        InputError: it cannot.
    """
    second = temporary(path)
    try:
        second.hardlink_to(path)
    except OSError as error:
        raise InputError(
            f"{str(path.parents[2])!r} lies in a file system without hard links "
            f"({error.strerror}), by which processes share their work; mounted buckets are such: "
            "allowed is a local folder or one on NFS, choose another --out, or leave --launch and "
            "--workers out"
        ) from error
    second.unlink()
