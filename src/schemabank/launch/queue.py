"""A folder of work that several processes share: units, leases on them, and what became of each.

Nobody hands out the work. A process claims a unit by making a file that only one can make, and
shows that it lives by writing to another one. If it falls silent for longer than the lease, whoever
notices makes the file of the next number, and the unit is theirs. Only what the highest number says
of a unit counts. So a process that was stopped, and goes on after it was given up, changes nothing.

Nobody compares clocks: silence is measured by the clock of the process that listens. The folder may
lie on any file system that makes a file for one process alone (``O_EXCL``) and on which others see
what was written, such as NFS.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from schemabank.common.errors import InputError
from schemabank.common.files import read_json, read_text
from schemabank.common.writing import sync_to_disk, temporary, whole_file, write_json

BEATS = 4  # in the time of a lease
# How a lease has ended, if its holder or who started it could say so. With "crashed" the process
# ended by itself, with "lost" it was stopped or cut off. Without any of them, it fell silent.
End = Literal["left", "crashed", "lost"]
MOST_CRASHES = 5  # of a unit, before it counts as failed
# Holders of a unit in a row that were lost before anything more of it was kept. A machine that is
# taken away costs a unit nothing that it has kept, so this says more of the unit than of machines.
MOST_IN_VAIN = 20

Record = Mapping[str, Any]
"""What has become of a unit, as JSON has it."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a unit, as long as nobody has a higher number.

    Attributes:
        folder: of the unit.
        number: of the lease, from 1.
    """

    folder: Path
    number: int

    @property
    def unit(self) -> str:
        """The unit's name."""
        return self.folder.name

    def is_ours(self) -> bool:
        """Whether nobody has taken the unit over."""
        return not self._file("claim", self.number + 1).exists()

    def begin(self, by: str, kept: Mapping[str, str]) -> None:
        """Say who holds the unit, and what is kept of its runs when they begin."""
        with whole_file(self._file("begun")) as partial:
            write_json(partial, {"by": by, "kept": dict(kept)})

    def beat(self, count: int) -> None:
        """Show that the holder lives; the count differs from the last one."""
        self._file("beat").write_text(str(count), encoding="utf-8")

    def done(self, record: Record) -> None:
        """Say what has become of the unit; if another has taken it over, nobody listens."""
        with whole_file(self._file("done")) as partial:
            write_json(partial, record)

    def end(self, how: End) -> None:
        """Give the unit free at once, in place of falling silent."""
        self._file(how).touch()

    def how_ended(self) -> End | None:
        """How the holder ended, as far as somebody has said so."""
        return next((how for how in get_args(End) if self._file(how).exists()), None)

    def _file(self, what: str, number: int | None = None) -> Path:
        return self.folder / f"{what}-{self.number if number is None else number}"


@dataclass
class Queue:
    """The units of a folder, as one process sees them.

    Attributes:
        folder: holds a folder for each unit.
        lease_s: how long a holder may be silent.
    """

    folder: Path
    lease_s: float
    _heard: dict[Path, tuple[str, float]] = field(default_factory=dict)
    _records: dict[str, Record] = field(default_factory=dict)

    def claim(self, unit: str) -> Lease | None:
        """Take a unit that nobody holds; ``None``: it is held, or done.

        Raises:
            OSError: the folder cannot be written, or is gone, since all is done.
        """
        folder = self.folder / unit
        folder.mkdir(exist_ok=True)
        last = _last(folder)
        if last and (self.record(unit) is not None or self.is_held(unit)):
            return None
        lease = Lease(folder, last + 1)
        try:
            (folder / f"claim-{lease.number}").touch(exist_ok=False)
        except FileExistsError:
            return None
        return lease

    def begun(self) -> set[str]:
        """Return the units that were ever claimed: of thousands, a look need not ask for each."""
        return {path.name for path in self.folder.glob("*")}

    def record(self, unit: str) -> Record | None:
        """Return what has become of a unit; ``None``: it is not done."""
        if unit not in self._records:
            folder = self.folder / unit
            path = folder / f"done-{_last(folder)}"
            if not path.exists():
                return None
            self._records[unit] = read_json(path)
        return self._records[unit]

    def in_vain(self, unit: str) -> Counter[End | None]:
        """Return how the holders of a unit have ended since anything more of it was kept.

        The present holder has said what is kept. One that was asked to end, and did, ends the row.
        ``None`` counts those that fell silent.
        """
        folder, found = self.folder / unit, Counter[End | None]()
        last = _last(folder)
        now = _kept(folder, last)
        for number in range(last - 1, 0, -1):
            how = Lease(folder, number).how_ended()
            if now is None or _kept(folder, number) != now or how == "left":
                break
            found[how] += 1
        return found

    def held_by(self, name: str) -> list[Lease]:
        """Return the leases of a holder that have not ended, by the name under which it began."""
        found = []
        for unit in self.begun():
            lease = Lease(self.folder / unit, _last(self.folder / unit))
            begun = _begun(lease.folder, lease.number) or {}
            if begun.get("by") == name and lease.how_ended() is None and self.record(unit) is None:
                found.append(lease)
        return found

    def begun_by(self, name: str) -> set[str]:
        """Return the units that a holder of this name has ever begun."""
        paths = self.folder.glob("*/begun-*")
        return {path.parent.name for path in paths if (_read(path) or {}).get("by") == name}

    def silent_s(self, lease: Lease) -> float:
        """Return for how long a holder has not been heard, by our own clock."""
        beat, now = lease.folder / f"beat-{lease.number}", time.monotonic()
        says = ""
        with suppress(InputError):  # it has not been written yet
            says = read_text(beat)
        known, since = self._heard.get(beat, (None, now))
        if says != known:
            self._heard[beat] = says, now
            return 0.0
        return now - since

    def is_held(self, unit: str) -> bool:
        """Whether a unit is in somebody's hands, as far as was heard yet."""
        lease = Lease(self.folder / unit, _last(self.folder / unit))
        if not lease.number:
            return False
        return lease.how_ended() is None and self.silent_s(lease) < self.lease_s


