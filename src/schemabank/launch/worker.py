"""A worker: a process that does units of a round until all are done, here or elsewhere.

Every worker loads the model and the data once. Whoever comes first decides what the units are.
A worker that finds out that it has lost its lease, since it was stopped for a while, ends at once:
another process has gone on from what was on the disk, and nothing may be written beside it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.common.quiet import quiet_libraries
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.cutting import cut
from schemabank.launch.messages import Sender
from schemabank.launch.queue import MOST_CRASHES, MOST_IN_VAIN, Lease, Record, share
from schemabank.launch.rounds import PLAN, Round, Unit, failed_rows, read_round
from schemabank.runs.experiment import CohortPart, Loaded, attempt, contexts, parts
from schemabank.runs.folder import how_far, is_finished
from schemabank.runs.launched import Launched
from schemabank.runs.loading import resolve_device
from schemabank.runs.locks import Tenure
from schemabank.runs.members import Outcome

LOST, REFUSED = 75, 2  # exit codes: the lease went to another; settings that cannot be had
PAUSE_S = 0.5  # between two looks for a unit that is free
SPEAKS = "--speaks"
MODULE = "schemabank.launch"  # whose `__main__` calls :func:`main`


def command(folder: Path, parent: int, launched: Launched, *, speaks: bool) -> list[str]:
    """Return the command that starts a worker on a round.

    Args:
        folder: of the round.
        parent: the process that starts it, and with which it ends.
        launched: how that process trains its runs.
        speaks: whether it tells how it prepares, which all workers do alike.
    """
    words = [str(folder), str(parent), launched.launcher, str(launched.workers)]
    return [sys.executable, "-m", MODULE, *words, *([SPEAKS] if speaks else [])]


def main() -> None:
    """Work on the round in the folder that is named, and tell of it on stdout."""
    signal.signal(signal.SIGTERM, _terminated)
    # Libraries print what they like. That must not get among the messages.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _, folder, parent, launcher, workers, *others = sys.argv
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    sender = Sender(pipe, speaks=SPEAKS in others)
    try:
        with quiet_libraries():
            work_on(Path(folder), sender, launched=Launched(launcher, int(workers)))
    except InputError as error:
        sender.send(refused=str(error))
        sys.exit(REFUSED)


def work_on(folder: Path, sender: Sender, *, launched: Launched, name: str = "") -> None:
    """Do units of the round in a folder until all are done.

    Args:
        folder: of the round.
        sender: where it tells what it does.
        launched: how the call that started it trains its runs.
        name: under which it holds units, for who started it.

    Raises:
        InputError: something in the settings cannot be had.
    """
    try:
        shared = read_round(folder)
        worker = Worker(shared, sender, launched, name)
        take = partial(share, worker.queue, pause_s=PAUSE_S, on_lost=partial(os._exit, LOST))
        take([PLAN], worker.plan)
        worker.units = {unit.name: unit for unit in shared.units() or ()}
        take(list(worker.units), worker.do)
    except (FileNotFoundError, InputError):
        if folder.exists():
            raise
        # Another call has seen that all is done, and removed the round.


class Worker:
    """What a worker has at hand, once it has loaded and checked what the unfinished runs need.

    Args:
        shared: the round.
        sender: where it tells what it does.
        launched: how the call that started it trains its runs.
        name: under which it holds units.

    Attributes:
        queue: the units, as it sees them.
        units: the units by name, once they are decided.

    Raises:
        InputError: something in the settings cannot be had.
    """

    def __init__(self, shared: Round, sender: Sender, launched: Launched, name: str) -> None:
        self.queue, self.units = shared.queue, dict[str, Unit]()
        self._shared, self._sender, self._name = shared, sender, name
        self._launched = launched
        planned, pending = list(shared.configs.values()), self._pending()
        self._device = resolve_device(planned[0].engine.device)
        self._groups = contexts(
            pending, planned, shared.out, sender, device=self._device, loaded=Loaded()
        )
        self._context_of = {run: context for group, context in self._groups for run in group}

    def plan(self, lease: Lease) -> Record:
        """Decide what the units are, unless that was decided already."""
        shared = self._shared
        self._sender.send(unit=lease.unit, number=lease.number)
        lease.begin(self._name, {})
        found = parts(self._groups, self._pending(), shared.out, self._device)
        shared.decide(cut(found, shared.num_workers))
        self._sender.send(done=lease.unit)
        return failed_rows({})

    def do(self, lease: Lease) -> Record:
        """Train and evaluate the runs of a unit that are not finished."""
        unit, out = self.units[lease.unit], self._shared.out
        self._sender.speaks, self._sender.holds = True, lease.is_ours
        self._sender.send(unit=lease.unit, number=lease.number)
        configs = self._shared.configs
        left = [configs[name] for name in unit.runs if not is_finished(out / name)]
        ended: Sequence[Outcome] = []
        lease.begin(self._name, {name: how_far(out / name) for name in unit.runs})
        if left and (failure := self._given_up(unit.name)) is not None:
            ended = [Outcome(out / run_id(run), None, failure=failure) for run in left]
        elif left:
            tenure = Tenure(f"{self._shared.folder.name}/{unit.name}", lease.number)
            context = self._context_of[left[0]]
            context = replace(context, tenure=tenure, launched=self._launched)
            planned = [configs[name] for name in unit.planned]
            ended = attempt(CohortPart(left, context, unit.slots, planned), out)
        self._sender.send(done=lease.unit)
        return failed_rows(dict(zip(map(run_id, left), ended, strict=True)))

    def _given_up(self, unit: str) -> Failure | None:
        """Return why a unit is not tried again; ``None``: it is."""
        ends = self.queue.in_vain(unit)
        if (crashes := ends["crashed"]) >= MOST_CRASHES:
            lost = (
                f"the process that trained it ended by itself {crashes} times before anything more "
                "of it was kept, for example for want of memory"
            )
        elif ends.total() >= MOST_IN_VAIN:
            lost = f"{ends.total()} processes were lost over it before anything more of it was kept"
        else:
            return None
        return Failure("error", f"{lost}: train it with --launch local, which shows why")

    def _pending(self) -> set[RunConfig]:
        out, configs = self._shared.out, self._shared.configs
        return {configs[name] for name in self._shared.wanted if not is_finished(out / name)}


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_with(parent: int) -> None:
    """Ask this process to end, as SIGTERM does, when the one that started it is gone.

    It may have been gone before this one could ask for its own parent, so it was told.
    """
    while os.getppid() == parent:
        time.sleep(PAUSE_S)
    os.kill(os.getpid(), signal.SIGTERM)
