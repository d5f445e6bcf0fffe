"""Makes checkpoints of the runs of a cohort while it trains, in a thread beside it.

The cohort stands still only while what its runs have come to is copied to the CPU. Writing may take
longer than the time to the next checkpoint, which then waits. A checkpoint that cannot be written
costs nothing but itself.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol, Self, TypeVar

from schemabank.common.errors import InputError, first_line
from schemabank.common.growing import GrowingDigest
from schemabank.common.waiting import Note
from schemabank.common.writing import how_to_mend
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.keeping import Standing
from schemabank.runs.checkpoints import At, keep_only, write_checkpoint
from schemabank.runs.folder import METRICS, STAGES, has_trained
from schemabank.runs.kept import MadeWith
from schemabank.runs.leaving import Leaving
from schemabank.runs.members import Member
from schemabank.runs.progress import SAVING
from schemabank.runs.trained import Records

LARGEST_SHARE = 0.02  # of the time, for checkpoints that are made by the clock
UNWRITTEN = (OSError, InputError, RuntimeError, MemoryError)  # PyTorch's for no memory is the 3rd


class Logs(Protocol):
    """The logs of a cohort's runs."""

    @property
    def num_tokens(self) -> Mapping[str, int]:
        """How many tokens each run has seen."""

    @property
    def lost(self) -> Collection[str]:
        """Names of the runs whose log could not be written."""

    def flush(self) -> None:
        """Let the files have all lines so far."""


L = TypeVar("L", bound=Logs)


@dataclass(frozen=True)
class _Due:
    """A run's checkpoint that is to be written."""

    name: str
    folder: Path
    standing: Standing
    at: At
    made: MadeWith


