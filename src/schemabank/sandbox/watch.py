"""Sees from outside what a process in the sandbox holds of the kernel's memory.

Two kinds grow without a limit that a user may set: page tables, one page for as little as one
mapped byte, and the inodes and names of files in the sandbox's ``/tmp``. The kernel tells of both,
so the process outside can look every few milliseconds, and end the one inside.
"""

import os
import re
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from schemabank.sandbox.result import SandboxError

WATCH_EVERY_S = 0.02
# About 1 KiB of the kernel's memory each; a link counts as one more.
MAX_FILES = 4096
# A page of tables maps 512 pages, so a program that uses memory in one piece needs 1 / 512 of it.
MIN_PAGE_TABLES_KIB = 16 * 1024
PAGE_TABLES_SHARE = 256
PAGE_TABLES = re.compile(r"^VmPTE:\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Inside:
    """The process inside a sandbox: its number, as this process counts, and a handle on it."""

    number: int
    handle: int

    def has_ended(self) -> bool:
        """Whether it has ended, reaped or not."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(0))


class Watch:
    """A look at one sandbox, taken before any code of others runs in it.

    Args:
        inside: its process; None of one that has ended, which holds nothing.
        memory_mib: its limit on address space.
        tmp_bytes: the size of the sandbox's ``/tmp``, by which that is recognised.
        limit_s: how long the sandbox may take to have one.

    Raises:
        SandboxError: it runs and cannot be seen.
    """

    def __init__(
        self, inside: Inside | None, *, memory_mib: int, tmp_bytes: int, limit_s: float
    ) -> None:
        self._inside = inside
        self._most_kib = MIN_PAGE_TABLES_KIB + memory_mib * 1024 // PAGE_TABLES_SHARE
        self._tmp: int | None = None
        deadline = time.monotonic() + limit_s
        while inside is not None and self._tmp is None and not inside.has_ended():
            # Bubblewrap builds the file system first; no code can move or cover the folder later.
            self._tmp = _open_tmp(Path("/proc", str(inside.number), "root", "tmp"), tmp_bytes)
            if self._tmp is None and time.monotonic() > deadline:
                raise SandboxError(
                    f"process {inside.number} in a sandbox is not to be seen in /proc: needed is a "
                    "/proc that shows a user the processes of their own"
                )
            time.sleep(WATCH_EVERY_S if self._tmp is None else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._tmp is not None:
            os.close(self._tmp)

    def is_over(self) -> bool:
        """Whether the process holds more than it may; False of one that has ended."""
        if self._inside is None or self._tmp is None:
            return False
        found = os.statvfs(self._tmp)
        return (
            found.f_files - found.f_ffree > MAX_FILES
            or _page_tables_kib(self._inside) > self._most_kib
        )


def _page_tables_kib(inside: Inside) -> int:
    status = Path(f"/proc/{inside.number}/status")
    with suppress(OSError):  # it has ended
        found = PAGE_TABLES.search(status.read_text(encoding="ascii", errors="replace"))
        return int(found[1]) if found is not None else 0
    return 0


def _open_tmp(path: Path, num_bytes: int) -> int | None:
    """Open the sandbox's folder; None where it is not there yet, or is one of this process."""
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.statvfs(folder)
    here = Path("/tmp")  # noqa: S108 -- compared only
    own = here.stat().st_dev if here.exists() else None
    if found.f_blocks * found.f_frsize == num_bytes and os.fstat(folder).st_dev != own:
        return folder
    os.close(folder)
    return None
