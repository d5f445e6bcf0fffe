"""Whether an error says that memory ran out, of the device or of the machine."""

import errno

import torch
from safetensors import SafetensorError

from schemabank.common.errors import first_line

# PyTorch's allocators for the CPU have no exception of their own; these are their words, from
# c10/core/impl/alloc_cpu.cpp (on Linux, and elsewhere), and those of C++, of the system where a
# file is mapped, and of CUDA and its libraries.
SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "error: out of memory",
    "_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; with less at once, or at another time, it may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    may_say_so = isinstance(error, RuntimeError | SafetensorError)
    return may_say_so and any(words in str(error) for words in SAID)


def with_memory_named(error: Exception) -> Exception:
    """Return an error that says in plain words that memory ran out, where this one means that."""
    if not is_out_of_memory(error):
        return error
    said = f" ({first_line(error)})" if str(error) else ""
    return MemoryError(f"memory ran out{said}: free some, or ask for less at once")
