"""Runs the tests, in a process and sandbox of its own: the code under test is on another's pipe.

Names that the tests leave open are functions of the code: each becomes a stand-in whose calls go
through the pipe. Builtins, modules of the standard library and whatever the trusted prompt defines
are never taken from the code, so it cannot swap the tools that judge it.
"""

import ast
import builtins
import importlib
import os
import random
import sys
from collections.abc import Iterable
from typing import Any, cast

from schemabank.sandbox import reasons, wire
from schemabank.sandbox.limits import apply_limits
from schemabank.sandbox.remote import CheckEnded, RemoteGuest, UnsendableError

READY = b"R"
BAD_TESTS = "bad tests: "
END, LONGEST_REASON = b"\n", 2**12  # the caller does not wait for the end of its pipe


def main() -> None:
    """Judge one job, read from and answered on the descriptors named on the command line."""
    job_fd, result_fd, requests, replies, memory_mib, cpu_s = map(int, sys.argv[1:7])
    apply_limits(memory_mib=memory_mib, cpu_s=cpu_s)
    random.seed(0)  # some tests draw inputs; the same code gets the same result
    guest = RemoteGuest(requests, replies)
    guest.ask("end")
    wire.write_all(result_fd, READY)
    (length,) = wire.HEADER.unpack(wire.read_exactly(job_fd, wire.HEADER.size))
    job = cast("dict[str, Any]", wire.from_json(wire.read_exactly(job_fd, length)))
    said = " ".join(judge(guest, job).split()).encode()
    wire.write_all(result_fd, said[: LONGEST_REASON - 1] + END)


def judge(guest: RemoteGuest, job: dict[str, Any]) -> str:
    """Return the reason for the result, or :data:`BAD_TESTS` and what is wrong with them."""
    try:
        reason = _run_statements(guest, job) if job["kind"] == "program" else _run_tests(guest, job)
        if reason == reasons.PASSED:
            # Bytes that the code wrote after its last reply stand before the reply to this.
            guest.ask("end")
    except CheckEnded as ended:
        return ended.reason
    except UnsendableError as error:
        return f"{BAD_TESTS}{error}"
    except Exception as error:
        if error is guest.raised:
            return reasons.EXCEPTION
        raise
    return reason


def _run_statements(guest: RemoteGuest, job: dict[str, Any]) -> str:
    """Run a program statement by statement; none is sent before the one before it has ended."""
    try:
        statements = list(_statements(job["source"]))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return reasons.SYNTAX
    guest.ask("start", "__main__")
    if not all(guest.ask("run", statement) is True for statement in statements):
        return reasons.SYNTAX
    return reasons.PASSED if _still_runs(guest) else reasons.PROTOCOL


def _still_runs(guest: RemoteGuest) -> bool:
    """Whether the guest still does what it is told, rather than only saying so."""
    first, second = (int.from_bytes(os.urandom(7)) for _ in range(2))
    try:
        guest.ask("run", f"assert {first} == {second}")
    except AssertionError:
        name = f"_{first}"
        guest.ask("run", f"{name} = {first} + {second}")
        return guest.ask("find", [name]) == {name: first + second}
    return False


def _statements(source: str) -> Iterable[str]:
    """Every top-level statement's text, after as many line breaks as keep its line numbers."""
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    tree = ast.parse(source)
    # Finds what the parser lets through, such as a return outside of any function.
    compile(tree, "program.py", "exec", dont_inherit=True)
    lines = [line.encode() for line in source.split("\n")]
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        last = node.end_lineno or node.lineno
        text = lines[first - 1 : last]
        text[-1] = text[-1][: node.end_col_offset]
        text[0] = text[0][node.col_offset :]
        yield "\n" * (first - 1) + b"\n".join(text).decode()


def _run_tests(guest: RemoteGuest, job: dict[str, Any]) -> str:
    try:
        texts = [job["setup"], *job["tests"]]
        tests = [compile(text, "tests.py", "exec") for text in texts]
        called = job["entry_point"] or _first_called(job["tests"])
        known: dict[str, object] = {"__name__": "tests"}
        exec(compile(job["prompt"], "prompt.py", "exec"), known)  # noqa: S102 -- trusted
        known.pop(called, None)  # the prompt only announces it
        wanted = _open_names(texts) - known.keys() | {called}
    except (SyntaxError, ValueError) as error:
        return f"{BAD_TESTS}{error}"
    known.update(_library_modules(wanted - {called}))
    guest.ask("start", "solution")
    if guest.ask("run", job["source"]) is not True:
        return reasons.SYNTAX
    known.update(_find_in_code(guest, wanted - known.keys() | {called}))
    if called not in known:
        return reasons.MISSING
    return _run_asserts(guest, tests, known)


def _run_asserts(guest: RemoteGuest, tests: Iterable[Any], known: dict[str, object]) -> str:
    try:
        for test in tests:
            exec(test, known)  # noqa: S102 -- the tests are trusted, and this process is confined
    except (CheckEnded, UnsendableError):
        raise
    except BaseException as error:  # whatever a test raises, it did not pass
        return reasons.EXCEPTION if error is guest.raised else reasons.WRONG
    return reasons.PASSED


def _find_in_code(guest: RemoteGuest, names: set[str]) -> dict[str, object]:
    """What the code defines of these names."""
    found = guest.ask("find", sorted(names))
    # Of exactly this class: an object for a name would be asked for its hash again.
    if type(found) is not dict or any(type(n) is not str or n not in names for n in found):
        raise CheckEnded(reasons.PROTOCOL)
    return found


def _library_modules(names: set[str]) -> dict[str, object]:
    """Modules that the tests use without importing them, from the judge's own library."""
    return {name: importlib.import_module(name) for name in names & sys.stdlib_module_names}


def _open_names(texts: Iterable[str]) -> set[str]:
    """Names that some text reads and none binds, builtins aside."""
    read, bound = set(), set(dir(builtins))
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        match node:
            case ast.Name(name, ast.Load()):
                read.add(name)
            case ast.Name(name) | ast.arg(name):
                bound.add(name)
            case ast.FunctionDef(name) | ast.ClassDef(name):
                bound.add(name)
            case ast.alias(name, alias):
                bound.add(alias or name.partition(".")[0])
    return read - bound


def _first_called(texts: Iterable[str]) -> str:
    """The function under test where no name is given: the first that tests call, builtins last.

    A test such as ``assert sum(10, 15) == 6`` calls nothing but the builtin's namesake.
    """
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    calls = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    if not calls:
        raise ValueError("they call no function")
    return next((name for name in calls if not hasattr(builtins, name)), calls[0])
