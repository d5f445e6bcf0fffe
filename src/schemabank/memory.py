"""Whether an error says that memory ran out, of the device or of the machine."""

import errno

import torch

# PyTorch's allocators for the CPU have no exception of their own; these are their words, from
# c10/core/impl/alloc_cpu.cpp (on Linux, and elsewhere), and those of C++ and of CUDA's libraries.
SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; with less at once, or at another time, it may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
