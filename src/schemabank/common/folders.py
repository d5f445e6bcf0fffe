"""Folders that appear under their name whole or not at all, and never in place of another."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.writing import settle, temporary


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
        InputError: the name is taken, or the place cannot be written.
    """
    check_free(folder, mend=mend)
    partial = temporary(folder)
    missing = missing_parents(folder)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {str(folder.parent)!r} ({error.strerror}): {mend}"
        ) from error
    place = partial.stat()
    try:
        yield partial
        check_same(partial, place)
        check_free(folder, mend=mend)
        settle(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(missing)


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


def check_writable(folder: Path) -> None:
    """Find out whether a folder could be made; writes nothing.

    Raises:
        InputError: its place cannot be written.
    """
    there = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "it may not be written" if there.is_dir() else f"{str(there)!r} is not a folder"
        raise InputError(
            f"cannot write to {str(folder.parent)!r} ({reason}): allowed is a folder that you may "
            "write to, choose another --out"
        )


def missing_parents(folder: Path) -> list[Path]:
    """Folders above this one that are not there yet, the innermost first."""
    return [parent for parent in folder.parents if not os.path.lexists(parent)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
