"""Running a step's program: directly on a CPU, compiled and captured as one graph on CUDA.

A GPU computes a batch of four short examples faster than Python can launch the operations. A
program is therefore warmed up, which compiles it, recorded as a CUDA graph, and replayed from then
on: one call a step, with no Python inside and no waiting for the device. PyTorch calls this
whole-network capture (pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). A graph reads and
writes the addresses that it was recorded with, so all input goes through :class:`Staging`.
Compiling needs Triton and a C compiler; only :func:`can_compile` checks for them.
"""

import ctypes
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemabank.common.cores import given_cores
from schemabank.common.garbage import uncollected
from schemabank.common.waiting import waiting
from schemabank.engine.compiling import num_compilations, optimised, timed

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

DEPTH = 3  # steps that the host may be ahead of the device
ALIGNMENT = 64  # bytes; PyTorch views memory as a type only from a multiple of the type's size
WARM_UPS = 2  # a run that compiles, and one of the compiled code as it will be recorded
OLDEST_GPU = (7, 0)  # compute capability that torch.compile asks for
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of parameters in mallopt(3)
# The C library keeps up to 512 MiB of freed memory, but returns a piece of 64 MiB or more at once.
KEPT_BYTES, KEPT_PIECE_BYTES = 2**29, 2**26

# Pools of captures that failed. They are never let go: PyTorch still counts such a pool as in use
# and aborts the process when it is destroyed.
_BROKEN_POOLS: list[torch.cuda.MemPool] = []


class Staging:
    """Named tensors in one piece of device memory, filled from the host by one copy.

    A copy from the host does not wait for the device if the host's memory is pinned. The host may
    then already write the next step's input while the device copies this one's, so the host has
    :data:`DEPTH` buffers, which take turns. The device needs one only: its stream runs copies and
    steps in the order of the calls.

    Args:
        fields: shape and type of each tensor.
        device: where they are needed.

    Attributes:
        device: the tensors on the device; their addresses never change.
    """

    def __init__(self, fields: Fields, device: torch.device) -> None:
        size = sum(_num_bytes(shape, dtype) for shape, dtype in fields.values())
        self._bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self.device = _views(self._bytes, fields)
        pinned = device.type == "cuda"
        self._hosts = (
            [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for _ in range(DEPTH)]
            if pinned
            else [self._bytes]  # on a CPU the host writes into the tensors themselves
        )
        self._arrays = [
            {name: view.numpy() for name, view in _views(host, fields).items()}
            for host in self._hosts
        ]
        self._copied = [torch.cuda.Event() if pinned else None for _ in self._hosts]
        self._turn = 0

    def host(self) -> dict[str, np.ndarray]:
        """Return the arrays to fill next; waits until their last copy is over."""
        event = self._copied[self._turn]
        if event is not None:  # an event that was never recorded counts as over
            event.synchronize()
        return self._arrays[self._turn]

    def send(self) -> None:
        """Copy what :meth:`host` returned to the device, without waiting."""
        event = self._copied[self._turn]
        if event is not None:
            self._bytes.copy_(self._hosts[self._turn], non_blocking=True)
            event.record()
        self._turn = (self._turn + 1) % len(self._hosts)


