"""Folders that appear under their name whole or not at all, and never in place of another."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from schemabank.common.errors import InputError, first_line
from schemabank.common.writing import held_temporary, mend_or, settle, sync_to_disk


def check_new(folder: Path) -> None:
    """Find out, before anything is computed, whether :func:`new_folder` would work; writes nothing.

    Raises:
        InputError: the name is taken, or the place cannot be written.
    """
    check_free(folder)
    check_writable(folder)


@contextmanager
def new_folder(folder: Path, *, mend: str = "choose another --out") -> Iterator[Path]:
    """Give a temporary folder that becomes ``folder``; it is removed if anything fails.

    Args:
        folder: must not exist.
        mend: what to do where it cannot be made, for the error.

    Raises:
        InputError: the name is taken, or the place cannot be written, or is in no file system.
    """
    check_local(folder)
    check_free(folder, mend=mend)
    missing = missing_parents(folder)
    with ExitStack() as exits:
        exits.callback(remove_empty, missing)
        with writing_in(folder.parent, mend=mend):
            partial = exits.enter_context(held_temporary(folder, _make))
        exits.callback(remove_tree, partial)
        place = partial.stat()
        yield partial
        check_same(partial, place)
        check_free(folder, mend=mend)
        settle(partial, folder)
        _keep_names(missing)


@contextmanager
def writing_in(place: Path, *, mend: str) -> Iterator[None]:
    """Write in a folder, and say what to do where that cannot be done.

    Args:
        place: the folder; it need not be there yet.
        mend: what to do in any case, for the error.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {str(place)!r} ({error.strerror or first_line(error)}): "
            f"{mend_or(error, mend)}"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder with those above it, if it is not there; after a power cut they are, too.

    Raises:
        OSError: it cannot be made.
    """
    missing = [] if os.path.lexists(folder) else [folder, *missing_parents(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    _keep_names(missing)


def check_same(path: Path, place: os.stat_result) -> None:
    """Find out whether a folder is still the one that was made, with all that was written to it.

    Raises:
        FileNotFoundError: it was removed or replaced.
    """
    try:
        same = os.path.samestat(path.stat(), place)
    except FileNotFoundError:
        same = False
    if not same:
        raise FileNotFoundError(f"the folder {str(path)!r} was removed while it was being written")


def check_free(folder: Path, *, mend: str = "choose another --out") -> None:
    """Find out whether a name is free.

    Raises:
        InputError: something has this name, even a link to nothing.
    """
    if os.path.lexists(folder):
        raise InputError(f"{str(folder)!r} exists and is not overwritten: {mend}")


def check_local(path: Path) -> None:
    """Find out whether a path names a place in a file system, as ``s3://bucket/runs`` does not.

    As a path, that is a folder ``s3:`` in the working directory. All would be written there, and
    nothing would reach the bucket.

    Raises:
        InputError: it begins as the address of an object store or a server does.
    """
    if not path.parts or path.is_absolute() or not path.parts[0].endswith(":"):
        return
    given = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
    raise InputError(
        f"{given!r} is an address, not a folder: allowed is a folder of this machine or of a "
        "shared file system such as NFS, choose one and copy it there afterwards, as with rclone"
    )


def check_writable(folder: Path) -> None:
    """Find out whether a folder could be made; writes nothing.

    Raises:
        InputError: its place cannot be written, or is in no file system.
    """
    check_local(folder)
    there = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "it may not be written" if there.is_dir() else f"{str(there)!r} is not a folder"
        raise InputError(
            f"cannot write to {str(folder.parent)!r} ({reason}): allowed is a folder that you may "
            "write to, choose another --out"
        )


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as possible; what fails is tried once more."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)


def missing_parents(folder: Path) -> list[Path]:
    """Folders above this one that are not there yet, the innermost first."""
    return [parent for parent in folder.parents if not os.path.lexists(parent)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:  # one that could not be made may have some above it that were
            continue
        except OSError:
            return


def _make(folder: Path) -> None:
    folder.mkdir(parents=True)


def _keep_names(folders: Iterable[Path]) -> None:
    """Wait until the names of new folders are on the disk, without which nothing in them is."""
    for folder in folders:
        sync_to_disk(folder.parent)
