"""The program in processes of its own that import nothing first.

Importing torch, transformers and PEFT takes longer than a tiny program then does. One more process
imports them, does nothing else, and is forked for every program.
"""

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Protocol

from schemabank.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "schemabank.suites.execution",
        "transformers.models.llama.modeling_llama",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
    ]
)


class _Sent(Protocol):
    def detach(self) -> int: ...


class _File:
    """A file descriptor that arrives in the other process as one of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[..., int], tuple[object]]:
        return _arrived, (DupFd(self._descriptor),)


def started(
    arguments: Sequence[str], environment: Mapping[str, str], *, stdout: int, stderr: int
) -> ForkServerProcess:
    """Start ``schemabank``, with an empty stdin.

    Args:
        arguments: of the command line.
        environment: all of it.
        stdout: a file descriptor that stays the caller's, as is ``stderr``.
    """
    return forked(_program, list(arguments), environment=environment, stdout=stdout, stderr=stderr)


def forked(
    function: Callable[..., None],
    *arguments: object,
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
) -> ForkServerProcess:
    """Start a process that calls a function of a module, as :func:`started` does the program."""
    files = _File(stdout), _File(stderr)
    process = _CONTEXT.Process(
        target=_call, args=(function, arguments, dict(environment), *files), daemon=True
    )
    process.start()
    return process


def printed_by(arguments: Sequence[str]) -> str:
    """Run ``schemabank`` in this environment to its end, which has to be a good one."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = started(arguments, os.environ, stdout=out.fileno(), stderr=err.fileno())
        process.join()
        for file in (out, err):
            file.seek(0)
        assert process.exitcode == 0, err.read().decode()
        return out.read().decode()


def _program(arguments: list[str]) -> None:
    sys.argv = ["schemabank", *arguments]
    main()


def _call(
    function: Callable[..., None],
    arguments: Sequence[object],
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
) -> None:
    gc.freeze()  # what was imported is no garbage
    os.environ.clear()
    os.environ.update(environment)
    stdin = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    # A shell's background jobs ignore SIGINT, and their children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)


def _arrived(file: _Sent) -> int:
    return file.detach()
