"""Writing files: JSON, JSON lines and tensors, with a full disk an error like any other.

A file or folder that others may read appears under its name whole or not at all: it is written
under a temporary name beside it, and :func:`settle` renames it once its contents are on the disk.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from schemabank.common.errors import first_line

SYNCS_AT_ONCE = 16


def temporary(path: Path) -> Path:
    """Return a hidden name beside a file or folder, to write it under; no other process has it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


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
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        list(pool.map(sync_to_disk, (*partial.rglob("*"), partial)))
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under; it becomes ``path``, or goes if writing fails.

    Raises:
        OSError: it cannot be written.
    """
    partial = temporary(path)
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
        raise OSError(
            f"cannot write {str(path)!r} ({first_line(error)}): free some space, or write elsewhere"
        ) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
