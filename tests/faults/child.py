"""A process of its own for one task, forked from one that has imported everything.

It leads a process group, so that a kill meets all that it started, as a batch system's does.
"""

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_END_S = 20.0  # of a process that was killed; a GPU's driver takes seconds
ENDED = "ZX"  # states of processes, as /proc tells them
LONGEST_S = 300.0  # of any program here; a task that takes longer hangs
OUTPUT = "said"


@dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        said: what it wrote to both outputs.
        left: who of its group goes on, as commands; nobody should.
    """

    code: int
    said: str
    left: tuple[str, ...]


def run(
    task: Callable[[], None],
    folder: Path,
    *,
    kill_after_s: float | None = None,
    kill_since: Path | None = None,
    longest_s: float = LONGEST_S,
) -> Ended:
    """Fork, do a task, and wait for its end, which may be a kill of its group from here.

    Args:
        task: what it does; what it raises ends it as a program.
        folder: gets its output.
        kill_after_s: when its process group is killed; ``None``: never.
        kill_since: a file from whose beginning on that counts; ``None``: from the start.
        longest_s: after which it is killed, too, and counts as one that hangs.
    """
    output = folder / f"{OUTPUT}-{os.getpid()}"
    pid = os.fork()
    if pid == 0:
        _do(task, output)
    return watched(
        pid, output, kill_after_s=kill_after_s, longest_s=longest_s, kill_since=kill_since
    )


def watched(
    pid: int,
    output: Path,
    *,
    kill_after_s: float | None,
    longest_s: float,
    kill_since: Path | None = None,
) -> Ended:
    """Wait for the end of a child that leads a group, and kill the group when it is time."""
    began = work_began = time.monotonic()
    killed = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        passed = time.monotonic() - began
        if passed > longest_s:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a program hangs: {output.read_text()[-2000:]}")
        if kill_since is not None and not kill_since.exists():
            work_began = time.monotonic()
        worked_s = time.monotonic() - work_began
        if kill_after_s is not None and worked_s >= kill_after_s and not killed:
            os.killpg(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    said = output.read_text(errors="replace") if output.exists() else ""
    output.unlink(missing_ok=True)
    return Ended(code, said, left_of(pid))


def left_of(group: int, wait_s: float = LONGEST_END_S) -> tuple[str, ...]:
    """Who of a process group still goes on; its last ones may be on their way out.

    A zombie is none of them: it has ended, and waits for a parent that asks how. Where the first
    process of a machine never asks, zombies stay, and signals still find them.
    """
    until = time.monotonic() + wait_s
    while left := tuple(_running(group)):
        if time.monotonic() > until:
            return left
        time.sleep(0.002)
    return ()


def _running(group: int) -> Iterator[str]:
    """The commands of the processes of a group that have not ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command, _, rest = (place / "stat").read_text().rpartition(")")
        except OSError:  # it has ended just now
            continue
        state, _, own_group = rest.split()[:3]
        if int(own_group) == group and state not in ENDED:
            yield f"{command}) {state}"


def _do(task: Callable[[], None], output: Path) -> None:
    """Do a task in the child, which ends here."""
    code = 1
    try:
        os.setsid()
        gc.freeze()  # what was imported is no garbage
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        empty = os.open(os.devnull, os.O_RDONLY)
        for ours, standard in ((empty, 0), (file, 1), (file, 2)):
            os.dup2(ours, standard)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        task()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
