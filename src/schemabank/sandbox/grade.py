"""Check code that a model wrote: the public functions, and who talks to whom.

The code runs in one sandbox, the tests in another, two pipes in between. This process sees only
the judge's reason and the clock, so nothing that either of them does can reach it.
"""

import math
import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Self

from schemabank.sandbox import reasons, wire
from schemabank.sandbox.isolation import GUEST, JUDGE, Sandbox, Usage, open_pipe, require_isolation
from schemabank.sandbox.judge import BAD_TESTS, END, LONGEST_REASON, READY
from schemabank.sandbox.result import CheckResult, SandboxError
from schemabank.sandbox.watch import WATCH_EVERY_S, Watch

# Tests may make large values of small ones (`list(f(1))`, where the code returns a long range), so
# the judge has a limit, too: both processes together stay below twice the code's limit.
MIN_JUDGE_MEMORY_MIB, MAX_JUDGE_MEMORY_MIB = 192, 2048
JUDGE_MEMORY_SHARE = 0.75
START_LIMIT_S = 60.0
# The wall clock, which starts later, shall strike before the kernel's limit on processor time.
SPARE_CPU_S = 5
TESTS_JOB: dict[str, object] = {"kind": "tests", "prompt": "", "setup": ""}


def run_program(source: str, *, timeout_s: float, memory_mib: int) -> CheckResult:
    """Run a whole program; it passes by reaching its end, and by nothing else.

    Every top-level statement is sent to the sandbox by itself, after the one before has ended.

    Args:
        source: the program, untrusted.
        timeout_s: wall clock time from the moment that the sandbox is up.
        memory_mib: address space of the process that runs it.

    Raises:
        InputError: code cannot be isolated here.
        SandboxError: the sandbox failed, so there is no result.
    """
    job = {"kind": "program", "source": source}
    return _run_check(job, timeout_s=timeout_s, memory_mib=memory_mib)


def check_function(
    source: str,
    entry_point: str,
    test: str,
    *,
    timeout_s: float,
    memory_mib: int,
    prompt: str = "",
) -> CheckResult:
    """Check a function in HumanEval's form.

    Args:
        source: code that defines the function, untrusted; the prompt included.
        entry_point: the function's name.
        test: trusted source that defines ``check(candidate)``, which asserts.
        timeout_s: wall clock time from the moment that the sandboxes are up.
        memory_mib: address space of the process that runs the code.
        prompt: trusted source whose other functions the test may call; without it they are those
            of the code under test.

    Raises:
        InputError: code cannot be isolated here.
        SandboxError: the sandbox or the test failed, so there is no result.
    """
    job = TESTS_JOB | {
        "source": source,
        "tests": [test, f"check({entry_point})"],
        "entry_point": entry_point,
        "prompt": prompt,
    }
    return _run_check(job, timeout_s=timeout_s, memory_mib=memory_mib)


def check_asserts(
    source: str,
    asserts: Sequence[str],
    *,
    timeout_s: float,
    memory_mib: int,
    setup: str = "",
    entry_point: str | None = None,
) -> CheckResult:
    """Check functions in MBPP's form.

    Args:
        source: code that defines what the asserts call, untrusted.
        asserts: trusted statements, run in their order.
        timeout_s: wall clock time from the moment that the sandboxes are up.
        memory_mib: address space of the process that runs the code.
        setup: trusted source that runs after the code and before the asserts.
        entry_point: the function's name; if left out, the first name that the asserts call
            and that is not a builtin's, or the first of all.

    Raises:
        InputError: code cannot be isolated here.
        SandboxError: the sandbox or an assert failed, so there is no result.
    """
    job = TESTS_JOB | {
        "source": source,
        "tests": list(asserts),
        "entry_point": entry_point,
        "setup": setup,
    }
    return _run_check(job, timeout_s=timeout_s, memory_mib=memory_mib)


