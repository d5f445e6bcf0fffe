"""The sandbox: references pass, wrong code fails, and what it needs is asked for.

Nothing here is skipped where bubblewrap is missing: a grader that was not tried is not trusted.
"""

import gzip
import json
import os
import platform
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hostile
from hostile import references
from hostile.references import DATA
from schemabank.common.errors import InputError
from schemabank.sandbox import (
    REASONS,
    CheckResult,
    SandboxError,
    check_asserts,
    check_function,
    isolation,
    require_isolation,
    run_program,
    seccomp,
)
from schemabank.sandbox.grade import _Check

ENOUGH = {"timeout_s": 30.0, "memory_mib": 1024}


def test_right_and_wrong() -> None:
    check = partial(check_function, entry_point="sort_numbers", test=hostile.SORT_TEST, **ENOUGH)
    right = "def sort_numbers(numbers): return sorted(numbers)"
    assert check(right) == check(right) == CheckResult(passed=True, reason="passed")
    for source, reason in {
        "def sort_numbers(numbers): return numbers": "wrong answer",
        "def sort_numbers(numbers): pass": "wrong answer",
        "def sort_numbers(numbers): return tuple(sorted(numbers))": "wrong answer",
        "def sort_numbers(numbers): return numbers[99]": "exception",
        "def sort_numbers(numbers): assert False": "exception",
        "raise ValueError": "exception",
        "def sort_numbers(numbers:": "syntax error",
        "return 1": "syntax error",
        "\0": "syntax error",
        "def other(numbers): return sorted(numbers)": "missing function",
        "import os; os.abort()": "ended early",
    }.items():
        assert check(source) == CheckResult(passed=False, reason=reason), source
        assert reason in REASONS
    assert check(source) == CheckResult(passed=False, reason=reason), "the last one, once more"


@pytest.mark.alone
def test_a_loop_without_end_is_timed_out() -> None:
    began = time.monotonic()
    for source in ("while True: pass", "def sort_numbers(numbers):\n    while True: pass"):
        verdict = check_function(
            source, "sort_numbers", hostile.SORT_TEST, timeout_s=0.5, memory_mib=512
        )
        assert verdict.reason == "timeout"
    assert run_program("while True: pass", timeout_s=0.5, memory_mib=512).reason == "timeout"
    assert time.monotonic() - began < 15


def test_a_program_passes_only_by_reaching_its_end() -> None:
    run = partial(run_program, **ENOUGH)
    assert run("").passed
    assert run("x = 1; y = 2\nassert x + y == 3  # the end").passed
    assert run("if __name__ == '__main__':\n    pass\nelse:\n    raise ValueError").passed
    assert run("x = '''\n\r\nä''' ; y = 'ü'; assert y == 'ü'\r\nassert len(x) == 3").passed
    assert run("x = 1; \\\ny = 2\nassert (x, y) == (1, 2)").passed
    assert run("import io, sys; sys.stdout.write('x'); assert sys.stdin.read() == ''").passed
    future = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    assert run(f"{future}@dataclass\nclass A:\n    b: Unknown\nassert A(1) == A(1)").passed
    assert run("x = 1\nassert x == 2").reason == "exception"
    assert run("x = 1\n  y = 2").reason == "syntax error"
    assert run("import sys\nsys.exit(0)\n").reason == "ended early"
    assert run("import sys\nif True:\n    sys.exit()").reason == "ended early"


def test_a_test_cannot_swallow_a_broken_protocol() -> None:
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except:\n        pass"
    source = "def f(x): return 'x' * 2**21"
    verdict = check_function(source, "f", test, timeout_s=10, memory_mib=512)
    assert verdict.reason == "reply too large"


@pytest.mark.alone
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_of_the_caller_that_holds_the_pipes_delays_nothing() -> None:
    """Workers that are forked during a check inherit its pipes and keep them open."""
    sleepers: list[int] = []

    def fork(self: _Check, *args: object, **options: object) -> str:
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        sleepers.append(child)
        return reason(self, *args, **options)

    reason = _Check.reason
    began = time.monotonic()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Check, "reason", fork)
            verdict = check_asserts(
                "def f(x): return x", ["assert f(1) == 1"], timeout_s=8, memory_mib=512
            )
    finally:
        for child in sleepers:
            os.kill(child, 9)
            os.waitpid(child, 0)
    assert sleepers
    assert verdict.passed
    assert time.monotonic() - began < 8


def test_a_byte_order_mark_begins_a_program() -> None:
    assert run_program("\ufeffx = 1\nassert x == 1\n", timeout_s=10, memory_mib=512).passed


def test_a_function_may_have_a_builtins_name() -> None:
    source = "def sum(a, b): return a + b"
    assert check_asserts(source, ["assert sum(1, 2) == 3"], **ENOUGH).passed
    assert not check_asserts(source, ["assert sum(1, 2) == 4"], **ENOUGH).passed
    # But a builtin that the tests use as a tool is never the code's.
    swapped = "def f(x): return 7\ndef abs(x): return 0\nmath = sorted = abs"
    for test in ("abs(f(1) - 1) < 1e-6", "math.fabs(f(1)) < 1", "sorted([f(1)]) == [1]"):
        assert not check_asserts(swapped, [f"assert {test}"], **ENOUGH).passed


