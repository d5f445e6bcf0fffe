import os
import signal
import sys
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.launch import worker
from schemabank.launch.messages import Sender
from schemabank.launch.worker import work_on
from schemabank.runs.launched import Launched


def test_a_worker_is_told_whom_it_ends_with() -> None:
    found = worker.command(Path("a b"), 7, Launched("gpus", 2), speaks=True)
    program, words = [sys.executable, "-m", "schemabank.launch"], ["a b", "7", "gpus", "2"]
    assert found == [*program, *words, "--speaks"]
    assert worker.command(Path("a b"), 7, Launched("gpus", 2), speaks=False) == found[:-1]


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


def test_a_worker_has_nothing_to_do_on_a_round_that_was_removed_before_it_came(
    tmp_path: Path,
) -> None:
    work_on(tmp_path / "gone-1", Sender(None, speaks=False), launched=Launched())
    (tmp_path / "here-1").mkdir()
    with pytest.raises(InputError, match=r"round\.json"):
        work_on(tmp_path / "here-1", Sender(None, speaks=False), launched=Launched())
