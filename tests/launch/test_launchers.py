import os
import re
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from harmed import HARM, SIGNALS, Forked
from schemabank.cli import app
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.config.settings import RunConfig
from schemabank.launch import crew, launchers, rounds, worker
from schemabank.launch.launchers import GPUS, THREADS, LauncherName, Workers, launcher
from schemabank.launch.messages import Sender
from schemabank.launch.queue import MOST_CRASHES
from schemabank.launch.rounds import ROUNDS, WORK, Round
from schemabank.launch.sharing import Sharing
from schemabank.runs import experiment
from schemabank.runs.distill import TEACHERS
from schemabank.runs.experiment import CohortPart, run_all
from schemabank.runs.folder import COST
from schemabank.runs.launched import Launched
from schemabank.runs.members import Member, Outcome
from schemabank.runs.progress import Reporter, RunState
from schemabank.runs.stored import read_cost
from schemabank.suites.execution import SuiteOutcome, run_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, snapshot
from tinysuites import ran, tiny

LEASE_S = 8.0
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
    workers = Workers(environments=[{}] * num_workers, lease_s=LEASE_S, launcher="gpus")
    return run_suite(load_suite(path), out, notes, launcher=workers)


def launched(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    """How the runs were trained, as their costs say."""
    costs = [read_cost(outcome.folder / COST) for outcome in outcomes]
    return [(cost["launcher"], cost["workers"]) for cost in costs]


def claims(out: Path) -> list[int]:
    """How often each unit was claimed, the last round's."""
    units = [path for path in (out / ROUNDS).glob(f"*/{WORK}/*") if path.name.isdecimal()]
    return sorted(len(list(unit.glob("claim-*"))) for unit in units)


@pytest.mark.usefixtures("gsm8k")
def test_workers_that_are_killed_and_stopped_leave_the_records_of_one_process(
    finished: Finished, harm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms: dict[str, object] = {"base": {}, "lora": {}, "schemabank": {}}
    changes = {"arms": arms, "seeds": [1], "grid": {}, "defaults": SHORT}
    path = tiny(finished, tmp_path / "s.yaml", **changes)
    _, outcomes, _ = ran(path, tmp_path / "alone")
    monkeypatch.setattr(rounds, "_remove", lambda _: None)  # to see who did what
    monkeypatch.setattr(crew, "SILENT", 1000.0)  # it is to wake up
    notes = Waking(harm)
    ended = shared(path, tmp_path / "shared", notes)
    assert [o.failure for o in ended.outcomes] == [None] * 3
    assert [o.result for o in ended.outcomes] == [o.result for o in outcomes]
    ours = {n: d for n, d in records(tmp_path / "shared").items() if not n.startswith(ROUNDS)}
    assert ours == records(tmp_path / "alone")
    assert launched(ended.outcomes) == [("gpus", 2)] * 3
    assert launched(outcomes) == [("local", 1)] * 3
    assert claims(tmp_path / "shared") == [1, 2, 2], "twice only what a lost lease explains"
    told = "\n".join(notes.lines)
    assert len(re.findall(TAKEN_OVER, told)) == 2
    assert len(re.findall(r"resumed at step [23] of 6", told)) == 2
    assert "(SIGKILL), another one is started" in told
    assert "(it was silent for longer than its lease), another one is started" in told
    assert {run: state[-1][0] for run, state in notes.states.items()} == dict.fromkeys(
        notes.titles, "finished"
    )


class Alone(Sharing):
    """A launcher whose only worker is this process."""

    num_workers = 1

    def work(self, shared: Round, _: Reporter) -> set[str]:
        worker.work_on(shared.folder, Sender(None, speaks=False), launched=Launched())
        return set()


@pytest.mark.usefixtures("gsm8k")
def test_runs_whose_teacher_failed_are_not_tried(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"lora": {}, "taught": {"arm": "lora", "distill": {"teachers": 1}}}
    path = tiny(finished, tmp_path / "s.yaml", arms=arms, seeds=[1], grid={}, defaults=SHORT)
    out, tried, attempt = tmp_path / "runs", list[RunConfig](), worker.attempt

    def attempted(part: CohortPart, place: Path) -> list[Outcome]:
        tried.extend(part.runs)
        if place == out:
            return attempt(part, place)
        return [Outcome(place, None, failure=Failure("disk", "full")) for _ in part.runs]

    monkeypatch.setattr(worker, "attempt", attempted)
    ended = run_suite(load_suite(path), out, Notes(), launcher=Alone())
    first, second = (outcome.failure for outcome in ended.outcomes)
    assert (first, second and second.kind) == (None, "disk")
    assert [(run.num_teachers, run.seed == 1) for run in tried] == [(0, False), (0, True)]
    assert not (out / ROUNDS).exists()


@pytest.mark.usefixtures("gsm8k")
def test_teachers_that_are_missing_are_not_trained_for_a_run_that_has_trained(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"taught": {"arm": "lora", "distill": {"teachers": 1}}}
    path = tiny(finished, tmp_path / "s.yaml", arms=arms, seeds=[1], grid={}, defaults=SHORT)
    out, finish = tmp_path / "runs", experiment.finish_runs

    def but_for_the_taught(members: Sequence[Member], *given: Any, **more: Any) -> list[Outcome]:  # noqa: ANN401
        if members[0].run.num_teachers:
            raise KeyboardInterrupt
        return finish(members, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "finish_runs", but_for_the_taught)
        with pytest.raises(KeyboardInterrupt):
            run_suite(load_suite(path), out, Notes(), launcher=Alone())
    shutil.rmtree(out / TEACHERS)
    notes = Notes()
    ended = run_suite(load_suite(path), out, notes, launcher=Alone())
    assert [outcome.failure for outcome in ended.outcomes] == [None]
    assert not (out / TEACHERS).exists()
    assert not any("teacher" in line for line in notes.lines)


class Restarting(Alone):
    """Starts its worker again when it breaks, as those do that have processes for it."""

    def work(self, shared: Round, reporter: Reporter) -> set[str]:
        while True:
            with suppress(KeyError):
                return super().work(shared, reporter)


@pytest.mark.usefixtures("gsm8k")
def test_a_unit_that_ends_every_process_fails_after_a_few(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny(finished, tmp_path / "s.yaml", arms={"lora": {}}, seeds=[1], grid={})
    tried = list[object]()

    def breaking(part: CohortPart, _: Path) -> list[Outcome]:
        tried.append(part)
        raise KeyError("weights")

    monkeypatch.setattr(worker, "attempt", breaking)
    ended = run_suite(load_suite(path), tmp_path / "runs", Notes(), launcher=Restarting())
    (failure,) = (outcome.failure for outcome in ended.outcomes)
    assert failure is not None
    assert "ended by itself 5 times before anything more of it was kept" in failure.message
    assert len(tried) == MOST_CRASHES


class Interrupting(Notes):
    """Notes of a user who gives up when the first run is finished."""

    def run_state(self, run: str, state: RunState, detail: str = "") -> None:
        super().run_state(run, state, detail)
        if state == "finished":
            raise KeyboardInterrupt


@pytest.mark.usefixtures("gsm8k")
def test_an_interrupted_suite_goes_on_with_two_launchers_at_once(
    finished: Finished, harm: Path, tmp_path: Path
) -> None:
    """Five runs of a cohort that trains two at once: the parts have two, two and one."""
    for name in SIGNALS:
        (harm / name).touch()
    arms = {"lora": {}, "wide": {"arm": "lora", "lora": {"r": 8}}}
    changes = {"arms": arms, "exclude": [{"arm": "wide", "seed": 3}], "seeds": [1, 2, 3]}
    defaults = {**SHORT, "engine": {"slots": 2}}
    path = tiny(finished, tmp_path / "s.yaml", grid={}, defaults=defaults, **changes)
    _, outcomes, _ = ran(path, tmp_path / "alone")
    out = tmp_path / "shared"
    with pytest.raises(KeyboardInterrupt):
        shared(path, out, Interrupting())
    assert 1 <= len(claims(out)) <= 3
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(shared, path, out, Notes(), num_workers=1) for _ in range(2)]
        results = [[o.result for o in each.result(200).outcomes] for each in both]
    assert results == [[o.result for o in outcomes]] * 2
    assert records(out) == records(tmp_path / "alone"), "nor is anything left of the work"


@pytest.mark.usefixtures("gsm8k", "harm")
def test_what_cannot_be_had_is_told_by_a_worker_and_leaves_nothing(
    finished: Finished, tmp_path: Path
) -> None:
    lora = {"target_modules": ["nowhere"]}
    path = tiny(finished, tmp_path / "s.yaml", grid={}, defaults={**SHORT, "lora": lora})
    with pytest.raises(InputError, match="nowhere"):
        shared(path, tmp_path / "runs", Notes(), num_workers=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "number", "device", "said"),
    [
        ("gpus", None, "auto", "PyTorch sees no GPU.*--launch local --workers N"),
        ("gpus", None, "cpu", "engine.device is 'cpu'.*--launch local --workers N"),
    ],
)
def test_a_machine_without_gpus_says_what_to_do(
    name: LauncherName, number: int | None, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=said):
        launcher(name, number, device)


def test_every_gpu_has_a_worker_that_sees_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launchers, "given_cores", lambda: 12)
    monkeypatch.delenv(GPUS, raising=False)
    monkeypatch.delenv(THREADS, raising=False)
    assert launcher("gpus", None, "auto") == Workers(
        environments=[{GPUS: number, THREADS: "4"} for number in "012"], launcher="gpus"
    )
    monkeypatch.setenv(GPUS, "4, GPU-6c,7")
    assert launcher("gpus", 2, "cuda") == Workers(
        environments=[{GPUS: "4", THREADS: "6"}, {GPUS: "GPU-6c", THREADS: "6"}], launcher="gpus"
    )
    monkeypatch.setenv(THREADS, "5")
    assert launcher("gpus", 2, "cuda") == Workers(
        environments=[{GPUS: "4"}, {GPUS: "GPU-6c"}], launcher="gpus"
    )
    with pytest.raises(InputError, match="--workers is 4, but 3 GPUs"):
        launcher("gpus", 4, "auto")
    with pytest.raises(InputError, match=r"--workers is 2, but the runs use a GPU.*--launch gpus"):
        launcher("local", 2, "auto")


