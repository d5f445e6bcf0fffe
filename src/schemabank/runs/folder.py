"""A run's folder on disk: claimed by one process, written under a temporary name, then renamed.

A folder that carries a run's name is complete. Nothing is ever overwritten: a finished run is
reused, and what an interrupted one left behind is moved aside under a name of its own. The folder
of a run that can go on, or has trained, stays under its temporary name, for the next claim to go on
with, also where its evaluation failed.

A process that shares the work with others holds a *lease*, which it may lose, say while it is
stopped. So it writes into a folder that carries the number of its lease. Whoever takes the run over
gives that folder another name, and nothing that the first process still writes finds it.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, rmtree

from schemabank.common.errors import InputError
from schemabank.common.folders import (
    check_free,
    check_same,
    check_writable,
    make_folder,
    missing_parents,
    remove_empty,
    remove_tree,
    writing_in,
)
from schemabank.common.writing import settle
from schemabank.runs.locks import Lock, Tenure, check_unlocked, locked, remove_lock

RESULT = "result.json"
CONFIG = "config.yaml"
ADAPTER = "adapter"
BANK = "bank"
STAGES = "stages"
PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.jsonl"
COST = "cost.json"
FAILURE = "failure.json"
ROUTING = "routing"
PARTIAL = ".{}.partial"  # name of a run's folder until it is complete
LEASES = ".{}.leases"  # where those lie that are written under a lease, by its number
TRAINED = "trained"  # what a run has come to, until it is evaluated
CHECKPOINTS = "checkpoints"  # where it stands, until its training is over
ANSWERS = "answers"  # what it has answered so far, until it is evaluated
UNTIL_FINISHED = (TRAINED, CHECKPOINTS, ANSWERS)
SUITE = "suite.json"
MEND = "choose another --out"


def slug(text: str) -> str:
    """Return a text as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a complete run.

    Raises:
        InputError: something else stands under that name.
    """
    if not os.path.lexists(folder):
        return False
    if not (folder / RESULT).is_file():
        raise InputError(
            f"{str(folder)!r} exists but holds no {RESULT}, so it is not a finished run: allowed "
            "is a free name or a finished run, move it away or choose another --out"
        )
    return True


def check_available(folder: Path) -> None:
    """Check, before anything is computed, that a folder can be claimed; writes nothing.

    Raises:
        InputError: another process is writing this run, or the place cannot be written.
    """
    check_writable(folder)
    check_unlocked(folder, mend=MEND)
    _check_no_files(folder, MEND)


@dataclass
class RunClaim:
    """A run's folder while it is being written.

    Attributes:
        final: the name that it gets when it is complete.
        path: where its files are now.
    """

    final: Path
    path: Path
    _place: os.stat_result

    def check_there(self) -> None:
        """Check that the folder is still the one that was claimed.

        Raises:
            FileNotFoundError: it was removed or replaced, so that its files are lost.
        """
        check_same(self.path, self._place)

    def complete(self) -> None:
        """Give the folder its final name.

        Raises:
            InputError: something has taken the name meanwhile.
        """
        check_free(self.final)
        settle(self.path, self.final)
        self.path = self.final
        forget_training(self.final)  # not before, so that it is there until the run is finished

    def begin_anew(self) -> Path:
        """Keep the files of an earlier claim under a name of their own, and return it."""
        aside = _set_aside(self.path, self.final)
        self.path.mkdir()
        self._place = self.path.stat()
        return aside

    def abandon(self) -> Path:
        """Keep the files of a run that failed under a name of its own, and return it.

        Its checkpoints and answers go: what diverged would do so again.
        """
        for name in (CHECKPOINTS, ANSWERS):
            remove_tree(self.path / name)
        self.path = _set_aside(self.path, self.final)
        return self.path


@contextmanager
def claimed(folder: Path, *, mend: str = MEND, tenure: Tenure | None = None) -> Iterator[RunClaim]:
    """Reserve a run's folder for this process and give a temporary one to write into.

    A run that is not completed in the end is kept as ``NAME.unfinished-1`` and so on, but for one
    that can go on: its folder stays, and is given as it is to the next claim.

    Args:
        folder: of the run.
        mend: what to do where it cannot be had, for the error.
        tenure: by which this process may write, where several share the work. Who held the unit
            before has lost it.

    Raises:
        InputError: another process is writing this run, the name is taken, or the place cannot be
            written.
    """
    missing = missing_parents(folder)
    with ExitStack() as exits:
        exits.callback(remove_empty, missing)
        with writing_in(folder.parent, mend=mend):
            make_folder(folder.parent)
        lock = exits.enter_context(locked(folder, mend=mend, tenure=tenure))
        exits.enter_context(_leaving(folder, tenure, lock))
        check_free(folder, mend=mend)
        partial = _taken_over(folder, tenure, mend)
        if not can_go_on(partial):
            _set_aside(partial, folder)
            with writing_in(folder.parent, mend=mend):
                partial.mkdir()
        yield RunClaim(folder, partial, partial.stat())


def partial_folder(folder: Path) -> Path:
    """Return where the files of a run are that is to become this folder."""
    own = _unleased(folder)
    if own.exists():
        return own
    return max(_leased(folder), key=lambda path: int(path.name), default=own)


def has_trained(folder: Path) -> bool:
    """Whether a run's folder says that its training is over; what it says is checked elsewhere."""
    return _holds(folder, TRAINED)


def can_go_on(folder: Path) -> bool:
    """Whether a run's folder says that it can go on, in the middle of its training or after it."""
    has_begun = _holds(folder, CHECKPOINTS) and any((folder / CHECKPOINTS).glob("[!.]*"))
    return _holds(folder, TRAINED) or has_begun or has_answered(folder)


