"""The filter that lets code in the sandbox make the calls of ``calls.py`` and no others.

No call that starts a process or a thread is let through, so the limits on one process bound
everything, a fork bomb has no first fork, and it does not matter how the kernel counts processes
of root. The format is classic BPF (``man 2 seccomp``).
"""

import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from schemabank.sandbox.calls import (
    CALLS,
    CHOICES,
    MAP_HUGETLB,
    MAP_SHARED_ANONYMOUS,
    MMAP_FLAGS_ARGUMENT,
)

ALLOW = 0x7FFF0000
KILL = 0x80000000
ERRNO = 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
# On x86-64 numbers from here on are the same calls under another ABI.
X32 = 0x40000000
# What an old kernel would say of a call that it lacks: libraries then use another one.
UNKNOWN = ERRNO | errno.ENOSYS
# What a file system says of a request that it does not know: Python then copies in another way.
REFUSED = ERRNO | errno.EOPNOTSUPP


@dataclass(frozen=True)
class Architecture:
    """A processor's name for the kernel, and its column in ``CALLS``."""

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
        KeyError: the processor is not in :data:`ARCHITECTURES`.
    """
    here = ARCHITECTURES[machine or platform.machine()]
    program = [
        _instruction(LOAD, ARCHITECTURE_OFFSET),
        _instruction(EQUAL, here.audit, skip_if=1),
        _instruction(RETURN, KILL),
        _instruction(LOAD, NUMBER_OFFSET),
    ]
    if here.column == 0:
        program += [_instruction(AT_LEAST, X32, skip_else=1), _instruction(RETURN, UNKNOWN)]
    for name, numbers in CALLS.items():
        number = numbers[here.column]
        if number is not None:
            decision = _decision(name)
            program += [_instruction(EQUAL, number, skip_else=len(decision)), *decision]
    return b"".join([*program, _instruction(RETURN, UNKNOWN)])


def _decision(name: str) -> list[bytes]:
    """The steps that decide on a call of that name; they always return."""
    if name == "mmap":
        return [
            _load_argument(MMAP_FLAGS_ARGUMENT),
            _instruction(ANY_BIT, MAP_HUGETLB, skip_if=2),
            _instruction(AND, MAP_SHARED_ANONYMOUS),
            _instruction(EQUAL, MAP_SHARED_ANONYMOUS, skip_else=1),
            _instruction(RETURN, REFUSED),
            _instruction(RETURN, ALLOW),
        ]
    checks = [step for choice in CHOICES.get(name, ()) for step in _refuse_others(*choice)]
    return [*checks, _instruction(RETURN, ALLOW)]


def _load_argument(index: int) -> bytes:
    # The lower half. Of most of these arguments the kernel looks at no more, and prctl's second is
    # not zero if its lower half is not. All three processors are little-endian.
    return _instruction(LOAD, ARGUMENTS_OFFSET + 8 * index)


def _refuse_others(argument: int, allowed: Sequence[int]) -> list[bytes]:
    """Go on where the argument has one of these values."""
    last = len(allowed)
    equal = [
        _instruction(EQUAL, value, skip_if=last - place) for place, value in enumerate(allowed)
    ]
    return [_load_argument(argument), *equal, _instruction(RETURN, REFUSED)]


def _instruction(code: int, value: int, *, skip_if: int = 0, skip_else: int = 0) -> bytes:
    return struct.pack("HBBI", code, skip_if, skip_else, value)
