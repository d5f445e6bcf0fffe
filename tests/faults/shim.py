"""The library between a program and the disk: building it, telling it what to do, its log.

``shim.c`` says what it sees. What it is told lies in a file that both sides map, so that it can be
read also when the program was killed.
"""

import ctypes
import mmap
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from shutil import which
from typing import cast

SOURCE = Path(__file__).with_name("shim.c")
VARIABLE = "SCHEMABANK_FAULTS"  # names the file of a program that begins to watch at its start
PATH_BYTES = 1024


class Fault(IntEnum):
    """What becomes of a file operation; the numbers are those of ``shim.c``."""

    NONE = 0
    KILL = 1
    EIO = 2
    ENOSPC = 3
    SHORT = 4
    EINTR = 5


class _State(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "at", "fault", "repeats", "fired")),
        ("no_sync", ctypes.c_int64),
        ("prefix", ctypes.c_char * PATH_BYTES),
        ("log", ctypes.c_char * PATH_BYTES),
        ("place", ctypes.c_char * 256),
        ("last", ctypes.c_char * PATH_BYTES),
    ]


class _Entry(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("number", "offset", "length")),
        *((name, ctypes.c_int32) for name in ("place", "path", "other")),
        ("what", ctypes.c_char * 12),
    ]


@dataclass(frozen=True)
class Event:
    """A line of the log.

    Attributes:
        number: of the event, from 1.
        what: such as ``write`` or ``rename``; ``point`` is no file operation.
        path: of the file, below the prefix; of a point, its name.
        other: where a file was moved to.
        place: where the program was, in its own words.
        offset: in the file; the new length where it was cut.
        content: the bytes that were written.
    """

    number: int
    what: str
    path: str
    other: str
    place: str
    offset: int
    content: bytes


class Watch:
    """What the library is told of one process, and what it says.

    Args:
        file: that both sides map; it is made here.
        prefix: the folder below which file operations count.
        fault: that meets an event.
        at: the number of that event; 0: none.
        repeats: how many events fail from that one on.
        log: where a log is written; ``None``: nowhere.
        no_sync: whether syncing only counts, for whom the kernel survives.
    """

    def __init__(
        self,
        file: Path,
        prefix: Path,
        *,
        fault: Fault = Fault.NONE,
        at: int = 0,
        repeats: int = 1,
        log: Path | None = None,
        no_sync: bool = True,
    ) -> None:
        file.write_bytes(bytes(ctypes.sizeof(_State)))
        self._open(file)
        self._state.fault, self._state.at, self._state.repeats = int(fault), at, repeats
        self._state.prefix, self._state.no_sync = os.fsencode(prefix.resolve()), no_sync
        self._state.log = b"" if log is None else os.fsencode(log)

    def __reduce__(self) -> tuple[Callable[[Path], "Watch"], tuple[Path]]:
        """Another process that is given it opens the same file."""
        return _opened, (self.file,)

    def _open(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), ctypes.sizeof(_State))
        self.file, self._state = file, _State.from_buffer(self._map)

    @property
    def count(self) -> int:
        """How many events there were."""
        return cast(int, self._state.count)

    @property
    def fired(self) -> int:
        """How many of them failed."""
        return cast(int, self._state.fired)

    @property
    def place(self) -> str:
        """Where the program is or was, in its own words."""
        return cast(bytes, self._state.place).decode(errors="replace")

    @property
    def last(self) -> str:
        """The event that failed first."""
        return cast(bytes, self._state.last).decode(errors="replace")

    def say(self, place: str) -> None:
        """Say where the program is; asked by the program itself."""
        self._state.place = place.encode()[:255]

    def attach(self) -> None:
        """Let this process be watched from here on."""
        if ctypes.CDLL(None).faults_attach(os.fsencode(self.file)):
            raise OSError(f"the library cannot map {self.file}")

    def point(self, name: str) -> None:
        """Count an event that is no file operation."""
        ctypes.CDLL(None).faults_point(name.encode())


def can_build() -> bool:
    """Whether a C compiler is at hand."""
    return which(_compiler()) is not None


def built(folder: Path) -> Path:
    """Compile the library into a folder, once."""
    digest = sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = folder / f"shim-{digest}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-shared", "-fPIC", "-o", str(partial), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run([_compiler(), *flags], check=True)
        partial.replace(library)
    return library


def is_loaded() -> bool:
    """Whether this process has the library."""
    return hasattr(ctypes.CDLL(None), "faults_attach")


def read_log(path: Path) -> Iterator[Event]:
    """Read the log of a program; one that was killed may have left half an entry."""
    content, at = path.read_bytes(), 0
    while at + ctypes.sizeof(_Entry) <= len(content):
        entry = _Entry.from_buffer_copy(content, at)
        at += ctypes.sizeof(_Entry)
        texts = []
        for length in (entry.place, entry.path, entry.other):
            texts.append(content[at : at + length].decode())
            at += length
        place, name, other = texts
        what = cast(bytes, entry.what).decode()
        held = entry.length if what == "write" else 0
        yield Event(entry.number, what, name, other, place, entry.offset, content[at : at + held])
        at += held


def _opened(file: Path) -> Watch:
    found = Watch.__new__(Watch)
    found._open(file)
    return found


def _compiler() -> str:
    return (sysconfig.get_config_var("CC") or "cc").split()[0] if which("cc") is None else "cc"
