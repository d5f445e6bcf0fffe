import os
import signal
import sys
from pathlib import Path

import pytest

from schemabank.launch import worker


def test_a_worker_is_told_whom_it_ends_with() -> None:
    found = worker.command(Path("a b"), 7, speaks=True)
    assert found == [sys.executable, "-m", "schemabank.launch.worker", "a b", "7", "--speaks"]
    assert worker.command(Path("a b"), 7, speaks=False) == found[:-1]


def test_a_worker_ends_as_by_sigterm_when_the_process_that_started_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[int, int]] = []
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
    monkeypatch.setattr(worker, "PAUSE_S", 0.0)
    worker._end_with(7)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert list(parents) == []
