"""How much memory the machine loses while something runs.

What counts is memory that nobody can have but by ending a process: of programs, shared, and the
kernel's own. Caches of files, which the kernel gives back, do not count. Where this process may
make a control group of its own, the kernel counts for it alone; otherwise it is the machine's
memory, which other programs use, too.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.01
GROUPS = Path("/sys/fs/cgroup")
NAME = "schemabank-hostile"
MIB = 2**20


@dataclass
class Growth:
    """The most that was in use, beyond what was at the beginning."""

    most_mib: float = 0.0


class Meter:
    """Measures by a way that was found to work here.

    Attributes:
        way: what counts, in words.
    """

    def __init__(self, way: str, in_use: Callable[[], int]) -> None:
        self.way, self._in_use = way, in_use

    @contextmanager
    def measured(self) -> Iterator[Growth]:
        """Measure until the context is left."""
        growth, before, over = Growth(), self._in_use(), threading.Event()

        def look() -> None:
            while not over.wait(EVERY_S):
                growth.most_mib = max(growth.most_mib, (self._in_use() - before) / MIB)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            yield growth
        finally:
            over.set()
            looker.join()


def machine() -> Meter:
    """Count the whole machine's memory."""
    return Meter("the machine's memory", _machine_in_use)


@contextmanager
def finest() -> Iterator[Meter]:
    """A control group with this process alone in it, or the machine's memory."""
    own = _own_group()
    group = None if own is None else own / NAME
    try:
        if group is None:
            raise PermissionError("no control group of memory")
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        _group_in_use(group)
    except OSError:
        yield machine()
        return
    try:
        yield Meter("a control group", lambda: _group_in_use(group))
    finally:
        assert own is not None
        (own / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _own_group() -> Path | None:
    """The folder of this process's group that counts memory."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, names, path = line.split(":", 2)
        folder = GROUPS / ("memory" if names else "") / path.lstrip("/")
        if names in {"memory", ""} and (folder / "memory.stat").is_file():
            return folder
    return None


def _group_in_use(group: Path) -> int:
    """All that is counted for the group, with the kernel's part, but for caches of files."""
    text = (group / "memory.stat").read_text(encoding="ascii")
    found = {name: int(size) for name, size in (line.split() for line in text.splitlines())}
    if "file" in found:  # version 2
        return int((group / "memory.current").read_text()) - found["file"] + found["shmem"]
    used = int((group / "memory.usage_in_bytes").read_text())
    return used - found["total_cache"] + found["total_shmem"]


def _machine_in_use() -> int:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.M)}
    caches = found["Buffers"] + found["Cached"] - found["Shmem"] + found["SReclaimable"]
    return 1024 * (found["MemTotal"] - found["MemFree"] - caches)
