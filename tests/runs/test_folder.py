"""Claims and leftovers; another process is a real one."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from schemabank.common.errors import InputError
from schemabank.common.failure import failure_of
from schemabank.common.files import read_json
from schemabank.common.folders import check_new, new_folder
from schemabank.runs import folder as run_folder
from schemabank.runs import locks
from schemabank.runs.folder import (
    CHECKPOINTS,
    METRICS,
    RESULT,
    TRAINED,
    RunClaim,
    can_go_on,
    check_available,
    claimed,
    forget_training,
    is_finished,
    partial_folder,
    tell_left,
)
from schemabank.runs.locks import Tenure

HOLDER = """
import sys
from pathlib import Path
from schemabank.runs.folder import claimed
with claimed(Path(sys.argv[1])) as claim:
    (claim.path / "metrics.jsonl").write_text("half a run")
    print("claimed", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def finish(folder: Path, *, result: str = "{}") -> None:
    with claimed(folder) as claim:
        (claim.path / RESULT).write_text(result)
        claim.complete()


# Claims.


def test_a_completed_claim_is_a_finished_run_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "lora-seed1"
    assert not is_finished(run)
    with claimed(run) as claim:
        assert claim.path != run
        (claim.path / RESULT).write_text("{}")
        assert not is_finished(run), "the name stands for a complete run only"
        claim.complete()
        assert claim.path == run
    assert is_finished(run)
    assert names(run.parent) == {"lora-seed1"}
    assert names(run) == {RESULT}


def test_a_claim_excludes_other_processes(tmp_path: Path) -> None:
    run, other = tmp_path / "a", tmp_path / "b"
    with held_by_another_process(run) as process:
        with pytest.raises(InputError, match=r"'.*/a' is in use by another run.*wait.* --out"):
            claimed(run).__enter__()
        finish(other)
        assert (tmp_path / ".a.partial" / "metrics.jsonl").read_text() == "half a run"
        process.communicate()
        assert process.returncode == 0
    finish(run)
    assert (tmp_path / "a.unfinished-1" / "metrics.jsonl").read_text() == "half a run"
    assert names(tmp_path) == {"a", "b", "a.unfinished-1"}


def test_a_killed_process_loses_its_claim_but_not_its_files(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with held_by_another_process(run) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == {".a.lock", ".a.partial"}
        with claimed(run) as claim:
            assert names(claim.path) == set()
            assert (tmp_path / "a.unfinished-1" / "metrics.jsonl").read_text() == "half a run"
            (claim.path / RESULT).write_text("{}")
            claim.complete()
    assert names(tmp_path) == {"a", "a.unfinished-1"}


def test_a_claim_excludes_its_own_process_too(tmp_path: Path) -> None:
    with claimed(tmp_path / "a"), pytest.raises(InputError, match="is in use") as raised:
        claimed(tmp_path / "a").__enter__()
    assert failure_of(raised.value).kind == "input", "the disk is fine"
    finish(tmp_path / "a")


def test_a_lock_on_a_removed_file_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process ends between our opening and locking, and a third one claims the run anew."""
    lock, flock = tmp_path / ".a.lock", fcntl.flock
    third: list[IO[str]] = []

    def late(file: IO[str], operation: int) -> None:
        if not third:
            lock.unlink()
            third.append(lock.open("w"))
            flock(third[0], operation)
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with pytest.raises(InputError, match="is in use"):
        claimed(tmp_path / "a").__enter__()
    third[0].close()
    finish(tmp_path / "a")


def test_an_exception_keeps_the_files_under_a_name_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "a"

    def attempt(number: int) -> None:
        with claimed(run) as claim:
            (claim.path / "log").write_text(f"try {number}")
            raise RuntimeError("stop")

    for number in (1, 2):
        with pytest.raises(RuntimeError, match="stop"):
            attempt(number)
    with claimed(run), claimed(tmp_path / "deep" / "deeper" / "a"):
        pass
    assert names(tmp_path) == {"a.unfinished-1", "a.unfinished-2"}
    assert [(tmp_path / f"a.unfinished-{n}" / "log").read_text() for n in (1, 2)] == [
        "try 1",
        "try 2",
    ]


def test_a_run_that_has_trained_is_left_for_the_next_claim(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with claimed(run) as claim:
        (claim.path / TRAINED).mkdir()
    assert names(tmp_path) == {".a.partial"}
    with claimed(run) as claim:
        assert names(claim.path) == {TRAINED}
        (claim.path / RESULT).write_text("{}")
        claim.check_there()
        claim.complete()
    assert names(tmp_path) == {"a"}
    assert names(run) == {RESULT}


def test_a_link_to_a_training_elsewhere_is_none(tmp_path: Path) -> None:
    run = tmp_path / "a"
    (tmp_path / "elsewhere").mkdir()
    with claimed(run) as claim:
        (claim.path / TRAINED).symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path) == {"a.unfinished-1", "elsewhere"}
    (tmp_path / "elsewhere" / TRAINED).mkdir()
    (tmp_path / ".a.partial").symlink_to(tmp_path / "elsewhere")
    with claimed(run) as claim:
        assert names(claim.path) == set()


def test_a_claim_that_begins_anew_keeps_what_was_there_and_is_still_a_claim(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with claimed(run) as claim:
        (claim.path / TRAINED).mkdir()
    with claimed(run) as claim:
        assert claim.begin_anew() == tmp_path / "a.unfinished-1"
        claim.check_there()
        assert names(claim.path) == set()
        with pytest.raises(InputError, match="is in use"):
            claimed(run).__enter__()
        (claim.path / TRAINED).mkdir()
        assert claim.abandon() == tmp_path / "a.unfinished-2"
    assert names(tmp_path) == {"a.unfinished-1", "a.unfinished-2"}


def test_a_finished_run_is_never_claimed_again(tmp_path: Path) -> None:
    run = tmp_path / "a"
    finish(run, result='{"first": 1}')
    with pytest.raises(InputError, match=r"exists and is not overwritten: choose another --out"):
        claimed(run).__enter__()
    assert read_json(run / RESULT) == {"first": 1}
    assert names(tmp_path) == {"a"}


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with claimed(run) as claim:
        (claim.path / RESULT).write_text("{}")
        run.mkdir()
        with pytest.raises(InputError, match="not overwritten"):
            claim.complete()
    assert names(run) == set()
    assert names(tmp_path / "a.unfinished-1") == {RESULT}


@pytest.mark.parametrize("name", ["runs/a", "runs/deeper/a"])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write to '.*runs.*choose another --out"):
        claimed(tmp_path / name).__enter__()
    with pytest.raises(InputError, match=r"cannot write to '.*runs.*choose another --out"):
        new_folder(tmp_path / name).__enter__()


REFUSING = [
    (errno.ENOSPC, "free some space, or choose another --out"),
    (errno.EDQUOT, "free some space, or choose another --out"),
    (errno.EACCES, "make the folder writable, or choose another --out"),
    (errno.EROFS, "choose another --out"),
]


@pytest.mark.parametrize(("number", "mend"), REFUSING)
@pytest.mark.parametrize("refused", [".a.lock", ".a.partial", "runs"])
def test_what_to_do_about_a_place_fits_its_error(
    refused: str, number: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks have room for an empty file, and none for a folder."""

    def refusing(path: Path, *_args: object, **_options: object) -> None:
        if path.name == refused:
            raise OSError(number, os.strerror(number), str(path))

    opened, mkdir = Path.open, Path.mkdir
    monkeypatch.setattr(Path, "open", lambda *a, **o: refusing(*a, **o) or opened(*a, **o))
    monkeypatch.setattr(Path, "mkdir", lambda *a, **o: refusing(*a, **o) or mkdir(*a, **o))
    said = rf"cannot write to '.*runs' \({os.strerror(number)}\): {mend}\Z"
    with pytest.raises(InputError, match=said), claimed(tmp_path / "runs" / "a"):
        pytest.fail("it is claimed")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("number", "mend"), REFUSING)
def test_what_to_do_about_a_folder_fits_its_error(
    number: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("schemabank.common.folders._make", refusing)
    with pytest.raises(InputError, match=rf": {mend}\Z"), new_folder(tmp_path / "a"):
        pytest.fail("it is made")


@pytest.mark.parametrize("check", [check_available, check_new])
def test_a_check_beforehand_touches_nothing(tmp_path: Path, check: Callable[[Path], None]) -> None:
    check(tmp_path / "runs" / "deeper" / "a")
    check(tmp_path / "b")
    assert names(tmp_path) == set()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        InputError, match=r"cannot write to .*file' is not a folder.*choose another"
    ):
        check(tmp_path / "file" / "a")


def test_a_run_in_progress_is_seen_beforehand(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with claimed(run):
        with pytest.raises(InputError, match="is in use by another run"):
            check_available(run)
        check_available(tmp_path / "b")
    check_available(run)
    (tmp_path / ".a.lock").touch()
    check_available(run)
    assert names(tmp_path) == {".a.lock"}


def test_a_plan_beside_a_claim_does_not_refuse_it(tmp_path: Path) -> None:
    """A killed process has left a lock, and a plan locks it for a moment to see whether it has."""
    run, lock = tmp_path / "a", tmp_path / ".a.lock"
    lock.touch()
    with lock.open() as plan:
        fcntl.flock(plan, fcntl.LOCK_SH)
        moment = threading.Timer(0.1, fcntl.flock, (plan, fcntl.LOCK_UN))
        moment.start()
        with claimed(run):
            assert not moment.is_alive()
        moment.join()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", [".a.partial", ".a.leases", ".a.leases/3"])
@pytest.mark.parametrize("tenure", [None, Tenure("unit", 4)])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_where_a_run_is_written_is_named_and_no_lock_stays(
    kind: str, tenure: Tenure | None, name: str, tmp_path: Path
) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    said = rf"'{place}' is no folder, .*: remove it, or choose another --out\Z"
    with pytest.raises(InputError, match=said):
        check_available(tmp_path / "a")
    with pytest.raises(InputError, match=said), claimed(tmp_path / "a", tenure=tenure):
        pytest.fail("it is claimed")
    assert names(tmp_path) == before
    assert os.path.lexists(place)


def test_what_cannot_be_left_hides_no_error_and_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_folder, "_leave", failing)
    with pytest.raises(InputError, match="mend it"), claimed(tmp_path / "a"):
        raise InputError("mend it")
    assert names(tmp_path) == {".a.partial"}
    with pytest.raises(OSError, match="Input/output"), claimed(tmp_path / "a"):
        pass
    assert names(tmp_path) == {".a.partial"}


@pytest.mark.parametrize("take", [check_available, lambda run: claimed(run).__enter__()])
@pytest.mark.parametrize("kind", ["folder", "another user's"])
def test_a_lock_that_cannot_be_opened_is_named(
    kind: str, take: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened = tmp_path / ".a.lock", Path.open

    def refusing(path: Path, *args: Any, **options: Any) -> object:  # noqa: ANN401
        if path == lock:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    if kind == "folder":
        lock.mkdir()
    else:  # the tests may be run by root, who opens everything
        lock.touch(mode=0o600)
        monkeypatch.setattr(Path, "open", refusing)
    reason = "Is a directory" if kind == "folder" else "Permission denied"
    said = (
        rf"the lock '{lock}' cannot be opened \({reason}\): .* remove it, or choose another --out"
    )
    with pytest.raises(InputError, match=said):
        take(tmp_path / "a")
    assert names(tmp_path) == {".a.lock"}


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("thesis", "file", "link"):
        with pytest.raises(InputError, match=rf"'.*{name}' exists but holds no result\.json.*move"):
            is_finished(tmp_path / name)


# New folders.


def test_a_run_is_taken_over_from_a_holder_that_is_only_stopped(tmp_path: Path) -> None:
    """The first holder keeps its lock and its open log; whatever it still writes reaches nobody."""
    run, stopped = tmp_path / "a", claimed(tmp_path / "a", tenure=Tenure("unit", 1))
    lost = stopped.__enter__()
    (lost.path / CHECKPOINTS / "step-1").mkdir(parents=True)
    with (lost.path / METRICS).open("w") as log:
        log.write("one\n")
        log.flush()
        with claimed(run, tenure=Tenure("unit", 2)) as claim:
            log.write("two\n")
            log.flush()
            assert (claim.path / METRICS).read_text() == "one\n"
            assert names(claim.path) == {CHECKPOINTS, METRICS}
            with pytest.raises(FileNotFoundError, match="was removed"):
                lost.check_there()
            with pytest.raises(FileNotFoundError):
                (lost.path / RESULT).write_text("{}")
            with pytest.raises(FileNotFoundError):
                lost.complete()
            stopped.__exit__(None, None, None)
            with pytest.raises(InputError, match="is in use"):
                claimed(run).__enter__()
            (claim.path / RESULT).write_text("{}")
            claim.complete()
    assert names(run) == {METRICS, RESULT}
    assert names(tmp_path) == {"a"}


def test_a_holder_that_is_stopped_while_it_leaves_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, later = tmp_path / "a", ExitStack()
    taken: list[RunClaim] = []

    def stopped(path: Path) -> bool:
        monkeypatch.undo()
        taken.append(later.enter_context(claimed(run, tenure=Tenure("unit", 2))))
        return can_go_on(path)

    with claimed(run, tenure=Tenure("unit", 1)) as lost:
        (lost.path / CHECKPOINTS / "step-1").mkdir(parents=True)
        monkeypatch.setattr(run_folder, "can_go_on", stopped)
    assert names(taken[0].path) == {CHECKPOINTS}
    with pytest.raises(InputError, match="is in use"):
        claimed(run).__enter__()
    later.close()
    assert names(tmp_path) == {".a.partial"}


@pytest.mark.parametrize(
    "other", [None, Tenure("unit", 1), Tenure("unit", 2), Tenure("another", 3)]
)
def test_only_a_later_lease_of_the_same_unit_takes_a_run_over(
    other: Tenure | None, tmp_path: Path
) -> None:
    with (
        claimed(tmp_path / "a", tenure=Tenure("unit", 2)),
        pytest.raises(InputError, match="is in use"),
    ):
        claimed(tmp_path / "a", tenure=other).__enter__()
    finish(tmp_path / "a")


def test_what_can_go_on_goes_on_with_and_without_leases(tmp_path: Path) -> None:
    run = tmp_path / "a"
    for number, tenure in enumerate([None, Tenure("u", 1), Tenure("u", 4), None, Tenure("v", 2)]):
        with claimed(run, tenure=tenure) as claim:
            kept = claim.path / CHECKPOINTS
            assert len(list(kept.glob("*"))) == number
            (kept / f"step-{number}").mkdir(parents=True)
            assert partial_folder(run) == claim.path
        assert names(tmp_path) == {".a.partial"}


def test_a_run_of_a_killed_holder_goes_on_without_a_lease(tmp_path: Path) -> None:
    run, lost = tmp_path / "a", tmp_path / ".a.leases" / "3"
    (lost / CHECKPOINTS / "step-1").mkdir(parents=True)
    (tmp_path / ".a.leases" / "2" / CHECKPOINTS).mkdir(parents=True)  # of one that woke up late
    assert partial_folder(run) == lost
    with claimed(run) as claim:
        assert names(claim.path / CHECKPOINTS) == {"step-1"}
        assert claim.path == tmp_path / ".a.partial"
    assert names(tmp_path) == {".a.partial"}


def test_what_training_has_left_goes_though_the_file_system_fails_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = tmp_path / "a", list[str]()
    finish(run)
    for name in (TRAINED, CHECKPOINTS):
        (run / name).mkdir()
        (run / name / "file").touch()
    unlink, fails = os.unlink, [True, True, True]

    def failing(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if fails and fails.pop():
            raise OSError(errno.EIO, "Input/output error")
        unlink(*args, **kwargs)

    monkeypatch.setattr(os, "unlink", failing)
    forget_training(run)
    tell_left(run, told.append)
    assert names(run) == {RESULT, TRAINED}
    assert told == [
        f"{str(run / TRAINED)!r} is of no use any more and could not be removed: remove it, or "
        "call again, which tries to"
    ]
    told.clear()
    forget_training(run)
    tell_left(run, told.append)
    assert names(run) == {RESULT}
    assert not told


def test_the_lock_of_a_process_that_was_killed_at_its_end_goes(tmp_path: Path) -> None:
    """One that is in use stays."""
    run = tmp_path / "a"
    finish(run)
    lock = tmp_path / ".a.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        forget_training(run)
        assert lock.exists()
    forget_training(run)
    assert names(tmp_path) == {"a"}
    forget_training(run)
