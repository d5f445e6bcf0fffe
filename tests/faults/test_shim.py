"""What the library between a program and the disk sees and does; the programs are real ones."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faults.shim import VARIABLE, Event, Fault, Watch, built, can_build, read_log

pytestmark = pytest.mark.skipif(not can_build(), reason="needs a C compiler")

WRITER = """
import sys
from pathlib import Path
place = Path(sys.argv[1])
(place / "a").mkdir()
(place / "a" / "b").write_bytes(b"0123456789")
(place / "a" / "b").rename(place / "c")
(place / "c").read_bytes()
(place / "c").unlink()
"""


CLAIMER = """
import sys
from pathlib import Path
from schemabank.runs.folder import claimed
with claimed(Path(sys.argv[1]) / "run"):
    pass
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("library"))


def ran(
    program: str, folder: Path, library: Path, watch: Watch
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(library), VARIABLE: str(watch.file)}
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )


def logged(folder: Path, tmp_path: Path, library: Path, program: str = WRITER) -> list[Event]:
    watch = Watch(tmp_path / "watch", folder, log=tmp_path / "log")
    assert ran(program, folder, library, watch).returncode == 0
    return list(read_log(tmp_path / "log"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def test_it_sees_every_operation_in_its_order(folder: Path, tmp_path: Path, library: Path) -> None:
    found = [
        (e.what, Path(e.path).name, Path(e.other).name) for e in logged(folder, tmp_path, library)
    ]
    assert [row for row in found if row[0] not in ("read", "open")] == [
        ("mkdir", "a", ""),
        ("create", "b", ""),
        ("write", "b", ""),
        ("rename", "b", "c"),
        ("unlink", "c", ""),
    ]


def test_it_knows_what_was_written(folder: Path, tmp_path: Path, library: Path) -> None:
    (write,) = [event for event in logged(folder, tmp_path, library) if event.what == "write"]
    assert (write.offset, write.content) == (0, b"0123456789")


def number_of(what: str, folder: Path, tmp_path: Path, library: Path) -> int:
    found = next(e.number for e in logged(folder, tmp_path, library) if e.what == what)
    (folder / "a").rmdir()
    return found


@pytest.mark.parametrize(
    ("what", "fault", "said"),
    [
        ("mkdir", Fault.EIO, "Input/output error"),
        ("create", Fault.ENOSPC, "No space left"),
        ("rename", Fault.EIO, "Input/output error"),
        ("write", Fault.ENOSPC, "No space left"),
    ],
)
def test_the_one_operation_fails(
    what: str, fault: Fault, said: str, folder: Path, library: Path
) -> None:
    at = number_of(what, folder, folder.parent, library)
    watch = Watch(folder.parent / "watch", folder, fault=fault, at=at)
    done = ran(WRITER, folder, library, watch)
    assert (done.returncode, said in done.stderr, watch.fired) == (1, True, 1)
    assert watch.last.split(" ")[0] == what


@pytest.mark.parametrize("fault", [Fault.SHORT, Fault.EINTR])
def test_python_tries_again_what_may_be_tried_again(
    fault: Fault, folder: Path, tmp_path: Path, library: Path
) -> None:
    at = number_of("write", folder, tmp_path, library)
    watch = Watch(tmp_path / "watch", folder, fault=fault, at=at)
    done = ran(WRITER, folder, library, watch)
    assert (done.returncode, done.stderr, watch.fired) == (0, "", 1)


def test_a_signal_does_not_keep_a_run_from_being_claimed(
    folder: Path, tmp_path: Path, library: Path
) -> None:
    """Python calls ``ftruncate`` again after a signal, but not as a file's own method."""
    (cut,) = [e for e in logged(folder, tmp_path, library, CLAIMER) if e.what == "truncate"]
    watch = Watch(tmp_path / "watch", folder, fault=Fault.EINTR, at=cut.number)
    done = ran(CLAIMER, folder, library, watch)
    assert (done.returncode, done.stderr, watch.fired) == (0, "", 1)
    assert watch.last.split(" ")[0] == "truncate"


def test_a_kill_meets_half_a_write(folder: Path, tmp_path: Path, library: Path) -> None:
    at = number_of("write", folder, tmp_path, library)
    watch = Watch(tmp_path / "watch", folder, fault=Fault.KILL, at=at)
    assert ran(WRITER, folder, library, watch).returncode == -signal.SIGKILL
    assert (folder / "a" / "b").read_bytes() == b"01234"


def test_what_lies_elsewhere_is_left_alone(folder: Path, tmp_path: Path, library: Path) -> None:
    (tmp_path / "other").mkdir()
    watch = Watch(tmp_path / "watch", folder, fault=Fault.EIO, at=1, repeats=1000)
    assert ran(WRITER, tmp_path / "other", library, watch).returncode == 0
    assert (watch.count, watch.fired) == (0, 0)
