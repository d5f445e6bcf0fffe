"""The system calls that code in the sandbox may make, and their numbers.

A list of what is allowed, because what is not allowed has no end: the kernel gains calls with every
release, and many of them hold memory that no limit on a process counts, such as extended
attributes, locks on ranges of a file, timers, watches, keys and pages lent to a pipe. Python needs
these here, whatever a program does with files, time and its own memory; each holds memory only
within the limits on address space and descriptors, or is watched from outside (``watch.py``).

Numbers are those of Linux's tables: ``arch/x86/entry/syscalls/syscall_64.tbl``, and
``include/uapi/asm-generic/unistd.h`` for ARM64 and RISC-V.
"""

from pathlib import Path
from types import MappingProxyType

from schemabank.sandbox.limits import PR_SET_THP_DISABLE

TABLE = Path(__file__).with_name("calls.txt")


def _read_table(text: str) -> dict[str, tuple[int, int | None]]:
    """Read rows of a name and two numbers; empty lines and comments are skipped."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {name: (int(x86), None if other == "-" else int(other)) for name, x86, other in rows}


# Name: number on x86-64, and in the kernel's generic table (None: no such call there).
CALLS = MappingProxyType(_read_table(TABLE.read_text(encoding="ascii")))
# Calls that do more than is wanted, by the arguments that tell, and what these may be.
CHOICES: MappingProxyType[str, tuple[tuple[int, tuple[int, ...]], ...]] = MappingProxyType(
    {
        # To copy a descriptor and to read or set its flags; not to grow a pipe (1031), to lock a
        # range of a file (6, 7, 37, 38) or to watch a folder (1026).
        "fcntl": ((1, (0, 1, 2, 3, 4, 1030, 1032)),),
        # To ask a terminal for its settings (0x5401) and size (0x5413), and to set or ask what a
        # descriptor of any kind does (0x541B, 0x5421, 0x5450, 0x5451).
        "ioctl": ((1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
        # To say how memory will be used and to give it back; not to have huge pages (14, 25) or
        # equal pages looked for (12): of a huge page the process may give back all but one small
        # page, and it stays whole.
        "madvise": ((2, (0, 1, 2, 3, 4, 8, 10, 11, 15, 16, 17, 18, 19)),),
        # To do without huge pages, which limits.py asks for: option, 1, and no exceptions.
        "prctl": ((0, (PR_SET_THP_DISABLE,)), (1, (1,)), (2, (0,))),
        # Unix sockets: another family would load a module of the kernel.
        "socketpair": ((0, (1,)),),
    }
)
# Huge pages come from a pool of the machine, which others may want.
MMAP_FLAGS_ARGUMENT = 3
MAP_HUGETLB = 0x40000
# Shared memory without a name stays whole in the kernel while one page of it is mapped, and a limit
# on address space then counts that page alone.
MAP_SHARED_ANONYMOUS = 0x21
