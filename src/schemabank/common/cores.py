"""How many cores this process was given: by its affinity, and by its container's quota.

Libraries do not see a quota. They would start a thread for each core of the machine, and these
threads would then wait for each other.
"""

import math
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.files import read_text

PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
INFO = Path("/proc/cpuinfo")


def given_cores(process: Path = PROCESS, groups: Path = GROUPS) -> int:
    """Return the number of cores, at least 1.

    A quota is Linux's ``cpu.max`` (https://docs.kernel.org/admin-guide/cgroup-v2.html), or in older
    systems ``cpu.cfs_quota_us``: microseconds of computing in a period, of all cores together.

    Args:
        process: file that names the groups of this process.
        groups: folder of all groups.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = [math.ceil(share) for share in _shares(process, groups)]
    return max(1, min([here or 1, *shares]))


@cache
def processor_name(info: Path = INFO) -> str:
    """Return the processor's own name, as far as the system tells it, else its kind.

    Args:
        info: file in which Linux names it.
    """
    names = (line.partition(":") for line in _text_of(info).splitlines())
    known = (value.strip() for name, _, value in names if name.strip() == "model name")
    return next(known, "") or platform.processor() or platform.machine()


def _shares(process: Path, groups: Path) -> Iterator[float]:
    """Yield what the quotas of this process's groups, and of those above them, are in cores."""
    for line in _text_of(process).splitlines():  # a group's name may have blanks
        _, controllers, own = line.split(":", 2)
        place = Path(own.lstrip("/"))
        for group in (place, *place.parents):
            if not controllers:
                pair = _text_of(groups / group / "cpu.max").split()
            elif "cpu" in controllers.split(","):
                pair = _older_quota(groups / "cpu" / group)
            else:
                continue
            if len(pair) == 2 and pair[0].isdecimal():  # "max" and -1 mean without a quota
                yield int(pair[0]) / int(pair[1])


def _older_quota(group: Path) -> list[str]:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return [word for name in names for word in _text_of(group / name).split()]


def _text_of(path: Path) -> str:
    """What a file of the kernel's says; nothing where this system has no such file."""
    try:
        return read_text(path)
    except InputError:
        return ""
