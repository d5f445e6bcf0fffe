"""When checkpoints are made, what they cost, and what is said where they cannot be."""

import errno
import os
import shutil
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import cohorts
from fulldisk import longest_file
from schemabank.common.failure import Failure
from schemabank.config.file import run_id, to_yaml
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.runs import checkpointing
from schemabank.runs.checkpointing import LARGEST_SHARE, Checkpoints
from schemabank.runs.checkpoints import checkpoints_in
from schemabank.runs.folder import CHECKPOINTS, CONFIG, METRICS, TRAINED, claimed
from schemabank.runs.members import Member
from tinyruns import wait_for_checkpoints

MADE = {"device": "cpu"}


class Logs:
    """Logs that are always up to date."""

    def __init__(self) -> None:
        self.num_tokens, self.lost = Counter[str](), set[str]()

    def flush(self) -> None:
        pass


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def members(exits: ExitStack, place: Path, **engine: Any) -> list[Member]:  # noqa: ANN401
    """Two runs of one cohort, with their folders."""
    found = []
    for seed in (1, 2):
        run = RunConfig(arm="lora", seed=seed, engine=EngineSettings(**engine))
        claim = exits.enter_context(claimed(place / run_id(run)))
        (claim.path / CONFIG).write_text(to_yaml(run))
        (claim.path / METRICS).touch()
        found.append(Member(f"lora-{seed}", run, claim=claim))
    return found


def trained(found: list[Member], notes: list[str]) -> tuple[Cohort, Checkpoints]:
    """Train both runs to their end, and make checkpoints meanwhile."""
    made = cohorts.cohort([cohorts.lora_run(1), cohorts.lora_run(2)], cohorts.data())
    with Checkpoints(found, MADE, 0.0, notes.append) as checkpoints:
        checkpoints.seeing(lambda _: Logs())(made)
        checkpoints.follow(made)
        list(made.steps())
    return made, checkpoints


