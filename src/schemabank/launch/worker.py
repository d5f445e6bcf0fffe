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
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.common.quiet import quiet_libraries
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.cutting import cut
from schemabank.launch.messages import Sender
from schemabank.launch.queue import MOST_CRASHES, Lease, Queue, Record, publish, share
from schemabank.launch.rounds import PLAN, UNITS, Round, Unit, failed_rows, read_round
from schemabank.runs.experiment import Loaded, Part, attempt, contexts, parts
from schemabank.runs.folder import Tenure, is_finished
from schemabank.runs.loading import resolve_device
from schemabank.runs.members import Outcome
from schemabank.runs.training import Context

LOST, REFUSED = 75, 2  # exit codes: the lease went to another; settings that cannot be had
PAUSE_S = 0.5  # between two looks for a unit that is free
SPEAKS = "--speaks"
MODULE = "schemabank.launch.worker"


def command(folder: Path, *, speaks: bool) -> list[str]:
    """Return the command that starts a worker on a round.

    Args:
        folder: of the round.
        speaks: whether it tells how it prepares, which all workers do alike.
    """
    return [sys.executable, "-m", MODULE, str(folder), *([SPEAKS] if speaks else [])]


def main() -> None:
    """Work on the round in the folder that is named, and tell of it on stdout."""
    signal.signal(signal.SIGTERM, _terminated)
    # Libraries print what they like. That must not get among the messages.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sender = Sender(pipe, speaks=SPEAKS in sys.argv)
    try:
        with quiet_libraries():
            work_on(read_round(Path(sys.argv[1])), sender)
    except InputError as error:
        sender.send(refused=str(error))
        sys.exit(REFUSED)


def work_on(shared: Round, sender: Sender) -> None:
    """Do units of a round until all are done.

    Raises:
        InputError: something in the settings cannot be had.
    """
    worker = Worker(shared, sender)
    take = partial(share, worker.queue, pause_s=PAUSE_S, on_lost=partial(os._exit, LOST))
    worker.prepare()
    take([PLAN], worker.plan)
    worker.units = {unit.name: unit for unit in shared.units() or ()}
    take(list(worker.units), worker.do)


@dataclass
class Worker:
    """What a worker has at hand.

    Attributes:
        shared: the round.
        sender: where it tells what it does.
        queue: the units, as it sees them.
        units: the units by name, once they are decided.
    """

    shared: Round
    sender: Sender
    queue: Queue = field(init=False)
    units: dict[str, Unit] = field(default_factory=dict)
    _contexts: list[tuple[list[RunConfig], Context]] = field(default_factory=list)
    _context_of: dict[RunConfig, Context] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = self.shared.queue

    def prepare(self) -> None:
        """Load and check what the runs that are not finished need."""
        planned = list(self.shared.configs.values())
        self._contexts = contexts(
            self._pending(planned),
            planned,
            self.shared.out,
            self.sender,
            device=self._device,
            loaded=Loaded(),
        )
        self._context_of = {run: own for group, own in self._contexts for run in group}

    def plan(self, lease: Lease) -> Record:
        """Decide what the units are, unless that was decided already."""
        shared = self.shared
        pending = self._pending(list(shared.configs.values()))
        found = parts(self._contexts, pending, shared.out, self._device)
        rows = [asdict(unit) for unit in cut(found, shared.num_workers)]
        publish(shared.folder / UNITS, {"units": rows})
        self.sender.send(done=lease.unit)
        return failed_rows({})

    def do(self, lease: Lease) -> Record:
        """Train and evaluate the runs of a unit that are not finished."""
        unit, out = self.units[lease.unit], self.shared.out
        self.sender.speaks = True
        self.sender.send(unit=lease.unit, number=lease.number)
        configs = self.shared.configs
        left = [configs[name] for name in unit.runs if not is_finished(out / name)]
        ended: Sequence[Outcome] = []
        if left and self.queue.crashes(unit.name) >= MOST_CRASHES:
            ended = [Outcome(out / run_id(run), None, failure=_crashed()) for run in left]
        elif left:
            tenure = Tenure(f"{self.shared.folder.name}/{unit.name}", lease.number)
            context = replace(self._context_of[left[0]], tenure=tenure)
            planned = [configs[name] for name in unit.planned]
            ended = attempt(Part(left, context, unit.slots, planned), out)
        self.sender.send(done=lease.unit)
        return failed_rows(dict(zip(map(run_id, left), ended, strict=True)))

    @property
    def _device(self) -> torch.device:
        return resolve_device(next(iter(self.shared.configs.values())).engine.device)

    def _pending(self, runs: Sequence[RunConfig]) -> set[RunConfig]:
        return {run for run in runs if not is_finished(self.shared.out / run_id(run))}


def _crashed() -> Failure:
    return Failure(
        "error",
        f"the process that trained it ended by itself {MOST_CRASHES} times, for example for want "
        "of memory: train it with --launch local, which shows why",
    )


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_with(parent: int) -> None:
    """Ask this process to end, as SIGTERM does, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(PAUSE_S)
    with suppress(ProcessLookupError):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