def _run_check(job: Mapping[str, object], *, timeout_s: float, memory_mib: int) -> CheckResult:
    require_isolation()
    cpu_s = math.ceil(timeout_s) + SPARE_CPU_S
    with _Check(memory_mib=memory_mib, cpu_s=cpu_s) as check:
        reason = check.reason(job, timeout_s=timeout_s)
    return CheckResult(passed=reason == reasons.PASSED, reason=reason)


class _Check:
    """The two sandboxes and the pipes of one check; leaving the context ends them all.

    Args:
        memory_mib: address space of the process that runs the code.
        cpu_s: processor time of either process.
    """

    def __init__(self, *, memory_mib: int, cpu_s: int) -> None:
        with ExitStack() as stack:
            request, reply, task, result = (_Pipe(stack) for _ in range(4))
            self._task, self._result = task.write_end, result.read_end
            guest_ends = (request.read_end, reply.write_end)
            judge_ends = (task.read_end, result.write_end, request.write_end, reply.read_end)
            given = (
                (GUEST, guest_ends, memory_mib),
                (JUDGE, judge_ends, _judge_memory_mib(memory_mib)),
            )
            self._boxes = [
                stack.enter_context(
                    Sandbox(modules, [end.fileno() for end in ends], usage=Usage(most_mib, cpu_s))
                )
                for modules, ends, most_mib in given
            ]
            # A reader learns that the writing process has ended only if no other process, this one
            # included, holds the pipe open.
            for end in (*guest_ends, *judge_ends):
                end.close()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def reason(self, job: Mapping[str, object], *, timeout_s: float) -> str:
        """Have the judge do its job, and return the reason that it gives."""
        if self._read_result(len(READY), limit_s=START_LIMIT_S) != READY:
            raise self._failure("the sandbox did not start")
        for box in self._boxes:
            box.hold()
        data = wire.to_json(job)
        with self._boxes[0].watch(START_LIMIT_S) as watch:
            with suppress(BrokenPipeError):  # then there is no reason either
                wire.write_all(self._task.fileno(), wire.HEADER.pack(len(data)) + data)
            said = self._read_result(LONGEST_REASON, limit_s=timeout_s, watch=watch)
        if said is None:
            return reasons.TIMEOUT
        reason = said.removesuffix(END).decode(errors="replace")
        if reason.startswith(BAD_TESTS):
            raise SandboxError(reason)
        if reason not in reasons.REASONS:
            raise self._failure("the judge ended without a reason")
        return reason

    def _read_result(
        self, num_bytes: int, *, limit_s: float, watch: Watch | None = None
    ) -> bytes | None:
        """Read that many bytes or up to ``END``; None if the time is over before.

        A guest that takes too much of the kernel's memory meanwhile is killed; what the judge then
        says is that it ended early.
        """
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self._result, select.POLLIN)
        got = b""
        while len(got) < num_bytes:
            left_s = max(0.0, deadline - time.monotonic())
            wait_s = left_s if watch is None else min(left_s, WATCH_EVERY_S)
            if not poll.poll(wait_s * 1000):
                if wait_s == left_s:
                    return None
                if watch is not None and watch.is_over():
                    self._boxes[0].kill()
                continue
            part = os.read(self._result.fileno(), num_bytes - len(got))
            got += part
            if not part or part.endswith(END):
                break
        return got

    def _failure(self, what: str) -> SandboxError:
        said = " ".join(filter(None, (box.stop() for box in self._boxes)))
        return SandboxError(f"{what}: {said or 'it said nothing'}")


def _judge_memory_mib(memory_mib: int) -> int:
    share = int(memory_mib * JUDGE_MEMORY_SHARE)
    return max(MIN_JUDGE_MEMORY_MIB, min(share, MAX_JUDGE_MEMORY_MIB))


class _Pipe:
    """A pipe's two ends, closed with the stack unless they are already."""

    def __init__(self, stack: ExitStack) -> None:
        reading, writing = open_pipe()
        self.read_end = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
        self.write_end = stack.enter_context(os.fdopen(writing, "wb", buffering=0))