def test_workers_of_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "given_cores", lambda: 8)
    monkeypatch.delenv(THREADS, raising=False)
    assert launcher("local", 3, "cpu") == Workers(environments=[{THREADS: "2"}] * 3)
    monkeypatch.setenv(THREADS, "5")
    assert launcher("local", 3, "cpu") == Workers(environments=[{}] * 3)
    assert launcher("local", None, "cpu") is run_all


def test_the_command_line_says_what_to_do_without_gpus(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = tiny(finished, tmp_path / "s.yaml")
    done = CliRunner().invoke(app, ["suite", str(path), "--launch", "gpus"])
    assert isinstance(done.exception, InputError)
    assert "PyTorch sees no GPU" in str(done.exception)
    assert CliRunner().invoke(app, ["suite", str(path), "--launch", "moon"]).exit_code == 2


def test_the_command_line_hands_the_suite_to_the_workers(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Sequence[object]] = []

    def ran_by(self: Workers, runs: Sequence[RunConfig], *_: object, **__: object) -> list[Outcome]:
        found.append(self.environments)
        return [Outcome(tmp_path, None, failure=Failure("disk", "full")) for _ in runs]

    monkeypatch.setattr(Workers, "__call__", ran_by)
    path, out = tiny(finished, tmp_path / "s.yaml"), tmp_path / "runs"
    words = ["suite", str(path), "--workers", "3", "--out", str(out)]
    assert CliRunner().invoke(app, [*words, "--set", "engine.device=cpu"]).exit_code == 1
    assert [len(environments) for environments in found] == [3]
