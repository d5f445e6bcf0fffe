"""What runs a step: memory of fixed addresses, capture and its failure, what compiling needs."""

import ctypes
import gc
import importlib.util
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capturing import capturing
from schemabank.common import durations
from schemabank.engine import execute
from schemabank.engine.compiling import compiling_measured
from schemabank.engine.execute import (
    ALIGNMENT,
    DEPTH,
    WARM_UPS,
    Fetch,
    Staging,
    can_compile,
    compiled,
    default_executor,
    keep_freed_memory,
    prepare_compiler,
)

# PyTorch's compiler warns, as it is imported, of its own deprecations.
with warnings.catch_warnings(action="ignore"):
    inductor = importlib.import_module("torch._inductor.config")
    async_compile = importlib.import_module("torch._inductor.async_compile")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FIELDS = {
    "tokens": ((3, 5), torch.int64),
    "active": ((3, 1), torch.bool),
    "rates": ((3,), torch.float32),
    "nothing": ((0, 4), torch.float32),
    "keys": ((3,), torch.int32),
}


def fill(arrays: dict[str, np.ndarray], seed: int) -> dict[str, list[object]]:
    """Write something new into every array; return it."""
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        array[...] = rng.integers(0, 2 if array.dtype == bool else 99, array.shape)
    return {name: array.tolist() for name, array in arrays.items()}


def addresses(staging: Staging) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in staging.device.items()}


# Staging and fetching.


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_arrives_and_no_address_changes(device: str) -> None:
    staging = Staging(FIELDS, torch.device(device))
    places = addresses(staging)
    for seed in range(3 * DEPTH):
        sent = fill(staging.host(), seed)
        staging.send()
        assert {name: tensor.tolist() for name, tensor in staging.device.items()} == sent
    assert addresses(staging) == places


def test_fields_are_zero_at_first_aligned_and_apart() -> None:
    staging = Staging(FIELDS, CPU)
    for name, (shape, dtype) in FIELDS.items():
        tensor = staging.device[name]
        assert (tensor.shape, tensor.dtype, tensor.any().item()) == (shape, dtype, False)
    offsets = [t.storage_offset() * t.itemsize for t in staging.device.values()]
    assert offsets == [0, 2 * ALIGNMENT, 3 * ALIGNMENT, 4 * ALIGNMENT, 4 * ALIGNMENT]


class Event:
    """A CUDA event that writes down what is asked of it."""

    def __init__(self, number: int, log: list[str]) -> None:
        self.number, self.log = number, log

    def record(self) -> None:
        self.log.append(f"copy {self.number}")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.number}")


def test_host_arrays_take_turns_and_each_waits_for_its_own_last_copy() -> None:
    staging = Staging(FIELDS, CPU)
    log: list[str] = []
    hosts = [torch.zeros_like(staging._bytes) for _ in range(DEPTH)]
    staging._hosts, staging._copied = hosts, [Event(i, log) for i in range(DEPTH)]
    staging._arrays = [
        {name: view.numpy() for name, view in execute._views(host, FIELDS).items()}
        for host in hosts
    ]
    places = addresses(staging)
    for seed in range(2 * DEPTH):
        arrays = staging.host()
        assert arrays is staging._arrays[seed % DEPTH]
        sent = fill(arrays, seed)
        staging.send()
        assert {name: tensor.tolist() for name, tensor in staging.device.items()} == sent
    assert log == [f"{what} {i}" for i in [*range(DEPTH)] * 2 for what in ("wait for", "copy")]
    assert addresses(staging) == places


@pytest.mark.parametrize("device", DEVICES)
def test_a_fetch_gives_the_values(device: str) -> None:
    values = torch.tensor([[1.5, -2.0], [0.25, float("inf")]], device=device)
    assert Fetch(values).get() == [[1.5, -2.0], [0.25, float("inf")]]


# Programs.


def no_program() -> Tensor:
    raise AssertionError


def test_without_capture_a_program_is_the_function_itself() -> None:
    executor = default_executor(CPU, explain=pytest.fail)
    assert not executor.capture
    assert executor.program(no_program) is no_program


class Program:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.zeros(())


@torch.compile(backend="eager")
def negated(value: Tensor) -> Tensor:
    return -value


class Compiling(Program):
    """Compiles in its first call."""

    def __call__(self) -> Tensor:
        return negated(super().__call__())


