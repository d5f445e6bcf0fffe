"""The kernel's memory beyond the limits of a process: refused, bounded, or watched from outside."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostile import campaign, kernelmemory
from schemabank.common.cores import given_cores
from schemabank.sandbox import CheckResult, SandboxError, check_asserts, run_program
from schemabank.sandbox.calls import CALLS
from schemabank.sandbox.grade import _judge_memory_mib
from schemabank.sandbox.seccomp import ARCHITECTURES
from schemabank.sandbox.watch import Inside, Watch

ENOUGH = {"timeout_s": 30.0, "memory_mib": 512}
# `make soak` runs them all.
SAMPLE = [case for case in campaign.sample(campaign.cases()) if case.form == campaign.KERNEL]
# What once got through.
MENDED = ("shared memory without a name", "shared zeros", "huge pages on request")
CASES = [(case.kind, case.name) for case in SAMPLE]
CASES += [("refused", name) for name in MENDED if ("refused", name) not in CASES]
# The kernel lets these two of x86-64 past every filter; a process without a probe gets nothing.
OF_PROBES = (335, 336)
HEADERS = [
    (Path(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h"), 0, r"__NR_(\w+)"),
    (Path("/usr/include/asm-generic/unistd.h"), 1, r"__NR(?:3264)?_(\w+)"),
]

USUAL = """
import asyncio, hashlib, json, mmap, os, pathlib, random, select, shutil, signal, socket, sqlite3
import tempfile, threading, time, uuid
async def slept():
    await asyncio.sleep(0.001)
    return 3
assert asyncio.run(slept()) == 3
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "a")
    path.write_text("text")
    shutil.copy2(path, path.with_name("b"))
    shutil.copytree(folder, folder + "c")
    path.with_name("b").rename(path.with_name("d"))
    assert sorted(os.listdir(folder)) == ["a", "d"]
    shutil.rmtree(folder + "c")
with tempfile.TemporaryFile() as file:
    file.write(b"x"); file.seek(0); file.truncate(1)
lock = threading.Lock()
assert lock.acquire(timeout=0.1) and not lock.acquire(timeout=0.01)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001)
time.sleep(0.01)
memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE); memory[:2] = b"ab"; memory.resize(8192)
assert not os.isatty(0) and os.cpu_count() and os.sched_getaffinity(0) and uuid.uuid4()
a, b = socket.socketpair(); a.send(b"x")
assert select.select([b], [], [], 1)[0] == [b] and b.recv(1) == b"x"
reading, writing = os.pipe(); os.write(writing, b"x"); os.set_blocking(reading, False)
sqlite3.connect(":memory:").execute("create table t (x)")
"""


@pytest.fixture(scope="module")
def verdicts() -> Iterator[dict[tuple[str, str], CheckResult]]:
    """All programs, several at once."""

    def attack(case: tuple[str, str]) -> CheckResult:
        return check_asserts(kernelmemory.source(*case), ["assert function() is False"], **ENOUGH)

    with ThreadPoolExecutor(2 * given_cores()) as pool:
        yield dict(zip(CASES, pool.map(attack, CASES), strict=True))


def of_kind(kind: str) -> list[str]:
    return [name for own, name in CASES if own == kind]


@pytest.mark.parametrize("name", of_kind("refused"))
def test_what_nothing_would_count_is_refused(
    verdicts: dict[tuple[str, str], CheckResult], name: str
) -> None:
    assert verdicts["refused", name].reason == "passed", "it says that it got what it tried"


@pytest.mark.parametrize("name", of_kind("bounded"))
def test_what_is_there_has_a_bound(verdicts: dict[tuple[str, str], CheckResult], name: str) -> None:
    assert verdicts["bounded", name].reason == "passed", "it says that it got more"


@pytest.mark.parametrize("name", of_kind("watched"))
def test_what_has_no_bound_is_watched(
    verdicts: dict[tuple[str, str], CheckResult], name: str
) -> None:
    assert verdicts["watched", name].reason == "ended early"


def test_the_judge_has_a_part_of_the_limit() -> None:
    """What it may build of a short reply comes on top of what the code has."""
    limits = {mib: _judge_memory_mib(mib) for mib in (64, 256, 512, 1024, 8192)}
    assert limits == {64: 192, 256: 192, 512: 384, 1024: 768, 8192: 2048}
    source = "def f(x): return range(10**8)"
    assert check_asserts(source, ["assert sum(list(f(1))) == 1"], **ENOUGH).reason == "wrong answer"


def test_no_call_beyond_the_list_is_there() -> None:
    known = [numbers[ARCHITECTURES[platform.machine()].column] for numbers in CALLS.values()]
    rest = [number for number in range(1024) if number not in {*known, *OF_PROBES}]
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def there(number):
    return libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38
def function(): return [number for number in {rest} if there(number)]
"""
    asserts = ["assert function() == []"]
    assert len(rest) > 800
    assert check_asserts(source, asserts, **ENOUGH) == CheckResult(passed=True, reason="passed")


@pytest.mark.parametrize(("header", "column", "name"), HEADERS)
def test_calls_have_the_numbers_of_the_systems_headers(
    header: Path, column: int, name: str
) -> None:
    if not header.is_file():
        pytest.skip(f"no {header}")
    lines = re.findall(rf"^#define {name}\s+(\d+)$", header.read_text(), re.MULTILINE)
    numbers = {call: int(number) for call, number in lines}
    numbers |= {"newfstatat": numbers["fstatat"]} if "fstatat" in numbers else {}
    own = {call: found[column] for call, found in CALLS.items() if found[column] is not None}
    assert len(own) > 100
    # Calls newer than the header have the same number everywhere, as all from 424 on.
    newer = {call for call in own if call not in numbers}
    assert all(own[call] == CALLS[call][1] and own[call] > 424 for call in newer)
    assert {call: numbers[call] for call in own if call not in newer} == {
        call: number for call, number in own.items() if call not in newer
    }


def test_what_programs_usually_do_works() -> None:
    assert run_program(USUAL, timeout_s=30, memory_mib=1024).reason == "passed"


def test_the_watch_leaves_ordinary_programs_alone() -> None:
    files = "for n in range(2000): open(f'/tmp/{n}', 'w').write('x')\n"
    passing = "import os\nfor n in range(20000): open('/tmp/x', 'w').close(); os.unlink('/tmp/x')\n"
    for source in (files, passing, "x = bytearray(400 * 2**20)", "import time; time.sleep(0.2)"):
        assert run_program(source, **ENOUGH).reason == "passed", source


def test_a_process_that_cannot_be_seen_is_no_verdict() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        inside = Inside(process.pid, os.pidfd_open(process.pid))
        with pytest.raises(SandboxError, match="shows a user the processes"):
            Watch(inside, memory_mib=512, tmp_bytes=2**24, limit_s=0.05)
        process.kill()
        process.wait()
    began = time.monotonic()
    with Watch(inside, memory_mib=512, tmp_bytes=2**24, limit_s=60) as watch:
        assert not watch.is_over(), "it has ended"
    with Watch(None, memory_mib=512, tmp_bytes=2**24, limit_s=60) as watch:
        assert not watch.is_over()
    assert time.monotonic() - began < 10
    os.close(inside.handle)
