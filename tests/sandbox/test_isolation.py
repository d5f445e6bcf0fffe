"""Starting and ending a sandbox, whatever the caller is like: nothing is left, nothing hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from schemabank.sandbox import SandboxError, isolation
from schemabank.sandbox.isolation import Sandbox, Usage

LIMITS = Usage(memory_mib=512, cpu_s=60)
IMPORTS = "import ctypes, psutil, signal\nfrom schemabank.sandbox import *\n"
ECHO = "check_asserts('def f(x): return x', ['assert f(1) == 1'], timeout_s=30, memory_mib=512)"
# A bubblewrap that tells of its child, or of a stranger, and takes no notice when that one ends.
DEAF = """#!/usr/bin/env python3
import os, subprocess, sys, time
told = os.environ.get("STRANGER") or subprocess.Popen(["sleep", "600"]).pid
fd = int(sys.argv[sys.argv.index("--info-fd") + 1])
os.write(fd, b'{"child-pid": %d}' % int(told))
time.sleep(600)
"""


def said(program: str, *shell: str) -> str:
    """What a caller of its own prints, started by a shell command if one is given."""
    command = [*shell, sys.executable, "-c", IMPORTS + program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text(DEAF)
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(isolation, "STOP_LIMIT_S", 2)


def test_nothing_is_left_for_the_systems_first_process_to_reap() -> None:
    """In a container that one may reap nothing, and every entry counts against a limit."""
    sources = (
        "def f(x): return x",
        "raise SystemExit",
        "while True: pass",
        "import os; os.abort()",
    )
    program = "ctypes.CDLL(None).prctl(36, 1)  # take the system's place\n"
    program += f"for source in {sources!r}:\n"
    program += "    check_asserts(source, ['assert f(1) == 1'], timeout_s=1, memory_mib=512)\n"
    program += "print(psutil.Process().children(recursive=True))"
    assert said(program) == "[]\n"


@pytest.mark.parametrize(
    "source",
    ["while True: pass", "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); time.sleep(600)"],
)
def test_the_sandbox_dies_with_its_caller(source: str) -> None:
    program = f"run_program({source!r}, timeout_s=600, memory_mib=512)"
    caller = subprocess.Popen([sys.executable, "-c", IMPORTS + program])
    deadline = time.monotonic() + 60
    inside: list[psutil.Process] = []
    # Each of the two sandboxes is bubblewrap outside, and Python.
    while len(inside) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
        inside = psutil.Process(caller.pid).children(recursive=True)
    time.sleep(1)
    end(caller)
    assert len(inside) == 4
    _, alive = psutil.wait_procs(inside, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_the_limit_on_processor_time_needs_no_caller() -> None:
    """The first process of a namespace ignores signals of its own, but not this one."""
    code = "import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))\nwhile True: pass"
    status, told = os.pipe()
    process = isolation._start_inside([*isolation._python_command(), "-c", code], (), (), told)
    os.close(told)
    assert process.wait(30) == 128 + signal.SIGKILL
    os.close(status)
    assert process.stderr is not None
    process.stderr.close()


def test_an_ignored_sigchld_is_refused() -> None:
    """Bubblewrap would inherit that, and wait for ever."""
    program = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    program += f"try: {ECHO}\nexcept Exception as error: print(type(error).__name__, error)"
    assert said(program).startswith("InputError SIGCHLD is ignored")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_the_caller_may_have_closed_its_standard_streams(closed: str, tmp_path: Path) -> None:
    program = f"open({str(tmp_path / 'said')!r}, 'w').write({ECHO}.reason)"
    said(program, "sh", "-c", f'exec "$@" {closed}', "sh")
    assert (tmp_path / "said").read_text() == "passed"


@pytest.mark.usefixtures("deaf")
def test_a_bubblewrap_that_does_not_end_is_killed() -> None:
    box = Sandbox(("limits.py",), (), usage=LIMITS)
    box.hold()
    (inside,) = psutil.Process(box._process.pid).children()
    box.stop()
    assert box.wait(0) == -signal.SIGKILL
    assert not inside.is_running() or inside.status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("deaf")
def test_the_process_inside_is_killed_even_if_bubblewrap_is_gone() -> None:
    box = Sandbox(("limits.py",), (), usage=LIMITS)
    box.hold()
    (inside,) = psutil.Process(box._process.pid).children()
    end(box._process)
    box.stop()
    _, alive = psutil.wait_procs([inside], timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.usefixtures("deaf")
def test_whoever_has_a_dead_processs_number_now_is_not_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    monkeypatch.setenv("STRANGER", str(stranger.pid))
    box = Sandbox(("limits.py",), (), usage=LIMITS)
    box.stop()
    assert box.wait(0) == -signal.SIGKILL
    assert stranger.poll() is None
    end(stranger)


def test_what_cannot_be_killed_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def expire(limit_s: float) -> int:
        raise subprocess.TimeoutExpired("bwrap", limit_s)

    box = Sandbox(("limits.py",), (), usage=LIMITS)
    with monkeypatch.context() as patch:
        patch.setattr(box._process, "wait", expire)
        with pytest.raises(SandboxError, match="does not end"):
            box.stop()
    box._process.wait(30)