def steps_saved(found: list[Member]) -> list[list[str]]:
    return [[path.name for path in checkpoints_in(member.claim.path)] for member in found]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for every checkpoint to be written, so that none is left out."""
    wait_for_checkpoints(monkeypatch)


@pytest.mark.usefixtures("unhurried")
def test_the_last_two_are_there_after_so_many_steps(exits: ExitStack, tmp_path: Path) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=5), list[str]()
    made, _ = trained(found, notes)
    assert made.slots[0].num_steps == 12
    assert steps_saved(found) == [["step-10", "step-5"]] * 2
    assert notes == []


def test_one_thread_writes_those_of_all_cohorts_of_a_process(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers, write = set[threading.Thread](), checkpointing.write_checkpoint

    def seen(*given: Any, **more: Any) -> None:  # noqa: ANN401
        writers.add(threading.current_thread())
        write(*given, **more)

    monkeypatch.setattr(checkpointing, "write_checkpoint", seen)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        trained(members(exits, tmp_path / name, checkpoint_steps=5), [])
    assert len(writers) == 1
    assert threading.current_thread() not in writers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons': there is a thread
        child = os.fork()
    if child == 0:  # it has no threads of its parent's, and makes its own
        code = 1
        try:
            code = checkpointing._WRITER.submit(lambda: 7).result(timeout=30)
        finally:  # an error must not let it go on with the tests, too
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads_that_begin_together_share_the_one_that_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, executor = list[ThreadPoolExecutor](), ThreadPoolExecutor

    def slow(*given: Any, **more: Any) -> ThreadPoolExecutor:  # noqa: ANN401
        made.append(executor(*given, **more))
        time.sleep(0.1)  # until all others have asked, too
        return made[-1]

    monkeypatch.setattr(checkpointing, "ThreadPoolExecutor", slow)
    writer, start = checkpointing._OneThread(), threading.Barrier(4)

    def asked(number: int) -> int:
        start.wait(60)
        return writer.submit(lambda: number).result(60)

    with executor(4) as threads:
        assert [*threads.map(asked, range(4))] == [*range(4)]
    assert len(made) == 1


@pytest.mark.usefixtures("unhurried")
def test_the_clock_decides_without_steps_and_not_too_often(
    exits: ExitStack, tmp_path: Path
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_minutes=1e-9), list[str]()
    made, checkpoints = trained(found, notes)
    assert made.slots[0].num_steps == 12
    saved = steps_saved(found)
    assert saved[0] == saved[1] == ["step-1"], "the first one's cost puts off all others"
    (note,) = notes
    assert "more would take more than 2% of the time" in note
    assert checkpoints._every_s is not None
    assert checkpoints._every_s > checkpoints._paused_s / LARGEST_SHARE


def test_none_are_made_where_none_are_asked_for(exits: ExitStack, tmp_path: Path) -> None:
    found, notes = members(exits, tmp_path, checkpoint_minutes=None), list[str]()
    trained(found, notes)
    assert steps_saved(found) == [[], []]
    assert notes == []


def test_training_does_not_wait_for_a_slow_disk(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes, over = (
        members(exits, tmp_path, checkpoint_steps=1),
        list[str](),
        threading.Event(),
    )
    write, began = checkpointing.write_checkpoint, list[int]()

    def slow(folder: Path, standing: Any, *rest: Any, **more: Any) -> None:  # noqa: ANN401
        began.append(standing.state.step)
        assert over.wait(60)
        write(folder, standing, *rest, **more)

    monkeypatch.setattr(checkpointing, "write_checkpoint", slow)
    made = cohorts.cohort([cohorts.lora_run(1), cohorts.lora_run(2)], cohorts.data())
    with Checkpoints(found, MADE, 0.0, notes.append) as checkpoints:
        checkpoints.seeing(lambda _: Logs())(made)
        checkpoints.follow(made)
        assert len(list(made.steps())) == 12
        over.set()
    assert began == [1, 1]
    assert steps_saved(found) == [["step-1"], ["step-1"]]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "; free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), "; make the folder writable"),
        (OSError(errno.EIO, "Input/output error"), ""),
        (MemoryError("none left"), ""),
    ],
    ids=repr,
)
def test_what_cannot_be_written_costs_no_step_and_is_said_once(
    error: Exception, mend: str, exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=2), list[str]()
    monkeypatch.setattr(checkpointing, "write_checkpoint", raising(error))
    made, _ = trained(found, notes)
    assert cohorts.ended(made).keys() == {"lora-1", "lora-2"}
    (note,) = notes
    assert note.startswith(f"a checkpoint could not be written ({error}): the runs go on")
    assert note.endswith(f"from the last one that was{mend}")


@pytest.mark.usefixtures("unhurried")
def test_a_real_full_disk_costs_no_step_and_leaves_nothing(
    exits: ExitStack, tmp_path: Path
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=2), list[str]()
    with longest_file(20_000):
        made, _ = trained(found, notes)
    assert cohorts.ended(made).keys() == {"lora-1", "lora-2"}
    (note,) = notes
    assert note.startswith("a checkpoint could not be written (")
    assert not any((member.claim.path / CHECKPOINTS).exists() for member in found)


@pytest.mark.usefixtures("unhurried")
def test_what_cannot_be_copied_costs_no_step_either(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=2), list[str]()
    monkeypatch.setattr(Cohort, "standings", raising(RuntimeError("can't allocate memory")))
    made, _ = trained(found, notes)
    assert cohorts.ended(made).keys() == {"lora-1", "lora-2"}
    assert len(notes) == 1


@pytest.mark.usefixtures("unhurried")
def test_a_thread_that_cannot_start_costs_one_checkpoint_which_is_not_written_later(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=5), list[str]()
    start, tried = threading.Thread.start, list[str]()

    def starts(thread: threading.Thread) -> None:
        if thread.name.startswith("checkpoints"):
            tried.append(thread.name)
            if len(tried) == 1:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts)
    monkeypatch.setattr(checkpointing, "_WRITER", checkpointing._OneThread())
    made, _ = trained(found, notes)
    assert cohorts.ended(made).keys() == {"lora-1", "lora-2"}
    assert steps_saved(found) == [["step-10"]] * 2
    (note,) = notes
    assert "could not be written (can't start new thread)" in note
    assert note.endswith("from the last one that was")


def test_an_interpreter_that_ends_costs_no_step_either(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=2), list[str]()
    ends = raising(RuntimeError("cannot schedule new futures after interpreter shutdown"))
    monkeypatch.setattr(checkpointing, "_WRITER", checkpointing._OneThread())
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ends)
    made, _ = trained(found, notes)
    assert cohorts.ended(made).keys() == {"lora-1", "lora-2"}
    assert len(notes) == 1


@pytest.mark.usefixtures("unhurried")
def test_those_of_a_run_that_has_trained_go(exits: ExitStack, tmp_path: Path) -> None:
    found = members(exits, tmp_path, checkpoint_steps=5)
    (found[0].claim.path / TRAINED).mkdir()
    trained(found, [])
    assert steps_saved(found) == [[], ["step-10", "step-5"]]


@pytest.mark.usefixtures("unhurried")
def test_an_error_that_nobody_expects_is_raised_once(
    exits: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the checkpoints of what has trained go all the same."""
    found = members(exits, tmp_path, checkpoint_steps=2)
    folder = found[0].claim.path
    (folder / CHECKPOINTS / "step-1").mkdir(parents=True)

    def fails(*_args: object, **_options: object) -> None:
        (folder / TRAINED).mkdir(exist_ok=True)
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(checkpointing, "write_checkpoint", fails)
    with pytest.raises(ZeroDivisionError, match="ours") as raised:
        trained(found, [])
    assert raised.value.__context__ is None
    assert steps_saved(found)[0] == []