@contextmanager
def beating(lease: Lease, lease_s: float, on_lost: Callable[[], None]) -> Iterator[None]:
    """Show that this process lives, until the work within is over.

    Args:
        lease: what it holds.
        lease_s: how long it may be silent.
        on_lost: called from another thread when somebody has taken the unit over.
    """
    ended = threading.Event()

    def show() -> None:
        count = 0
        while not ended.wait(lease_s / BEATS if count else 0):
            count += 1
            with suppress(OSError):  # such as a full disk or a stale handle; the next one may do
                if not lease.is_ours():
                    on_lost()
                    return
                lease.beat(count)

    thread = threading.Thread(target=show, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def publish(path: Path, value: Record) -> None:
    """Write a JSON file that nobody else has written; if somebody has, theirs stays.

    Raises:
        OSError: it cannot be written, or the file system has no hard links.
    """
    partial = temporary(path)
    try:
        write_json(partial, value)
        sync_to_disk(partial)
        with suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink(missing_ok=True)


def share(
    queue: Queue,
    units: Sequence[str],
    work: Callable[[Lease], Record],
    *,
    pause_s: float,
    on_lost: Callable[[], None],
) -> None:
    """Work on units until all of them are done, here or elsewhere.

    Args:
        queue: where they are claimed.
        units: in the order in which they are to be begun.
        work: does one, and returns what has become of it. What it raises gives the unit free.
        pause_s: how long to wait where others hold all that are not done.
        on_lost: called when a unit was taken over while this process worked on it; another thread
            may call it, too.
    """
    left = dict.fromkeys(units)
    while left:
        lease = _next(queue, left)
        if lease is not None:
            _work(lease, queue.lease_s, work, on_lost)
        elif left:
            time.sleep(pause_s)


def _next(queue: Queue, left: dict[str, None]) -> Lease | None:
    """Claim the first unit that is free; those found to be done are left out from then on."""
    for unit in tuple(left):
        if queue.record(unit) is not None:
            del left[unit]
        elif (lease := queue.claim(unit)) is not None:
            return lease
    return None


def _work(
    lease: Lease, lease_s: float, work: Callable[[Lease], Record], on_lost: Callable[[], None]
) -> None:
    try:
        with beating(lease, lease_s, on_lost):
            record = work(lease)
        if lease.is_ours():
            lease.done(record)
        else:  # it was taken over before the other thread looked
            on_lost()
    except BaseException as error:
        # It was asked to end, or told why it cannot go on. Neither says that the unit is bad.
        is_crash = isinstance(error, Exception) and not isinstance(error, InputError)
        lease.end("crashed" if is_crash else "left")
        raise


def _begun(folder: Path, number: int) -> Record | None:
    """What the holder of a lease has said at its beginning; ``None``: it did not come to that."""
    return _read(folder / f"begun-{number}")


def _read(path: Path) -> Record | None:
    """Read what may not be there, or not yet."""
    with suppress(InputError):
        return read_json(path)
    return None


def _kept(folder: Path, number: int) -> object:
    return (_begun(folder, number) or {}).get("kept")


def _last(folder: Path) -> int:
    """The number of the last lease of a unit; 0: there was none."""
    names = [path.name for path in folder.glob("claim-*")]
    return max((int(name.removeprefix("claim-")) for name in names), default=0)
