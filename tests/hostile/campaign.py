"""Runs hostile programs one after the other, and looks at what each left and took.

Three things are looked at: what the sandbox said, which processes are there afterwards, and how
much memory the machine lost meanwhile (``meter.py``). Orphans come to this process, not to the
system's first, so none is missed and none of others is counted.
"""

import ctypes
import hashlib
import os
import pwd
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import hostile
from hostile import kernelmemory
from hostile.meter import Meter
from schemabank.sandbox import CheckResult, SandboxError, check_asserts, check_function, run_program

TESTS = Path(__file__).parents[1]
TIMEOUT_S, MEMORY_MIB, TRIES = 3.0, 512, 3
# How a program is put to the sandbox.
FUNCTION, PROGRAM, KERNEL, UNFOLDED = "function", "program", "kernel", "unfolded"
# Within one process these can say whatever would report the end: docs/sandbox.md, "The limit".
NO_PROGRAMS = ("equal objects", "taking over")
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Case:
    """A hostile program and how it is run."""

    kind: str
    name: str
    form: str


@dataclass(frozen=True)
class World:
    """What hostile programs reach for."""

    outside: Path
    server: socket.socket
    abstract: str

    def source(self, case: Case) -> str:
        """The program, with the names of what it reaches for."""
        text = programs()[case.kind][case.name]
        port = self.server.getsockname()[1]
        marks = {"outside": self.outside, "port": port, "tests": TESTS, "socket": self.abstract}
        marks["homes"] = sorted({pwd.getpwuid(0).pw_dir, str(Path.home())})
        for mark, value in marks.items():
            text = text.replace("{" + mark + "}", str(value))
        return text

    def harm(self) -> list[str]:
        """What somebody has done to it."""
        kept = {path.name: path.read_text(encoding="utf-8") for path in self.outside.iterdir()}
        found = [] if kept == {"secret.txt": "secret"} else [f"files outside: {sorted(kept)}"]
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return found
        return [*found, "a connection"]


def programs() -> Mapping[str, Mapping[str, str]]:
    """All that are no programs against the kernel's memory, by kind."""
    return {**hostile.PROGRAMS, UNFOLDED: hostile.UNFOLDED}


def cases() -> list[Case]:
    """All cases: every program as a function, and most as whole programs, too."""
    found = [Case(kind, name, FUNCTION) for kind, own in hostile.PROGRAMS.items() for name in own]
    found += [Case(c.kind, c.name, PROGRAM) for c in found if c.kind not in NO_PROGRAMS]
    found += [Case(UNFOLDED, name, UNFOLDED) for name in hostile.UNFOLDED]
    found += [
        Case(kind, name, KERNEL) for kind, own in kernelmemory.PROGRAMS.items() for name in own
    ]
    return found


def digest() -> str:
    """Of all programs: a record of others is stale."""
    own = [TESTS.joinpath("hostile", f"{name}.py").read_bytes() for name in (
        "exhausting", "forging", "kernelmemory", "leaving", "parts", "reaching", "staying",
        "tampering",
    )]  # fmt: skip
    return hashlib.sha256(b"".join(own)).hexdigest()[:16]


@contextmanager
def world(outside: Path) -> Iterator[World]:
    """Lay out what hostile programs reach for, in an empty folder."""
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    os.environ["SCHEMABANK_SECRET"] = "secret"  # noqa: S105 -- what programs look for
    abstract = f"schemabank-{os.getpid()}-{outside.name}"
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            unix.bind(f"\0{abstract}")
            unix.listen()
            server.setblocking(False)
            yield World(outside, server, abstract)
    finally:
        os.environ.pop("SCHEMABANK_SECRET", None)


def verdict(case: Case, there: World, *, timeout_s: float = TIMEOUT_S) -> CheckResult:
    """Run a case in the sandbox.

    Raises:
        SandboxError: the sandbox failed, which no program may bring about.
    """
    limits = {"timeout_s": timeout_s, "memory_mib": MEMORY_MIB}
    if case.form == KERNEL:
        source = kernelmemory.source(case.kind, case.name)
        limits["timeout_s"] = max(timeout_s, 20.0)  # it says itself what it got
        return check_asserts(source, ["assert function() is False"], **limits)
    source = there.source(case)
    if case.form == PROGRAM:
        return run_program("\n".join([source, *hostile.SORT_ASSERTS]), **limits)
    if case.form == UNFOLDED:
        return check_asserts(source, hostile.UNFOLDED_ASSERTS, **limits)
    return check_function(source, "sort_numbers", hostile.SORT_TEST, **limits)


def is_contained(case: Case, reason: str) -> bool:
    """Whether the reason says that the program got nothing."""
    if case.form != KERNEL:
        return reason not in {"passed", "error"}
    # Those that look themselves what they got pass where that is nothing.
    return reason == ("ended early" if case.kind == "watched" else "passed")


def tried(case: Case, there: World, meter: Meter) -> dict[str, object]:
    """Run a case and return its row.

    A number that is too large is measured again: another program's memory may be in it, or a file's
    that the kernel has not yet told from others.
    """
    adopt_orphans()
    rows = [_tried_once(case, there, meter)]
    while float(str(rows[-1]["memory_mib"])) > 2 * MEMORY_MIB and len(rows) < TRIES:
        rows.append(_tried_once(case, there, meter))
    return min(rows, key=lambda row: float(str(row["memory_mib"])))


def _tried_once(case: Case, there: World, meter: Meter) -> dict[str, object]:
    began = time.monotonic()
    with meter.measured() as memory:
        try:
            reason = verdict(case, there).reason
            said = ""
        except SandboxError as error:
            reason, said = "error", str(error)
    row: dict[str, object] = asdict(case) | {"reason": reason, "took_s": time.monotonic() - began}
    row |= {"contained": is_contained(case, reason), "survivors": survivors()}
    return row | {"memory_mib": memory.most_mib, "harm": there.harm(), "said": said}


def adopt_orphans() -> None:
    """Have every process whose parent ends come to this one."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this process cannot adopt orphans")


def survivors() -> list[str]:
    """Processes that this one has below it, also dead ones that nobody has reaped."""
    return [f"{p.pid} {p.name()}" for p in psutil.Process().children(recursive=True)]


def sample(every: Sequence[Case]) -> list[Case]:
    """A fair part for `make test`: of every kind and form each fifth, and at least two."""
    kinds = dict.fromkeys((case.kind, case.form) for case in every)
    groups = [[c for c in every if (c.kind, c.form) == kind] for kind in kinds]
    return [case for group in groups for case in group[:: max(1, min(5, len(group) // 2))]]
