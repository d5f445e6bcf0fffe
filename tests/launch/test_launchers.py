import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harmed import HARM, Forked
from schemabank.common.errors import InputError
from schemabank.launch import crew
from schemabank.launch.launchers import Workers, launcher
from schemabank.launch.rounds import ROUNDS, WORK, Round
from schemabank.runs.experiment import run_all
from schemabank.suites.execution import SuiteOutcome, run_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, snapshot
from tinysuites import ran, tiny

LEASE_S = 4.0
TAKEN_OVER = "takes over"
SHORT = {"train": {"num_train_epochs": 1, "learning_rate": 1e-2}}


class Waking(Notes):
    """Notes that let a stopped worker go on as soon as another has its work.

    The work of one that was killed is free at once, and is taken over first.
    """

    def __init__(self, harm: Path) -> None:
        super().__init__()
        self._stopped = harm / "stopped.pid"

    def note(self, text: str) -> None:
        super().note(text)
        if TAKEN_OVER in text and sum(TAKEN_OVER in line for line in self.lines) == 2:
            os.kill(int(self._stopped.read_text()), signal.SIGCONT)


def records(folder: Path) -> dict[str, str]:
    """Digests of all files of finished runs, but of what they cost."""
    return {name: kept for name, (_, kept) in snapshot(folder).items() if "cost.json" not in name}


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Marks of the harm that was done; with one of its name there, it is not done."""
    (tmp_path / "harm").mkdir()
    monkeypatch.setenv(HARM, str(tmp_path / "harm"))
    monkeypatch.setattr(crew.subprocess, "Popen", Forked)
    return tmp_path / "harm"


def shared(path: Path, out: Path, notes: Notes, *, num_workers: int = 2) -> SuiteOutcome:
    workers = Workers([{}] * num_workers, lease_s=LEASE_S)
    return run_suite(load_suite(path), out, notes, launcher=workers)


def claims(out: Path) -> list[int]:
    """How often each unit was claimed, the last round's."""
    units = [path for path in (out / ROUNDS).glob(f"*/{WORK}/*") if path.name.isdecimal()]
    return sorted(len(list(unit.glob("claim-*"))) for unit in units)


@pytest.mark.usefixtures("gsm8k")
def test_workers_that_are_killed_and_stopped_leave_the_records_of_one_process(
    finished: Finished, harm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny(finished, tmp_path / "s.yaml", grid={}, defaults=SHORT)
    _, outcomes, _ = ran(path, tmp_path / "alone")
    monkeypatch.setattr(Round, "remove", lambda _: None)  # to see who did what
    notes = Waking(harm)
    ended = shared(path, tmp_path / "shared", notes)
    assert [o.failure for o in ended.outcomes] == [None] * 4
    assert [o.result for o in ended.outcomes] == [o.result for o in outcomes]
    ours = {n: d for n, d in records(tmp_path / "shared").items() if not n.startswith(ROUNDS)}
    assert ours == records(tmp_path / "alone")
    assert claims(tmp_path / "shared") == [1, 1, 2, 2], "twice only what a lost lease explains"
    told = "\n".join(notes.lines)
    assert len(re.findall(TAKEN_OVER, told)) == 2
    assert len(re.findall(r"resumed at step [23] of 6", told)) == 2
    assert "(SIGKILL), another one is started" in told
    assert "(it was silent for longer than its lease), another one is started" in told
    assert {run: state[-1][0] for run, state in notes.states.items()} == dict.fromkeys(
        notes.titles, "finished"
    )