def test_a_program_is_warmed_up_until_nothing_is_compiled_and_then_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replays, program = Program(), Compiling()
    executor = capturing(monkeypatch, lambda *_: replays, [])
    torch._dynamo.reset()
    for calls in (WARM_UPS, WARM_UPS + 1):  # what is compiled by then runs once
        assert executor.program(program) is replays
        assert (program.calls, replays.calls) == (calls, 0)
    assert executor.capture


@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_no_circle_is_freed_while_a_program_is_made(
    monkeypatch: pytest.MonkeyPatch, *, was_enabled: bool, fails: bool
) -> None:
    """Circles hold captured programs, and one that is freed meanwhile can end the process."""
    seen: list[bool] = []

    def see(*_: object) -> Tensor:
        seen.append(gc.isenabled())
        if fails:
            raise torch.OutOfMemoryError
        return torch.zeros(())

    def capture(*_: object) -> Program:
        seen.append(gc.isenabled())
        return Program()

    if not was_enabled:
        gc.disable()
    try:
        with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext():
            capturing(monkeypatch, capture, []).program(see)
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()
    assert seen == [False] * (1 if fails else 2)


def test_a_program_that_takes_long_to_compile_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 0.01)
    said = threading.Event()

    def compile_slowly() -> Tensor:
        assert said.wait(30)
        return torch.zeros(())

    def note(text: str) -> None:
        notes.append(text)
        said.set()

    notes: list[str] = []
    executor = capturing(monkeypatch, lambda *_: Program(), [])
    executor.explain = note
    executor.program(compile_slowly, "a step of 2 x 4 x 128 tokens")
    assert notes[0] == "still compiling a step of 2 x 4 x 128 tokens, 0 s so far"


def test_a_failed_capture_is_explained_once_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def captured(*_: object) -> Callable[[], Tensor]:
        raise RuntimeError("\noperation not permitted\nand many more lines")

    notes: list[str] = []
    executor = capturing(monkeypatch, captured, notes)
    pool = executor._pool
    programs = [Program(), Program()]
    assert [executor.program(p) for p in programs] == programs
    assert [p.calls for p in programs] == [1, 0]
    assert not executor.capture
    assert notes == [
        "steps run one operation at a time, since capture failed: operation not permitted"
    ]
    assert [id(p) for p in execute._BROKEN_POOLS] == [id(pool)], "freeing it ends the process"


def test_memory_that_runs_out_in_a_capture_is_no_failed_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def captured(*_: object) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError

    notes: list[str] = []
    executor = capturing(monkeypatch, captured, notes)
    with pytest.raises(torch.OutOfMemoryError):
        executor.program(Program())
    assert executor.capture
    assert not [*notes, *execute._BROKEN_POOLS]


def test_the_time_to_make_programs_is_measured_also_of_those_that_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = count(step=7)
    monkeypatch.setattr(durations, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    executors = [capturing(monkeypatch, lambda *_: Program(), []) for _ in range(2)]
    executors[0].program(Program())  # before anybody measures
    with compiling_measured() as outer:
        with compiling_measured() as inner:
            default_executor(CPU, explain=pytest.fail).program(Program())
            assert inner.took_s == 0
            for executor in executors:
                executor.program(Program())
            with pytest.raises(AssertionError):
                executors[0].program(no_program)
        executors[0].program(Program())
    assert (outer.took_s, inner.took_s) == (7, 21)


# Compiling.


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator["Machine"]:
    execute._lack_of_triton.cache_clear()
    yield Machine(monkeypatch)
    execute._lack_of_triton.cache_clear()


class Machine:
    """A machine with a new GPU, Triton and, once it is given one, a C compiler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        monkeypatch.delenv("CC", raising=False)
        self.set_triton(installed=True)
        self.set_compilers({})
        self.set_gpu((9, 0))

    def set_gpu(self, capability: tuple[int, int]) -> None:
        self.patch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)

    def set_triton(self, *, installed: bool) -> None:
        specs = {"triton": object() if installed else None}
        self.patch.setattr(importlib.util, "find_spec", specs.get)

    def set_compilers(self, places: dict[str, str]) -> None:
        self.patch.setattr(shutil, "which", places.get)


def script(folder: Path, name: str, status: int) -> str:
    """A compiler that ends with a status and notes its arguments and input beside it."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> {path}.log\ncat >> {path}.log\nexit {status}\n')
    path.chmod(0o700)
    return str(path)


def test_compiled_code_sees_which_weights_train() -> None:
    """PyTorch 2.11 compiles this once, and gives no weight a gradient."""
    prepare_compiler()
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    run = torch.compile(layer, backend="aot_eager", dynamic=False)
    inputs = torch.ones(2, 4, requires_grad=True)
    for trains in (False, True, False):
        layer.requires_grad_(trains)
        layer.zero_grad()
        run(inputs).sum().backward()
        assert [p.grad is not None for p in layer.parameters()] == [trains] * 4
    name = "skip_tensor_guards_with_matching_dict_tags"  # some PyTorch may have it no more
    assert not getattr(torch._dynamo.config, name, False)


class Pool:
    """Processes that compile, of PyTorch's own kind but for what they do."""

    def __init__(self, _count: int, *, quiesce: bool) -> None:
        self.timer = object() if quiesce else None

    def shutdown(self) -> None:
        """Nothing runs."""


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Pool]]:
    """What gives the compiler its pool; with PyTorch's own defaults, none is made yet."""
    monkeypatch.setattr(async_compile, "SubprocPool", Pool)
    monkeypatch.setattr(async_compile, "get_compile_threads", lambda: 2)
    monkeypatch.setattr(async_compile, "_pool_set", type(async_compile._pool_set)())
    async_compile.AsyncCompile.process_pool.cache_clear()
    with inductor.patch(quiesce_async_compile_pool=True, worker_start_method="subprocess"):
        yield async_compile.AsyncCompile.process_pool
    async_compile.AsyncCompile.process_pool.cache_clear()