class Checkpoints:
    """Makes checkpoints of a cohort's runs, as their settings say how often.

    Args:
        members: the runs with their folders.
        made: what they all are trained with.
        began: when their training began, as ``time.monotonic`` tells it.
        note: told when a checkpoint cannot be written, or takes so long that they are made less
            often.
        records: tells what else is known of a run, by its name; by default nothing.
    """

    _logs: Logs

    def __init__(
        self,
        members: Sequence[Member],
        made: MadeWith,
        began: float,
        note: Note,
        *,
        records: Records | None = None,
    ) -> None:
        self._members, self._made, self._began, self._note = members, made, began, note
        self._records = records or (lambda _: {})
        self._asked_s, self._every_steps = how_often([member.run for member in members])
        self._every_s = self._asked_s
        self._saved = {m.name: m.begun.standing.state.step for m in members if m.begun is not None}
        self._writing: Future[float] | None = None
        self._last_s, self._num_steps, self._paused_s = time.monotonic(), 0, 0.0
        self._said, self._read = set[str](), dict[str, GrowingDigest]()
        self._leaving, self._exits = Leaving(), ExitStack()

    def __enter__(self) -> Self:
        """Begin; from now on a signal that asks to leave lets the runs be saved before."""
        if self._every_s is not None or self._every_steps is not None:
            self._exits.enter_context(self._leaving)
        return self

    def __exit__(self, *_error: object) -> None:
        """Wait until the last checkpoint is written; those of runs that have trained go."""
        with self._exits:
            self._settle()
            self._forget_trained()

    def seeing(self, open_log: Callable[[Cohort], L]) -> Callable[[Cohort], L]:
        """Return a function that opens the logs of a cohort, and sees them here, too."""

        def opened(cohort: Cohort) -> L:
            self._logs = logs = open_log(cohort)
            return logs

        return opened

    def follow(self, cohort: Cohort) -> None:
        """Make checkpoints of a cohort from now on."""
        cohort.is_due, cohort.save = self.is_due, partial(self._save, cohort)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint; asked before every step."""
        self._num_steps += 1
        if self._leaving.asked is not None:
            return True
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._settle()
        by_steps = self._every_steps is not None and self._num_steps > self._every_steps
        by_clock = self._every_s is not None and time.monotonic() - self._last_s >= self._every_s
        return by_steps or by_clock

    def _save(self, cohort: Cohort) -> None:
        """Copy where the runs stand, and let that be written; leave then if a signal asks so."""
        if self._leaving.asked is not None:
            self._leaving.answer()
            self._note(SAVING)
            self._settle()
        began = time.monotonic()
        self._num_steps = 1  # the step that comes now
        self._logs.flush()
        self._forget_trained()
        try:
            if due := self._due(cohort):
                is_beside = cohort.device.type != "cpu"
                self._writing = _WRITER.submit(partial(self._write, due, is_beside=is_beside))
        except UNWRITTEN as error:  # also of a thread that cannot be started, or takes no more
            self._say_unwritten(error)
        self._last_s = time.monotonic()
        self._paused_s = self._last_s - began
        if self._leaving.asked is not None:
            self._settle()
            self._leaving.leave()

    def _due(self, cohort: Cohort) -> list[_Due]:
        """The runs that have taken steps since their last checkpoint, and where they stand.

        A run that could not write what belongs to it, such as a stage or its log, goes on from
        before that.
        """
        standings, found = cohort.standings(), []
        for member in self._members:
            standing = standings.get(member.name)
            if standing is None or self._saved.get(member.name) == standing.state.step:
                continue
            if member.failure is None and member.name not in self._logs.lost:
                try:
                    found.append(self._due_of(member, standing, cohort))
                except OSError as error:  # such as a folder that is gone
                    self._say_unwritten(error)
        return found

    def _due_of(self, member: Member, standing: Standing, cohort: Cohort) -> _Due:
        folder = member.claim.path
        at = At(
            tick=cohort.tick,
            num_slots=cohort.stack.num_slots,
            num_tokens=self._logs.num_tokens[member.name],
            training_s=time.monotonic() - self._began,
            log_bytes=(folder / METRICS).stat().st_size,
            records=self._records(member.name),
            stages=tuple(sorted(path.name for path in (folder / STAGES).glob("[!.]*"))),
        )
        return _Due(member.name, folder, standing, at, {**self._made, **member.taught})

    def _write(self, due: Sequence[_Due], *, is_beside: bool) -> float:
        """Write checkpoints; return for how long that took processors from the training.

        Raises:
            OSError, InputError, RuntimeError, MemoryError: why the first was not written that could
                not be; all others are.
        """
        began, errors = time.monotonic(), list[Exception]()
        for each in due:
            if self._leaving.at_once:
                break
            try:
                log = self._read.setdefault(each.name, GrowingDigest(each.folder / METRICS))
                write_checkpoint(each.folder, each.standing, each.at, each.made, log=log)
            except UNWRITTEN as error:
                errors.append(error)
            else:
                self._saved[each.name] = each.standing.state.step
        if errors:
            raise errors[0]
        return 0.0 if is_beside else time.monotonic() - began

    def _settle(self) -> None:
        """See how writing went, and make checkpoints less often if they cost too much."""
        if (writing := self._writing) is None:
            return
        try:
            cost_s = self._paused_s + writing.result()
        except UNWRITTEN as error:
            self._say_unwritten(error)
        else:
            self._make_room(cost_s)
        finally:
            if writing.done():  # where a signal ended the wait, it goes on when the cohort ends
                self._writing = None

    def _make_room(self, cost_s: float) -> None:
        """Let the next checkpoint wait as long as the last one's cost asks for, and no longer."""
        if self._asked_s is None:
            return
        least_s = cost_s / LARGEST_SHARE
        self._every_s = max(self._asked_s, least_s)
        if least_s > self._asked_s:
            self._say(
                "slow",
                f"a checkpoint takes {cost_s:.1f} s, so the next ones are made every "
                f"{least_s / 60:.2g} minutes: more would take more than {LARGEST_SHARE:.0%} of "
                "the time (engine.checkpoint_minutes; engine.checkpoint_steps knows no such limit)",
            )

    def _say_unwritten(self, error: Exception) -> None:
        self._say(
            "unwritten",
            f"a checkpoint could not be written ({first_line(error)}): the runs go on, and if they "
            f"are interrupted, they begin again from the last one that was{how_to_mend(error)}",
        )

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._note(text)

    def _forget_trained(self) -> None:
        """Remove the checkpoints of runs whose training is over; nothing is written now."""
        for member in self._members:
            if has_trained(member.claim.path):
                keep_only(member.claim.path, [])
                self._read.pop(member.name, None)


class _OneThread:
    """The thread that writes the checkpoints of all cohorts of this process, made when it is used.

    With a thread for every cohort, a suite of many cohorts would grow: glibc has each thread
    allocate in an arena of its own, and an arena keeps what it has had (see
    :func:`schemabank.engine.execute.keep_freed_memory`). A new thread takes any that is free.

    Cohorts that train in several threads of a process share it. So a cohort that waits for its own
    checkpoints, as when it ends, waits for those, too, that others began to write before.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Be as at the start: a process that was forked has no threads of its parent's.

        Nor has it one that would let go of a lock that was held meanwhile.
        """
        self._making = Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, write: Callable[[], float]) -> Future[float]:
        """Let the thread call a function, after all that it was given before.

        Raises:
            RuntimeError: no thread can be started, or the interpreter ends.
        """
        with self._making:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
            try:
                return self._pool.submit(write)
            except Exception:
                # The function is in its queue all the same. A thread that starts later would call
                # it, when its run may have ended.
                self._pool = None
                raise


_WRITER = _OneThread()
os.register_at_fork(after_in_child=_WRITER.begin_anew)


def how_often(runs: Sequence[RunConfig]) -> tuple[float | None, int | None]:
    """After how many seconds or steps of the cohort: what any of its runs asks for."""
    minutes = [n for run in runs if (n := run.engine.checkpoint_minutes) is not None]
    steps = [n for run in runs if (n := run.engine.checkpoint_steps) is not None]
    return 60 * min(minutes) if minutes else None, min(steps, default=None)