@pytest.mark.parametrize(
    ("sources", "tests"),
    [
        ("def f(x): return x", ["assert f(1) =="]),
        ("def f(x): return x", ["assert 1 == 1"]),
        ("def f(x): return x", ["assert f(open)"]),
    ],
)
def test_tests_that_cannot_be_run_are_no_verdict(sources: str, tests: list[str]) -> None:
    with pytest.raises(SandboxError, match="bad tests"):
        check_asserts(sources, tests, **ENOUGH)


def test_the_code_sees_next_to_nothing() -> None:
    source = """
import glob, os, sys
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
def num_descriptors(): return sum(map(is_open, range(1024)))
def num_packages(): return len(glob.glob(sys.base_prefix + "/lib/python3*/*-packages/*"))
def ids(): return os.getuid(), os.getgid(), os.getgroups()
def environment(): return dict(os.environ)
def top(): return set(os.listdir("/")) - {"usr", "bin", "lib", "lib32", "lib64", "libx32", "nix"}
"""
    asserts = [
        "assert num_descriptors() == 5",  # three that lead nowhere and the pipe
        "assert num_packages() == 0",
        "assert ids() == (65534, 65534, [])",
        "assert set(environment()) <= {'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}",
        f"assert top() <= {{'dev', 'etc', 'sandbox', 'tmp', {Path(sys.base_prefix).parts[1]!r}}}",
    ]
    for line in asserts:
        assert check_asserts(source, [line], **ENOUGH) == CheckResult(
            passed=True, reason="passed"
        ), line


def test_memory_is_limited() -> None:
    source = "x = bytearray(200 * 2**20)"
    assert run_program(source, timeout_s=30, memory_mib=1024).passed
    assert run_program(source, timeout_s=30, memory_mib=128).reason == "exception"


needs_data = pytest.mark.skipif(
    not (DATA / "humaneval").is_dir(), reason=f"the real data is not in {DATA}"
)


def some(step: int) -> pytest.MarkDecorator:
    """Each goes the same way through the sandbox: few of them, and all in ``make soak``."""
    return pytest.mark.parametrize("step", [step, pytest.param(1, marks=pytest.mark.soak)])


@needs_data
@some(5)
def test_references_of_humaneval_pass(step: int) -> None:
    rows = references.humaneval()
    assert len(rows) == 164
    assert references.failures(references.check_humaneval, rows[::step]) == {}


@needs_data
@some(15)
def test_references_of_sanitized_mbpp_pass(step: int) -> None:
    rows = references.sanitized_mbpp()
    assert len(rows) == 427
    assert references.failures(references.check_sanitized_mbpp, rows[::step]) == {}


@needs_data
def test_the_hard_references_of_full_mbpp_pass() -> None:
    def check(row: dict[str, Any]) -> CheckResult:
        asserts = row["test_list"] + row["challenge_test_list"]
        return check_asserts(row["code"], asserts, setup=row["test_setup_code"], **ENOUGH)

    with gzip.open(DATA / "mbpp" / "mbpp.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    # Objects made by the setup, a class and a type as arguments, a builtin's name, a module.
    hard = [row for row in rows if row["task_id"] in {367, 927, 601, 533, 126, 596}]
    assert references.failures(check, hard) == {}


@needs_data
@pytest.mark.parametrize(
    ("number", "source"),
    [
        (32, "def poly(xs, x): return 0\ndef find_zero(xs): return 0"),
        (38, "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"),
        (50, "def encode_shift(s): return s\ndef decode_shift(s): return s"),
    ],
)
def test_helpers_of_the_prompt_are_not_the_codes(number: int, source: str) -> None:
    row = references.humaneval()[number]
    check = partial(check_function, source, row["entry_point"], row["test"], **ENOUGH)
    assert check(prompt=row["prompt"]).reason == "wrong answer"
    # What giving the prompt is for.
    assert check().passed


def test_the_page_names_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE) == list(REASONS)


def test_missing_bubblewrap_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (require_isolation, partial(run_program, "", **ENOUGH)):
        with pytest.raises(InputError, match="make sandbox"):
            call()


def test_a_system_that_refuses_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.write_text("#!/bin/sh\necho 'No permissions to create namespace' >&2\nexit 1\n")
    bubblewrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"No permissions.*make sandbox.*user namespaces"):
        require_isolation()
    # Once found able, a sandbox that then fails is the machinery's failure, not the code's.
    monkeypatch.setattr(isolation, "_probe", lambda _: None)
    with pytest.raises(SandboxError, match=r"did not start.*No permissions"):
        run_program("", **ENOUGH)


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    monkeypatch.setattr(isolation, "_probe", isolation._probe.__wrapped__)
    with pytest.raises(InputError, match=r"'vax'.*x86_64"):
        require_isolation()


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_filters_are_whole(machine: str) -> None:
    program = seccomp.call_filter(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # the kernel's limit
