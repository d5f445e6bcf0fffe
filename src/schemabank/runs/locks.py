"""The lock on a run's folder: a file beside it, which one process has locked.

The system unlocks it when that process ends, however it ends. Its holder removes the file at the
end. A process that opened it before has then locked a file without a name, beside which a third
process could lock a new one. So a lock counts only if the file still has its name. That also ends
the lock of a process that has lost its lease and may only be stopped: whoever follows it removes
the file.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from schemabank.common.errors import InputError, first_line
from schemabank.common.folders import writing_in

# A plan, or the end of another process, locks a file for a moment, in which no run is going.
PATIENCE_S = 1.0
PAUSE_S = 0.01


class InUseError(InputError):
    """Another process is writing a run; that ends by itself."""


@dataclass(frozen=True)
class Tenure:
    """The right to a run's folder by a lease, which ends where another has a higher number.

    Attributes:
        unit: what was leased, by name.
        number: of the lease; every unit counts its own.
    """

    unit: str
    number: int

    def follows(self, line: str) -> bool:
        """Whether a lock says that it is of an earlier lease of the same unit."""
        unit, _, number = line.rpartition(" ")
        return unit == self.unit and number.isdecimal() and int(number) < self.number

    def __str__(self) -> str:
        """What a lock says of it."""
        return f"{self.unit} {self.number}"


@dataclass(frozen=True)
class Lock:
    """A file that this process has locked."""

    path: Path
    file: TextIO

    def is_own(self) -> bool:
        """Whether it still has its name."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def say(self, text: str) -> None:
        """Write who holds it, in place of who did before."""
        os.ftruncate(self.file.fileno(), 0)  # unlike file.truncate it goes on after a signal
        self.file.write(text)
        self.file.flush()


@contextmanager
def locked(folder: Path, *, mend: str, tenure: Tenure | None = None) -> Iterator[Lock]:
    """Lock a run's folder for this process.

    Args:
        folder: of the run; the folder above it is there.
        mend: what to do where it cannot be locked, for the error.
        tenure: by which this process may take it from one that had it by an earlier lease.

    Raises:
        InUseError: another process has locked it.
        InputError: its lock cannot be written.
    """
    lock = _taken(folder, mend, tenure)
    try:
        yield lock
    finally:
        try:
            if lock.is_own():
                lock.path.unlink(missing_ok=True)
        finally:
            lock.file.close()


def check_unlocked(folder: Path, *, mend: str) -> None:
    """Find out whether a run's folder could be locked; writes nothing.

    Raises:
        InUseError: another process has locked it.
        InputError: its lock cannot be written.
    """
    path = _path(folder)
    with (
        writing_in(folder.parent, mend=mend),
        suppress(FileNotFoundError),
        _opened(path, "r+", mend) as file,
    ):
        if not _has_locked(file, fcntl.LOCK_SH):
            raise _in_use(folder, mend)


def remove_lock(folder: Path) -> None:
    """Remove the lock that a killed process has left, if there is one."""
    path = _path(folder)
    with suppress(OSError), path.open() as file:  # there is none, or it is in use
        if _has_locked(file, fcntl.LOCK_EX) and Lock(path, file).is_own():
            path.unlink()


def _taken(folder: Path, mend: str, tenure: Tenure | None) -> Lock:
    """Open and lock the file, once nobody else has locked it."""
    path, until = _path(folder), time.monotonic() + PATIENCE_S
    while True:
        with writing_in(folder.parent, mend=mend), ExitStack() as exits:
            lock = Lock(path, exits.enter_context(_opened(path, "a+", mend)))
            if _try_to_hold(lock, tenure):
                exits.pop_all()
                return lock
        if time.monotonic() > until:
            raise _in_use(folder, mend)
        time.sleep(PAUSE_S)


def _try_to_hold(lock: Lock, tenure: Tenure | None) -> bool:
    """Lock a file; return whether that counts."""
    if _has_locked(lock.file, fcntl.LOCK_EX):
        if lock.is_own():
            lock.say("" if tenure is None else str(tenure))
            return True
    elif tenure is not None:
        lock.file.seek(0)
        if tenure.follows(lock.file.read()):
            lock.path.unlink(missing_ok=True)
    return False


def _opened(path: Path, mode: Literal["r+", "a+"], mend: str) -> TextIO:
    """Open a lock; one that is there and cannot be opened is another user's, or no file."""
    try:
        return path.open(mode)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise InputError(
            f"the lock {str(path)!r} cannot be opened ({error.strerror or first_line(error)}): if "
            f"no run of another user is still going, remove it, or {mend}"
        ) from error


def _has_locked(file: TextIO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(folder: Path, mend: str) -> InUseError:
    return InUseError(
        f"{str(folder)!r} is in use by another run that is still going: wait for it to end or "
        f"{mend}"
    )


def _path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"
