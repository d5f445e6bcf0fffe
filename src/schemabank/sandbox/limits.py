"""What one process inside the sandbox may use; set by itself before it does anything else.

Only the limits' hard values count, and raising those takes a capability that nothing in there has.
"""

import ctypes
import errno
import os
import resource
import sys

MAX_FILE_BYTES = 16 * 2**20
MAX_OPEN_FILES = 32
MAX_PROCESSES = 8
MAX_PENDING_SIGNALS = 64
# prctl's option, which the system's headers have and Python has not.
PR_SET_THP_DISABLE = 41


def main() -> None:
    """Take the limits named on the command line and end: shows that a sandbox can start."""
    memory_mib, cpu_s = map(int, sys.argv[1:3])
    apply_limits(memory_mib=memory_mib, cpu_s=cpu_s)


def apply_limits(*, memory_mib: int, cpu_s: int) -> None:
    """Limit this process for good, and point its standard streams at nothing.

    Args:
        memory_mib: address space, in MiB.
        cpu_s: processor time, after which the kernel kills it.
    """
    limits = {
        resource.RLIMIT_AS: memory_mib * 2**20,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        # A second bound: the system call filter allows no further process or thread at all.
        resource.RLIMIT_NPROC: MAX_PROCESSES,
        # Locked memory and message queues of the kernel are counted nowhere else.
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        # Queued signals and timers.
        resource.RLIMIT_SIGPENDING: MAX_PENDING_SIGNALS,
    }
    for kind, most in limits.items():
        ceiling = resource.getrlimit(kind)[1]
        value = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        resource.setrlimit(kind, (value, value))
    _do_without_huge_pages()
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(sink, stream)
    os.close(sink)


def _do_without_huge_pages() -> None:
    """Of a huge page a process may give back all but one small page.

    Its limit then counts that one, and the kernel keeps 512. No call that is allowed takes this
    back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # A kernel without huge pages may not know the option.
    if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "this process cannot do without huge pages")
