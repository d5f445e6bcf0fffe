"""The system calls that code in the sandbox may not make, as a filter for the kernel.

No call that starts a process or a thread is let through, so the limits on one process bound
everything, a fork bomb has no first fork, and it does not matter how the kernel counts processes
of root. Also refused are the calls that hold memory outside the address space limit, that open
sockets, and that have a history of ways out. The format is classic BPF (``man 2 seccomp``).
"""

import errno
import platform
import struct
from dataclasses import dataclass
from types import MappingProxyType

ALLOW = 0x7FFF0000
KILL = 0x80000000
ERRNO = 0x00050000
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET = 0, 4
# On x86-64 numbers from here on are the same calls under another ABI.
X32 = 0x40000000

# Numbers on x86-64 and on architectures with the kernel's generic table (None: no such call).
CALLS: dict[str, tuple[int, int | None]] = {
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "personality": (135, 92),
    # With it code could ask not to die with its parent.
    "prctl": (157, 167),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
# The C library asks for a thread with this one first and takes "no such call" as "use clone".
CLONE3 = 435


@dataclass(frozen=True)
class Architecture:
    """A processor's name for the kernel, and its column in :data:`CALLS`."""

    audit: int
    column: int


ARCHITECTURES = MappingProxyType(
    {
        "x86_64": Architecture(0xC000003E, 0),
        "aarch64": Architecture(0xC00000B7, 1),
        "riscv64": Architecture(0xC00000F3, 1),
    }
)


def call_filter(machine: str | None = None) -> bytes:
    """Return the filter's program.

    Args:
        machine: the processor's name; this machine's if left out.

    Raises:
        KeyError: the processor is none of :data:`ARCHITECTURES`.
    """
    here = ARCHITECTURES[machine or platform.machine()]
    program = [
        _step(LOAD, ARCHITECTURE_OFFSET),
        _step(EQUAL, here.audit, skip_if=1),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER_OFFSET),
    ]
    if here.column == 0:
        program += [_step(AT_LEAST, X32, skip_else=1), _step(RETURN, ERRNO | errno.ENOSYS)]
    program += [_step(EQUAL, CLONE3, skip_else=1), _step(RETURN, ERRNO | errno.ENOSYS)]
    for numbers in CALLS.values():
        number = numbers[here.column]
        if number is not None:
            program += [_step(EQUAL, number, skip_else=1), _step(RETURN, ERRNO | errno.EPERM)]
    return b"".join([*program, _step(RETURN, ALLOW)])


def _step(code: int, value: int, *, skip_if: int = 0, skip_else: int = 0) -> bytes:
    return struct.pack("HBBI", code, skip_if, skip_else, value)