class Fetch:
    """A device tensor on its way to the host.

    The copy is queued at once, behind the program that computes the values: a captured program has
    one output tensor, which its next replay overwrites.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> list[list[float]]:
        """Wait for the values and return them."""
        if self._event is not None:
            self._event.synchronize()
        rows: list[list[float]] = self._values.tolist()
        return rows


class Executor:
    """Runs programs on one device.

    Args:
        device: where programs run.
        capture: whether to record programs as CUDA graphs.
        explain: told why a program cannot be captured, and what the user waits for.
    """

    def __init__(
        self, device: torch.device, *, capture: bool, explain: Callable[[str], None]
    ) -> None:
        self.device, self.capture, self.explain = device, capture, explain
        self._pool = torch.cuda.MemPool() if capture else None
        self._stream = torch.cuda.Stream(device) if capture else None

    def program(self, function: Callable[[], Tensor], what: str = "a step") -> Callable[[], Tensor]:
        """Return ``function`` as a program.

        The function must read its input from fixed addresses. It is warmed up here on the input
        that stands there by now, so it must change nothing if that is all zeros.

        Args:
            function: what to run.
            what: its name for a user who waits until it is compiled.
        """
        if not self.capture or self._pool is None:
            return function
        # The warm-up uses the stream and the memory pool that the graph will use, so that all that
        # is allocated once, as by compiled code, lies in memory that the graph may keep using.
        # `use_mem_pool` holds for the current thread only. Autograd runs a backward pass on CUDA in
        # another thread, which would allocate elsewhere, so it must stay in this one.
        # A captured program is part of a circle of objects. The process can end if one is freed
        # while another is compiled or captured.
        with (
            waiting(f"compiling {what}", self.explain),
            timed(),
            uncollected(),
            torch.autograd.set_multithreading_enabled(False),
        ):
            torch.cuda.synchronize(self.device)
            with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                _warm_up(function)
            torch.cuda.synchronize(self.device)
            return self._captured_or_not(function, self._pool)

    def _captured_or_not(
        self, function: Callable[[], Tensor], pool: torch.cuda.MemPool
    ) -> Callable[[], Tensor]:
        try:
            return self._captured(function, pool)
        except torch.OutOfMemoryError:  # a RuntimeError, too; the cohort goes on in fewer slots
            raise
        except RuntimeError as error:
            self.capture = False  # a model whose step cannot be captured fails in every program
            _BROKEN_POOLS.append(pool)
            reason = str(error).strip().partition("\n")[0]
            self.explain(f"steps run one operation at a time, since capture failed: {reason}")
            return function

    def _captured(
        self, function: Callable[[], Tensor], pool: torch.cuda.MemPool
    ) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # All graphs share one pool's memory. They never run at the same time, and the one tensor
        # that must outlive a replay, `output`, is held below, so no later graph gets its memory.
        with torch.cuda.graph(graph, pool=pool.id, stream=self._stream):  # type: ignore[arg-type]
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output  # always the same tensor, which each replay writes anew

        return replay


def _warm_up(function: Callable[[], Tensor]) -> None:
    """Run a function, and once more if that compiled anything."""
    for _ in range(WARM_UPS):
        before = num_compilations()
        function()
        if num_compilations() == before:  # as for all shapes but the first, which take a second
            return


def default_executor(device: torch.device, *, explain: Callable[[str], None]) -> Executor:
    """Return an executor that captures programs on CUDA and nowhere else."""
    return Executor(device, capture=device.type == "cuda", explain=explain)


def can_compile(device: torch.device, *, explain: Callable[[str], None] = lambda _: None) -> bool:
    """Say whether programs are compiled and Triton's kernels used; never on a CPU.

    Args:
        device: where programs run.
        explain: told why a GPU cannot have them.
    """
    if device.type != "cuda":
        return False
    lack = _lack_of_triton() or _lack_of_gpu(torch.cuda.get_device_capability(device))
    if lack is not None:
        explain(f"steps run as plain PyTorch, which takes longer and more memory: {lack}")
    return lack is None


def compiled(forward: Callable[..., object]) -> Callable[..., object]:
    """Compile a forward pass over ``(row, token, hidden)`` for any number of tokens.

    All other sizes are fixed, which gives faster code than leaving them open.
    """
    # Only the token dimension is marked as one that changes, in every argument that has it.
    # "Maybe" marks it without insisting: the compiler may still fix it where the code needs that.
    fixed = optimised(forward)

    def run(hidden: Tensor, *args: object, **kwargs: object) -> object:
        width = hidden.shape[1]
        for value in (hidden, *args, *kwargs.values()):
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor) and item.dim() > 1 and item.shape[1] == width:
                    torch._dynamo.maybe_mark_dynamic(item, 1)
        return fixed(hidden, *args, **kwargs)

    return run


def use_given_cores() -> None:
    """Compute in no more threads than the process has cores.

    ``OMP_NUM_THREADS`` sets another number.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads())


