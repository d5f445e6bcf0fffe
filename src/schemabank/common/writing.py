"""Writing files: JSON, JSON lines and tensors, with a full disk an error like any other.

A file or folder that others may read appears under its name whole or not at all: it is written
under a temporary name beside it, and :func:`settle` renames it once its contents are on the disk.
What a killed process has left under such a name is removed when the same is written again.
"""

import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

from safetensors import SafetensorError

from schemabank.common.errors import first_line

SYNCS_AT_ONCE = 16
FULL = {errno.ENOSPC, errno.EDQUOT}  # a disk, or what a user may put on it
CLOSED = {errno.EACCES, errno.EPERM}
ELSEWHERE = {errno.EROFS, errno.EFBIG}  # a file system takes nothing, or no file of that size
NO_ROOM = "Not enough disk space"  # of datasets, before it writes
OF_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers tell the number


def temporary(path: Path) -> Path:
    """Return a hidden name beside a file or folder, to write it under; no other process has it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def held_temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a file or folder under a temporary name, and hold it while it is written.

    What other processes have left under such names is removed first, unless they still hold it.

    Args:
        path: the name that it is to have.
        make: makes it, empty.

    Raises:
        OSError: it cannot be made.
    """
    _remove_abandoned(path)
    while True:
        partial = temporary(path)
        make(partial)
        handle = os.open(partial, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks, where nobody removes anything
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not partial.exists():  # another process was faster, and took it for abandoned
                continue
            yield partial
            return
        finally:
            os.close(handle)


def settle(partial: Path, final: Path) -> None:
    """Give a file or folder that is written its name; after a power cut it is whole, too.

    Args:
        partial: where it was written, on the file system of ``final``.
        final: its name; a file of that name is replaced.

    Raises:
        OSError: it cannot be written, or a folder of that name holds something.
    """
    # Before the rename, otherwise the name may be on the disk first. All at once, since a file
    # system then writes what several wait for in one go.
    paths = [*partial.rglob("*"), partial]
    if len(paths) == 1:
        sync_to_disk(partial)
    else:
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
            list(pool.map(sync_to_disk, paths))
    partial.replace(final)
    sync_to_disk(final.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder. They keep its names without that.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def cut_file(path: Path, size: int) -> None:
    """Leave the first bytes of a file.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("r+b") as file:
        os.ftruncate(file.fileno(), size)  # unlike os.truncate by name it goes on after a signal


def extend_file(path: Path, size: int, content: bytes) -> None:
    """Leave the first bytes of a file, add some, and wait until they are on the disk.

    Args:
        path: of the file; without first bytes it is made, in place of another.
        size: how many first bytes.
        content: what is added.

    Raises:
        OSError: it cannot be written; a part may be.
    """
    if not size:
        path.unlink(missing_ok=True)
    with path.open("r+b" if size else "xb", buffering=0) as file:
        os.ftruncate(file.fileno(), size)
        file.seek(size)
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    if not size:
        sync_to_disk(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under; it becomes ``path``, or goes if writing fails.

    Raises:
        OSError: it cannot be written.
    """
    with held_temporary(path, Path.touch) as partial:
        try:
            yield partial
            settle(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing_tensors(path: Path) -> Iterator[Path]:
    """Let safetensors and tokenizers write, and a full disk be an error like any other of files.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield path
    except Exception as error:
        # For an error of a file, tokenizers raises a plain Exception.
        if not isinstance(error, SafetensorError) and type(error) is not Exception:
            raise
        told = OF_RUST.search(str(error))
        raise OSError(
            f"cannot write {str(path)!r} ({first_line(error)}): "
            f"{_mend_or(int(told[1]) if told else None, 'write elsewhere')}"
        ) from error


def refusal_of(error: BaseException, places: Iterable[Path]) -> OSError | None:
    """Return the error, or its cause, by which a place takes no file, if there is one.

    Only what is written meets a full or a read-only disk. Leave lacks also to read a file, or to
    open a connection, and tells nothing of these places unless it is for what lies in them.

    Args:
        error: what went wrong.
        places: where files were to be written.
    """
    for each in (error, error.__cause__):
        if isinstance(each, OSError):
            number = _number(each)
            is_within = number in CLOSED and any(_lies_in(each.filename, p) for p in places)
            if number in FULL | ELSEWHERE or is_within:
                return each
    return None


def how_to_mend(error: BaseException) -> str:
    """Return the end of a message about what could not be written: what to do, where that is known.

    It is empty for an error that has nothing to do with the place, such as a thread that cannot be
    started, and for one whose own message says what to do.
    """
    mend = _mend(_number(error))
    return f"; {mend}" if mend else ""


def mend_or(error: BaseException | None, otherwise: str) -> str:
    """Return what to do about what could not be written, before what helps in any case.

    Args:
        error: why it could not.
        otherwise: what helps in any case, such as the choice of another place.
    """
    return _mend_or(_number(error), otherwise)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _number(error: BaseException | None) -> int | None:
    """The number of a file system's error; another library tells of a full disk without one."""
    if not isinstance(error, OSError):
        return None
    return errno.ENOSPC if NO_ROOM in str(error) else error.errno


def _lies_in(name: object, place: Path) -> bool:
    """Whether an error's file lies in a folder, whatever links lead there."""
    if not isinstance(name, str | bytes):
        return False
    return Path(os.path.realpath(os.fsdecode(name))).is_relative_to(os.path.realpath(place))


def _mend(number: int | None) -> str | None:
    """What to do about the error of a file system that has this number."""
    if number in FULL:
        return "free some space"
    return "make the folder writable" if number in CLOSED else None


def _mend_or(number: int | None, otherwise: str) -> str:
    mend = _mend(number)
    return f"{mend}, or {otherwise}" if mend else otherwise


def _remove_abandoned(path: Path) -> None:
    """Remove what nobody writes any more under temporary names of a file or folder."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial\Z")
    with suppress(OSError):  # a place that cannot be read; what is written there says so
        for partial in [each for each in path.parent.iterdir() if named.match(each.name)]:
            _remove_unless_held(partial)


def _remove_unless_held(partial: Path) -> None:
    with suppress(OSError):  # it is held, or gone, or a link
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if partial.is_dir():
                rmtree(partial)
            else:
                partial.unlink()
        finally:
            os.close(handle)