def test_the_compilers_processes_stay_awake(pools: Callable[[], Pool]) -> None:
    prepare_compiler()
    pool = pools()
    assert pool.timer is None
    prepare_compiler()
    assert pools() is pool


def test_processes_that_would_sleep_are_replaced(pools: Callable[[], Pool]) -> None:
    """As where somebody compiled in this process before."""
    before = pools()
    assert before.timer is not None
    prepare_compiler()
    assert pools() is not before
    assert pools().timer is None


def test_a_pool_that_is_awake_already_stays_in_another_thread(pools: Callable[[], Pool]) -> None:
    """Where PyTorch's settings are their defaults again."""
    prepare_compiler()
    pool = pools()
    with ThreadPoolExecutor(1) as other, inductor.patch(quiesce_async_compile_pool=True):
        other.submit(prepare_compiler).result()
    assert pools() is pool


def test_the_compiler_frees_no_circles_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    config = torch._dynamo.config
    monkeypatch.setattr(config, "run_gc_after_compile", True)
    prepare_compiler()
    assert not config.run_gc_after_compile


def test_a_pytorch_without_the_setting_compiles_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "torch._inductor.config", older)
    prepare_compiler()
    assert vars(older) == {}


def test_the_variable_that_forces_sleep_is_obeyed(
    pools: Callable[[], Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch reads TORCHINDUCTOR_QUIESCE_ASYNC_COMPILE_POOL as it is imported."""
    setting = inductor._config["quiesce_async_compile_pool"]
    monkeypatch.setattr(setting, "env_value_force", True)
    pool = pools()
    prepare_compiler()
    assert pools() is pool
    assert pool.timer is not None


def test_a_cpu_never_compiles_and_nothing_is_said(machine: Machine) -> None:
    machine.set_triton(installed=False)
    assert not can_compile(CPU, explain=pytest.fail)


@pytest.mark.parametrize("compilers", [["gcc"], ["clang"], ["gcc", "clang"]])
def test_a_gpu_compiles_with_triton_and_the_compiler_that_triton_takes(
    machine: Machine, tmp_path: Path, compilers: Sequence[str]
) -> None:
    machine.set_compilers({name: script(tmp_path, name, 0) for name in compilers})
    for _ in range(2):
        assert can_compile(CUDA, explain=pytest.fail)
    (log,) = tmp_path.glob("*.log")
    assert log.name == f"{compilers[0]}.log"
    command, source = log.read_text().splitlines()
    assert command.startswith("-I")
    assert source == "#include <Python.h>", "asked once"


def test_the_variable_cc_comes_before_what_is_found(machine: Machine, tmp_path: Path) -> None:
    machine.set_compilers({"gcc": script(tmp_path, "gcc", 1)})
    machine.patch.setenv("CC", script(tmp_path, "mycc", 0))
    assert can_compile(CUDA, explain=pytest.fail)


def lack(device: torch.device = CUDA) -> str:
    """The one sentence that says why a device does not compile."""
    notes: list[str] = []
    assert not can_compile(device, explain=notes.append)
    assert not can_compile(device), "asking without an ear for it says nothing"
    (note,) = notes
    start = "steps run as plain PyTorch, which takes longer and more memory: "
    assert note.startswith(start)
    return note.removeprefix(start)


def test_without_triton_a_gpu_runs_plain_pytorch_and_says_why(machine: Machine) -> None:
    machine.set_triton(installed=False)
    assert lack() == "Triton is not installed, install the package triton"


def test_without_a_compiler_a_gpu_runs_plain_pytorch_and_says_why(machine: Machine) -> None:
    machine.set_compilers({"cc": "/usr/bin/cc"})  # Triton does not look for it
    assert lack() == (
        "there is no C compiler for Triton, install gcc or name one in the variable CC"
    )


@pytest.mark.parametrize("compiler", ["broken", "missing"])
def test_a_compiler_that_does_not_work_is_as_good_as_none(
    machine: Machine, tmp_path: Path, compiler: str
) -> None:
    """Most often Python's headers are missing."""
    script(tmp_path, "broken", 1)
    machine.patch.setenv("CC", str(tmp_path / compiler))
    assert lack().startswith(
        f"the C compiler '{tmp_path / compiler}' cannot build Triton's module for Python, "
        "install gcc and Python's headers ("
    )


def test_every_tensor_of_the_rows_width_may_have_another_width_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marked: list[tuple[int, ...]] = []
    fixed: list[tuple[bool, Mapping[str, object]]] = []

    def mark(tensor: Tensor, dimension: int) -> None:
        assert dimension == 1
        marked.append(tuple(tensor.shape))

    def compile_(
        forward: Callable[..., object], *, dynamic: bool, options: Mapping[str, object]
    ) -> Callable[..., object]:
        fixed.append((dynamic, options))
        return forward

    monkeypatch.setattr(torch._dynamo, "maybe_mark_dynamic", mark)
    monkeypatch.setattr(torch, "compile", compile_)
    shapes = [(4, 7, 8), (4, 9, 8), (7,), (4, 1, 7, 7)]
    hidden, other, line, mask = (torch.zeros(shape) for shape in shapes)
    places = (torch.zeros(1, 7, 2), torch.zeros(1, 7, 3))

    def forward(*args: object, **kwargs: object) -> tuple[object, object]:
        return args, kwargs

    run = compiled(forward)
    found = run(hidden, other, line, mask=mask, places=places, cache=None)
    assert found == ((hidden, other, line), {"mask": mask, "places": places, "cache": None})
    assert marked == [(4, 7, 8), (1, 7, 2), (1, 7, 3)]
    assert [(dynamic, options["deterministic"]) for dynamic, options in fixed] == [(False, True)]


# The C library.


class Library:
    """A C library that notes what is set, if it is glibc."""

    def __init__(self, *, glibc: bool) -> None:
        self.set: list[tuple[int, int]] = []
        if glibc:
            self.mallopt = lambda option, value: self.set.append((option, value))


@pytest.mark.parametrize(("platform", "glibc"), [("linux", True), ("linux", False)])
def test_freed_memory_is_kept_where_the_library_is_glibc(
    monkeypatch: pytest.MonkeyPatch, platform: str, glibc: bool
) -> None:
    library = Library(glibc=glibc)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    keep_freed_memory()
    assert library.set == ([(-3, 2**26), (-1, 2**29)] if glibc else [])


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("windows has no such library"))
    keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_the_real_library_takes_the_settings() -> None:
    keep_freed_memory()


def test_an_old_gpu_runs_plain_pytorch_and_says_why(machine: Machine, tmp_path: Path) -> None:
    machine.set_compilers({"gcc": script(tmp_path, "gcc", 0)})
    machine.set_gpu((6, 1))
    assert lack() == (
        "the GPU is older than those that PyTorch compiles for (compute capability 6.1, allowed is "
        "7.0 and later), use a newer one"
    )


# The cores of a CPU.


@pytest.mark.parametrize(("given", "threads"), [(1, 1), (2, 2), (64, 3)])
def test_no_more_threads_than_the_process_was_given_cores(
    monkeypatch: pytest.MonkeyPatch, given: int, threads: int
) -> None:
    counts = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(execute, "given_cores", lambda: given)
    execute.use_given_cores()
    assert counts == [threads]


def test_a_number_of_threads_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch, "set_num_threads", pytest.fail)
    execute.use_given_cores()
