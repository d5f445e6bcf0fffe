"""When a run is kept: once its weights and all of its lines are there, and only if it is sound."""

import errno
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fulldisk import longest_file
from schemabank.common.failure import Failure
from schemabank.config.file import to_yaml
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import RunStep
from schemabank.engine.finished import Finished
from schemabank.runs import steplogs
from schemabank.runs.folder import CONFIG, METRICS, claimed, has_trained
from schemabank.runs.members import Member
from schemabank.runs.steplogs import KeepingLogs
from schemabank.runs.trained import read_trained

NUM_STEPS = 2
MADE = {"device": "cpu"}


def step_of(name: str, step: int) -> RunStep:
    return RunStep(name, step, NUM_STEPS, "lora", 1.0, 1.0, 1e-3, 0.5, 10, skipped=False)


@dataclass
class OfACohort:
    """What the logs see of a cohort: its slots, and the weights of runs that have ended."""

    slots: list[Any]
    finished: Finished = field(default_factory=Finished)
    stack: Any = field(default_factory=lambda: SimpleNamespace(num_slots=1))


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Member]]:
    with ExitStack() as exits:
        found = [
            Member(f"run{n}", RunConfig(arm="lora", seed=n), claim=exits.enter_context(claimed(f)))
            for n, f in enumerate([tmp_path / "a", tmp_path / "b"])
        ]
        for member in found:
            (member.claim.path / CONFIG).write_text(to_yaml(member.run))
        yield found


@pytest.fixture
def cohort(members: list[Member]) -> OfACohort:
    slots = [
        SimpleNamespace(
            run=SimpleNamespace(name=member.name),
            num_steps=NUM_STEPS,
            step=NUM_STEPS,
            stopped=False,
            skipped=[],
            num_updates=Counter(lora=NUM_STEPS),
            failure=None,
        )
        for member in members
    ]
    return OfACohort(slots)


def kept(members: list[Member]) -> list[bool]:
    return [has_trained(member.claim.path) for member in members]


def logs_of(members: list[Member], cohort: Any) -> KeepingLogs:  # noqa: ANN401
    return KeepingLogs(members, MADE, 0.0, cohort)


def test_a_run_is_kept_when_its_weights_and_all_of_its_lines_are_there(
    members: list[Member], cohort: OfACohort
) -> None:
    first, second = members
    with logs_of(members, cohort) as logs:
        logs.write(step_of(first.name, 0))
        # On a GPU a run has left its slot before its last steps are reported.
        cohort.finished[first.name] = {"lora": torch.ones(3)}
        logs.write(step_of(second.name, 0))
        assert kept(members) == [False, False]
        logs.write(step_of(first.name, 1))
        logs.write(step_of(second.name, 1))
        assert kept(members) == [True, False]
        steps = (first.claim.path / METRICS).read_text().splitlines()
        assert [json.loads(line)["step"] for line in steps] == [0, 1]
        cohort.finished[second.name] = {"lora": torch.zeros(3)}
    assert kept(members) == [True, True]
    found = read_trained(first.claim.path, first.run, MADE)
    assert torch.equal(found.weights["lora"], torch.ones(3))
    assert first.failure is None


def test_a_run_that_has_failed_is_not_kept(members: list[Member], cohort: OfACohort) -> None:
    cohort.slots[0].failure = Failure("diverged", "too many skipped steps")
    with logs_of(members, cohort) as logs:
        for member in members:
            logs.write(step_of(member.name, NUM_STEPS - 1))
            cohort.finished[member.name] = {"lora": torch.tensor([1.0, torch.nan])}
        cohort.finished[members[0].name] = {"lora": torch.ones(2)}
    assert kept(members) == [False, False]


def test_a_full_disk_costs_the_run_alone(members: list[Member], cohort: OfACohort) -> None:
    with longest_file(100_000), logs_of(members, cohort) as logs:
        for member in members:
            logs.write(step_of(member.name, NUM_STEPS - 1))
        cohort.finished[members[0].name] = {"lora": torch.ones(50_000)}
        cohort.finished[members[1].name] = {"lora": torch.ones(5)}
    assert kept(members) == [False, True]
    assert members[0].failure is not None
    assert members[0].failure.kind == "disk"
    assert members[1].failure is None


@pytest.mark.parametrize(
    ("number", "mend"),
    [(errno.ENOSPC, "; free some space"), (errno.EACCES, "; make the folder writable")],
)
def test_a_program_is_told_once_what_is_saved_no_more_and_what_to_do(
    number: int,
    mend: str,
    members: list[Member],
    cohort: OfACohort,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_step: RunStep) -> str:
        raise OSError(number, "no")

    monkeypatch.setattr(steplogs, "_json_line", refused)
    notes, name = list[str](), members[0].name
    with KeepingLogs(members, MADE, 0.0, cohort, note=notes.append) as logs:  # type: ignore[arg-type]
        for step in range(NUM_STEPS):
            logs.write(step_of(name, step))
    (note,) = notes
    assert note.startswith(f"{name} is saved no more ([Errno {number}] no): it goes on, and if")
    assert note.endswith(f"it begins again from its last checkpoint{mend}")
    assert (logs.lost, members[0].failure) == ({name}, None)
