"""Worker processes that come to harm in the middle of a unit, forked from one that has imported.

The first claim of any worker is noted, and the harm is done at a step of it, once.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from programs import forked
from schemabank.launch import worker
from schemabank.runs import checkpointing
from schemabank.runs.checkpointing import Checkpoints

HARM = "HARM"  # folder of marks, one for each harm that was done
AT_STEP = 4
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def harmed_worker(arguments: Sequence[str]) -> None:
    """Work with a checkpoint at every step, until a signal comes that is still to be sent."""
    is_due, steps = Checkpoints.is_due, 0

    def harming(own: Checkpoints) -> bool:
        nonlocal steps
        steps += 1
        if own._writing is not None:
            own._writing.exception()
        if steps == AT_STEP:
            for name, number in SIGNALS.items():
                mark = Path(os.environ[HARM]) / name
                try:
                    mark.touch(exist_ok=False)
                except FileExistsError:
                    continue
                mark.with_suffix(".pid").write_text(str(os.getpid()))
                os.kill(os.getpid(), number)
                time.sleep(0.1)  # one that goes on again hears first that it has lost its lease
                break
        return is_due(own)

    Checkpoints.is_due = harming  # type: ignore[method-assign] -- this process is ours
    checkpointing.how_often = lambda _: (None, 1)
    _, folder, _, *others = arguments
    sys.argv = ["worker", folder, str(os.getppid()), *others]
    worker.main()


class Forked:
    """What stands in for ``subprocess.Popen``: the same worker, without seconds of imports."""

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str], stderr: TextIO, **_: object
    ) -> None:
        ours, theirs = os.pipe()
        self._process = forked(
            harmed_worker,
            list(arguments[2:]),
            environment=env,
            stdout=theirs,
            stderr=stderr.fileno(),
        )
        os.close(theirs)
        self.stdout = os.fdopen(ours, encoding="utf-8")
        self.kill, self.terminate = self._process.kill, self._process.terminate

    def poll(self) -> int | None:
        """Return the exit code as Popen does."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait as Popen does."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self._process.exitcode