def num_threads() -> int:
    """Return in how many threads this process computes, once :func:`use_given_cores` was called."""
    now = torch.get_num_threads()
    return now if "OMP_NUM_THREADS" in os.environ else min(now, given_cores())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the CPU in one thread: a factorisation rounds by how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step on a CPU frees, for the next step.

    By default it returns pieces of some MiB to the system, which clears them page by page when they
    are needed again. This holds for the whole process. It does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_PIECE_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def prepare_compiler() -> None:
    """Set up the compiler for many cohorts in one process, before anything is compiled."""
    _allow_many_versions()
    _see_what_trains()
    _collect_nothing_after_compiling()
    keep_workers_awake()


def _allow_many_versions() -> None:
    """Raise the compiler's limits on versions of one function.

    All cohorts of a process share a function's code, and each may need versions of its own. Beyond
    a limit the compiler leaves the function uncompiled.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)


def _see_what_trains() -> None:
    """Let compiled code check whether a weight trains, which changes from stage to stage.

    Before PyTorch 2.13, compiled code skips this check as long as a module holds the same weight.
    A block that was compiled for a stage without LoRA would then give LoRA no gradient in the next.
    """
    name = "skip_tensor_guards_with_matching_dict_tags"
    if hasattr(torch._dynamo.config, name):
        setattr(torch._dynamo.config, name, False)


def _collect_nothing_after_compiling() -> None:
    """Keep the compiler from freeing circles itself after each function, within a program's making.

    :meth:`Executor.program` says why; the compiler's own call would not heed it.
    """
    name = "run_gc_after_compile"
    if hasattr(torch._dynamo.config, name):
        setattr(torch._dynamo.config, name, False)


def keep_workers_awake() -> None:
    """Keep the processes that compile awake, however long they have nothing to do.

    By default they go to sleep after a minute, and whatever is compiled after that may wait for
    ever (github.com/pytorch/pytorch/issues/176968): a second cohort would never start. A pool of
    processes that already exists would still sleep, so a new one takes its place.
    """
    config: Any = importlib.import_module("torch._inductor.config")
    if not getattr(config, "quiesce_async_compile_pool", False):
        return  # this PyTorch's processes never sleep, or the option was switched off before
    config.quiesce_async_compile_pool = False
    if config.quiesce_async_compile_pool:
        return  # TORCHINDUCTOR_QUIESCE_ASYNC_COMPILE_POOL=1 overrides it
    workers = importlib.import_module("torch._inductor.async_compile")
    made = workers.AsyncCompile.process_pool
    if made.cache_info().currsize and getattr(made(), "timer", None) is not None:
        workers.after_fork()  # makes PyTorch forget the pool, which ends with this process


def _lack_of_gpu(capability: tuple[int, int]) -> str | None:
    if capability >= OLDEST_GPU:
        return None
    found, allowed = (".".join(map(str, version)) for version in (capability, OLDEST_GPU))
    return (
        "the GPU is older than those that PyTorch compiles for (compute capability "
        f"{found}, allowed is {allowed} and later), use a newer one"
    )


@cache
def _lack_of_triton() -> str | None:
    """Return what Triton lacks to make kernels, and how to fix it; ``None``: nothing.

    Triton first builds an extension module for Python. The compiler is looked for here as Triton
    does it (github.com/triton-lang/triton, python/triton/runtime/build.py).
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, install the package triton"
    compiler = os.environ.get("CC", shutil.which("gcc") or shutil.which("clang"))
    if compiler is None:
        return "there is no C compiler for Triton, install gcc or name one in the variable CC"
    headers = sysconfig.get_path("include", "posix_prefix")
    command = [compiler, f"-I{headers}", "-fsyntax-only", "-xc", "-"]
    try:
        subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=True)  # noqa: S603 -- Triton runs it, too
    except (OSError, subprocess.CalledProcessError):
        return (
            f"the C compiler {compiler!r} cannot build Triton's module for Python, install gcc and "
            f"Python's headers ({headers}/Python.h)"
        )
    return None


def _num_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _views(memory: Tensor, fields: Fields) -> dict[str, Tensor]:
    views, start = {}, 0
    for name, (shape, dtype) in fields.items():
        used = math.prod(shape) * dtype.itemsize
        views[name] = memory[start : start + used].view(dtype).view(shape)
        start += _num_bytes(shape, dtype)
    return views
