"""Compiling parts of a step, the same way in every process, and how long it takes.

PyTorch's compiler times variants of a kernel on the device, and variants that sum in another order
round otherwise. So a process that compiles anew, as one that goes on on another machine does, may
come to other bits. In its deterministic mode, times decide only between variants that round alike,
such as those of a kernel that sums nothing; between others, fixed rules do.

What was compiled is kept on disk for later processes (``TORCHINDUCTOR_CACHE_DIR``).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from schemabank.common.durations import Stopwatch
from schemabank.common.files import sha256

OPTIONS: dict[str, Any] = {"deterministic": True}
# PyTorch's name for a function whose gradient is written by hand, as attention's and LoRA's are.
BY_HAND = "torch.ops.higher_order.autograd_function_apply"
KERNELS = Path(__file__).with_name("kernels")  # the files with all such functions in compiled code


def key_of(kernels: Path) -> str:
    """Return the key under which traces are kept of functions with gradients written by hand.

    PyTorch finds compiled code again on disk. But by default every process traces such a function
    anew, which then takes most of the time. A trace is kept only under a key that we name. The
    operations of both passes are part of PyTorch's own key anyway. The shapes and types that they
    return, and gradients of operations with one of their own, are not. So our key has the text of
    the files that define ours, and the version of transformers, which has some for experts.

    Args:
        kernels: the folder of our operations.
    """
    files = sorted(kernels.glob("*.py"))
    assert files, "a key of nothing would be the same in every version"
    return f"{sha256(*files)} transformers {version('transformers')}"


KEY = key_of(KERNELS)  # of the files as they are when they are imported, and not some time later

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
    options = OPTIONS | {"unsafe_marked_cacheable_functions": {BY_HAND: KEY}}
    found: Callable[P, R] = torch.compile(function, dynamic=dynamic, options=options)
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