def has_answered(folder: Path) -> bool:
    """Whether a run's folder says that some of its evaluation is done."""
    return _holds(folder, ANSWERS) and any((folder / ANSWERS).iterdir())


def how_far(folder: Path) -> str:
    """Say in a word what is kept of a run; it is another one when more is kept, or less.

    Args:
        folder: of the run, as it is called once it is finished.
    """
    if is_finished(folder):
        return "finished"
    partial = partial_folder(folder)
    if has_answered(partial):
        with suppress(FileNotFoundError):  # another process is faster
            return f"{ANSWERS} {sum(p.stat().st_size for p in (partial / ANSWERS).iterdir())}"
    if has_trained(partial):
        return TRAINED
    begun = (partial / CHECKPOINTS).glob("[!.]*") if _holds(partial, CHECKPOINTS) else ()
    return max((path.name for path in begun), key=lambda name: (len(name), name), default="nothing")


def forget_training(folder: Path, note: Callable[[str], None] = lambda _: None) -> None:
    """Remove from a finished run what only going on needed, and the lock of a killed process.

    Args:
        folder: of the run.
        note: told what could not be removed.
    """
    for name in UNTIL_FINISHED:
        remove_tree(folder / name)
    tell_left(folder, note)
    remove_lock(folder)


def tell_left(folder: Path, note: Callable[[str], None]) -> None:
    """Say what a finished run still has that only going on needed; the next call removes it."""
    for name in UNTIL_FINISHED:
        if _holds(folder, name):
            note(
                f"{str(folder / name)!r} is of no use any more and could not be removed: remove "
                "it, or call again, which tries to"
            )


def _holds(folder: Path, name: str) -> bool:
    """Whether a folder has another one of this name in it, and neither is a link."""
    place = folder / name
    leads_elsewhere = folder.is_symlink() or place.is_symlink()
    return place.is_dir() and not leads_elsewhere


def free_name(folder: Path, word: str) -> Path:
    """Return the first of ``NAME.WORD-1``, ``NAME.WORD-2`` … that is free."""
    names = (folder.with_name(f"{folder.name}.{word}-{n}") for n in range(1, 10**6))
    return next(name for name in names if not name.exists())


def _taken_over(folder: Path, tenure: Tenure | None, mend: str) -> Path:
    """Give the files of a run the name under which this claim writes, and return it."""
    _check_no_files(folder, mend)
    before = partial_folder(folder)
    now = _unleased(folder) if tenure is None else _leases(folder) / str(tenure.number)
    with writing_in(folder.parent, mend=mend):
        make_folder(now.parent)
    if before == now or not before.exists():
        return now
    before.rename(now)
    if (log := now / METRICS).is_file():
        # Who wrote it before may have it open still. What they add must not be in ours.
        copy = now / f".{METRICS}.copy"
        copyfile(log, copy)
        copy.replace(log)
    return now


def _check_no_files(folder: Path, mend: str) -> None:
    """Find out whether all that lies where the run is written are folders."""
    for place in (_unleased(folder), _leases(folder), *_leased(folder)):
        if _is_no_folder(place):
            raise InputError(
                f"{str(place)!r} is no folder, but that is where the run is written: remove it, "
                f"or {mend}"
            )


def _is_no_folder(place: Path) -> bool:
    """Whether something else is there; asked once, since another process may be removing it."""
    try:
        return not stat.S_ISDIR(place.stat().st_mode)
    except FileNotFoundError:
        return place.is_symlink()


@contextmanager
def _leaving(folder: Path, tenure: Tenure | None, lock: Lock) -> Iterator[None]:
    """Leave a run's folder at the end, unless another process has it by then."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # else nobody would hear what went wrong before
            _leave_own(folder, tenure, lock)
        raise
    _leave_own(folder, tenure, lock)


def _leave_own(folder: Path, tenure: Tenure | None, lock: Lock) -> None:
    if lock.is_own():
        _leave(folder, tenure)


def _leave(folder: Path, tenure: Tenure | None) -> None:
    """Put aside what cannot go on; leave the rest under the name that has no lease in it.

    Nobody can take the run from a process without a lease. One with a lease may lose it even here,
    and leaves alone what carries a higher number than its own.
    """
    own = _unleased(folder)
    partial = own if tenure is None else _leases(folder) / str(tenure.number)
    if not can_go_on(partial):
        _set_aside(partial, folder)
    elif partial != own and not own.exists():
        partial.rename(own)
    for path in _leased(folder):
        if tenure is None or int(path.name) <= tenure.number:
            remove_tree(path)
    with suppress(OSError):  # there is none, or another process has its files in it
        _leases(folder).rmdir()


def _unleased(folder: Path) -> Path:
    return folder.parent / PARTIAL.format(folder.name)


def _leases(folder: Path) -> Path:
    return folder.parent / LEASES.format(folder.name)


def _leased(folder: Path) -> list[Path]:
    """What lies there under the numbers of leases."""
    return [path for path in _leases(folder).glob("*") if path.name.isdecimal()]


def _set_aside(partial: Path, folder: Path) -> Path:
    """Keep the files of an unfinished run, if there are more than its settings, under a free name.

    A run that waited for a slot until the end has no others.
    """
    if not partial.exists():
        return partial
    if {path.name for path in partial.iterdir()} <= {CONFIG}:
        rmtree(partial)
        return partial
    return partial.rename(free_name(folder, "unfinished"))