def test_a_wait_that_a_signal_ends_goes_on_before_folders_are_let_go(
    exits: ExitStack, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(members(exits, tmp_path), MADE, 0.0, [].append)
    waits, ended = list[str](), [KeyboardInterrupt(), None]

    class Slow(Future[float]):
        def result(self, timeout: float | None = None) -> float:
            waits.append("waited")
            if (error := ended.pop(0)) is not None:
                raise error
            self.set_result(0.0)
            return super().result(timeout)

    with checkpoints:
        checkpoints._writing = Slow()
        with pytest.raises(KeyboardInterrupt):
            checkpoints._settle()
    assert waits == ["waited"] * 2
    assert checkpoints._writing is None


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_that_is_gone_costs_no_neighbour_its_checkpoints(
    number: int, exits: ExitStack, tmp_path: Path
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=5), list[str]()
    shutil.rmtree(found[number].claim.path)
    trained(found, notes)
    assert steps_saved(found)[number] == []
    assert steps_saved(found)[1 - number] == ["step-10", "step-5"]
    assert len(notes) == 1


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("number", [0, 1])
def test_one_that_cannot_be_written_costs_no_neighbour_its_own(
    number: int, exits: ExitStack, tmp_path: Path
) -> None:
    found, notes = members(exits, tmp_path, checkpoint_steps=5), list[str]()
    (found[number].claim.path / CHECKPOINTS).touch()
    trained(found, notes)
    assert steps_saved(found)[1 - number] == ["step-10", "step-5"]
    assert len(notes) == 1


@pytest.mark.usefixtures("unhurried")
def test_a_run_that_could_not_write_a_stage_goes_on_from_before(
    exits: ExitStack, tmp_path: Path
) -> None:
    found = members(exits, tmp_path, checkpoint_steps=5)
    made = cohorts.cohort([cohorts.lora_run(1), cohorts.lora_run(2)], cohorts.data())
    with Checkpoints(found, MADE, 0.0, [].append) as checkpoints:
        checkpoints.seeing(lambda _: Logs())(made)
        checkpoints.follow(made)
        for number, _ in enumerate(made.steps()):
            if number == 6:
                found[0].fail(Failure("disk", "No space left on device"))
    assert steps_saved(found) == [["step-5"], ["step-10", "step-5"]]


def raising(error: Exception) -> Callable[..., None]:
    def fails(*_args: object, **_options: object) -> None:
        raise error

    return fails


def test_the_shortest_time_of_a_cohorts_runs_counts(exits: ExitStack, tmp_path: Path) -> None:
    found = members(exits, tmp_path)
    runs = [member.run for member in found]
    assert checkpointing.how_often(runs) == (300.0, None)
    none = runs[0].model_copy(update={"engine": EngineSettings(checkpoint_minutes=None)})
    often = EngineSettings(checkpoint_minutes=2, checkpoint_steps=7)
    asked = [none, runs[1].model_copy(update={"engine": often}), runs[0]]
    assert checkpointing.how_often(asked) == (120.0, 7)
    assert checkpointing.how_often([none]) == (None, None)


def test_the_time_of_earlier_calls_counts(exits: ExitStack, tmp_path: Path) -> None:
    found = members(exits, tmp_path, checkpoint_steps=5)
    made = cohorts.cohort([cohorts.lora_run(1), cohorts.lora_run(2)], cohorts.data())
    with Checkpoints(found, MADE, time.monotonic() - 3600, [].append) as checkpoints:
        checkpoints.seeing(lambda _: Logs())(made)
        next(made.steps())
        assert all(3600 <= due.at.training_s < 3660 for due in checkpoints._due(made))


def test_one_slow_checkpoint_puts_off_the_next_alone(exits: ExitStack, tmp_path: Path) -> None:
    found, notes = members(exits, tmp_path, checkpoint_minutes=5), list[str]()
    with Checkpoints(found, MADE, 0.0, notes.append) as checkpoints:
        for cost_s, every_s in ((1.0, 300.0), (30.0, 1500.0), (12.0, 600.0), (2.0, 300.0)):
            checkpoints._make_room(cost_s)
            assert checkpoints._every_s == pytest.approx(every_s)
    (note,) = notes
    assert note.startswith("a checkpoint takes 30.0 s, so the next ones are made every 25 minutes")
