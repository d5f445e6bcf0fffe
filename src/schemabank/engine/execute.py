"""Running a step's program: at once on a CPU, compiled and captured as one graph on CUDA.

A batch of four short examples keeps a GPU busy for less time than Python needs to ask for it. A
program therefore runs once to compile, is recorded as a CUDA graph and from then on replayed: one
call a step, no Python inside and no waiting for the device (PyTorch calls it whole-network capture,
pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). Compiling needs Triton and a C compiler;
:func:`can_compile` alone says whether they are there.
"""

import ctypes
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import loky
import numpy as np
import torch
from torch import Tensor

from schemabank.common.waiting import waiting

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

DEPTH = 3  # steps that the host may be ahead of the device
ALIGNMENT = 64
WARM_UPS = 2
OLDEST_GPU = (7, 0)  # compute capability that torch.compile asks for
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES, KEPT_PIECE_BYTES = 2**29, 2**26

# Of captures that failed. PyTorch still counts on them and aborts the process when one goes.
_BROKEN_POOLS: list[torch.cuda.MemPool] = []


class Staging:
    """Named tensors in one piece of device memory, filled from the host by one copy.

    Args:
        fields: shape and type of each.
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
            else [self._bytes]
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
        if event is not None:
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
    """A device tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> list[list[float]]:
        """Wait for the values."""
        if self._event is not None:
            self._event.synchronize()
        rows: list[list[float]] = self._values.tolist()
        return rows


class Executor:
    """Runs programs on one device.

    Args:
        device: where.
        capture: record programs as CUDA graphs.
        explain: told why a program cannot be captured, and what is waited for.
    """

    def __init__(
        self, device: torch.device, *, capture: bool, explain: Callable[[str], None]
    ) -> None:
        self.device, self.capture, self.explain = device, capture, explain
        self._pool = torch.cuda.MemPool() if capture else None
        self._stream = torch.cuda.Stream(device) if capture else None

    def program(self, function: Callable[[], Tensor], what: str = "a step") -> Callable[[], Tensor]:
        """Return ``function`` as a program.

        It must read its input from fixed addresses, and must change nothing when run on input that
        is zero: so it is warmed up here.

        Args:
            function: to run.
            what: it is, for a user who waits for it.
        """
        if not self.capture or self._pool is None:
            return function
        # Warmed up in the graphs' own memory, which one thread has: the backward pass stays in it.
        with (
            waiting(f"compiling {what}", self.explain),
            torch.autograd.set_multithreading_enabled(False),
        ):
            torch.cuda.synchronize(self.device)
            with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                for _ in range(WARM_UPS):
                    function()
            torch.cuda.synchronize(self.device)
            return self._captured_or_not(function, self._pool)

    def _captured_or_not(
        self, function: Callable[[], Tensor], pool: torch.cuda.MemPool
    ) -> Callable[[], Tensor]:
        try:
            return self._captured(function, pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.capture = False
            _BROKEN_POOLS.append(pool)
            reason = str(error).strip().partition("\n")[0]
            self.explain(f"steps run one operation at a time, since capture failed: {reason}")
            return function

    def _captured(
        self, function: Callable[[], Tensor], pool: torch.cuda.MemPool
    ) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool.id, stream=self._stream):  # type: ignore[arg-type]
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def default_executor(device: torch.device, *, explain: Callable[[str], None]) -> Executor:
    """Return an executor that captures where there is CUDA."""
    return Executor(device, capture=device.type == "cuda", explain=explain)


def can_compile(device: torch.device, *, explain: Callable[[str], None] = lambda _: None) -> bool:
    """Say whether programs are compiled and Triton's kernels used; never on a CPU.

    Args:
        device: where programs run.
        explain: told why a GPU has to do without.
    """
    if device.type != "cuda":
        return False
    lack = _lack_of_triton() or _lack_of_gpu(torch.cuda.get_device_capability(device))
    if lack is not None:
        explain(f"steps run as plain PyTorch, which takes longer and more memory: {lack}")
    return lack is None


def compiled(forward: Callable[..., object]) -> Callable[..., object]:
    """Compile a forward pass over ``(row, token, hidden)`` for any number of tokens.

    All other sizes are fixed, which makes faster code than leaving them open.
    """
    fixed = torch.compile(forward, dynamic=False)

    def run(hidden: Tensor, *args: object, **kwargs: object) -> object:
        width = hidden.shape[1]
        for value in (hidden, *args, *kwargs.values()):
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor) and item.dim() > 1 and item.shape[1] == width:
                    torch._dynamo.maybe_mark_dynamic(item, 1)
        return fixed(hidden, *args, **kwargs)

    return run


def use_given_cores() -> None:
    """Compute in no more threads than the process was given cores.

    A container's quota is not seen by the libraries, which start a thread for every core of the
    machine and then wait for each other. ``OMP_NUM_THREADS`` sets another number.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), loky.cpu_count()))


def keep_freed_memory() -> None:
    """Let the C library keep what a step on a CPU frees, for the next step.

    By default it gives pieces of some MiB back, and the system clears them page by page when they
    are asked for again. Holds for the whole process; does nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_PIECE_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def prepare_compiler() -> None:
    """Fit the compiler to many cohorts in one process, before anything is compiled."""
    _allow_many_versions()
    _see_what_trains()
    keep_workers_awake()


def _allow_many_versions() -> None:
    """Raise the compiler's limits on versions of one function, whose code all cohorts share."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)


def _see_what_trains() -> None:
    """Have compiled code ask again whether a weight trains, which changes from stage to stage.

    A PyTorch before 2.13 assumes that a weight has not changed while its module still holds the
    same one, so a block that was compiled for a stage without LoRA gave LoRA no gradient in the
    next.
    """
    name = "skip_tensor_guards_with_matching_dict_tags"
    if hasattr(torch._dynamo.config, name):
        setattr(torch._dynamo.config, name, False)


def keep_workers_awake() -> None:
    """Let the processes that compile stay, however long they have nothing to do.

    By default they go to sleep after a minute, and what is to be compiled after that may wait for
    ever (github.com/pytorch/pytorch/issues/176968): a second cohort would never start. A pool that
    was made before us would sleep all the same, and another one takes its place.
    """
    config: Any = importlib.import_module("torch._inductor.config")
    if not getattr(config, "quiesce_async_compile_pool", False):
        return  # a PyTorch whose processes never sleep, or they were told so already
    config.quiesce_async_compile_pool = False
    if config.quiesce_async_compile_pool:
        return  # TORCHINDUCTOR_QUIESCE_ASYNC_COMPILE_POOL=1 overrides it
    compiling = importlib.import_module("torch._inductor.async_compile")
    made = compiling.AsyncCompile.process_pool
    if made.cache_info().currsize and getattr(made(), "timer", None) is not None:
        compiling.after_fork()  # forgets the pool, which ends with this process


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
    """What Triton lacks to make kernels, and the mend; ``None`` for nothing.

    It builds an extension module of Python first, with the compiler that it looks for as is done
    here (github.com/triton-lang/triton, python/triton/runtime/build.py).
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
