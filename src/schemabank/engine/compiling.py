"""Compiling parts of a step, the same way in every process, and how long it takes.

PyTorch's compiler times variants of a kernel on the device, and variants that sum in another order
round otherwise. So a process that compiles anew, as one that goes on on another machine does, may
come to other bits. In its deterministic mode, times decide only between variants that round alike,
such as those of a kernel that sums nothing; between others, fixed rules do.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

from schemabank.common.durations import Stopwatch

OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"deterministic": True}

# Of this thread, while somebody measures: training and evaluation make their programs far from who
# writes down what they cost, and several times where memory runs out.
_WATCH: ContextVar[Stopwatch | None] = ContextVar("watch", default=None)

P = ParamSpec("P")
R = TypeVar("R")


def optimised(function: Callable[P, R], *, dynamic: bool = False) -> Callable[P, R]:
    """Compile a function, with kernels whose rounding does not depend on how fast each is.

    Args:
        function: to compile.
        dynamic: whether one program serves arguments of all sizes; else each has its own.
    """
    found: Callable[P, R] = torch.compile(function, dynamic=dynamic, options=OPTIONS)
    return found


def num_compilations() -> int:
    """How many pieces of code this process has compiled so far, or tried to."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 -- takes seconds, and a CPU needs none

    return int(counters["frames"]["total"])


@contextmanager
def compiling_measured() -> Iterator[Stopwatch]:
    """Measure how long programs are made meanwhile: compiled, in warming up, and captured."""
    watch = Stopwatch()
    token = _WATCH.set(watch)
    try:
        yield watch
    finally:
        _WATCH.reset(token)


def timed() -> AbstractContextManager[None]:
    """Count what takes place within as the making of a program, if anybody measures that."""
    watch = _WATCH.get()
    return nullcontext() if watch is None else watch.running()
