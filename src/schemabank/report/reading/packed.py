"""A suite's packed record (``benchmarks/pack_runs.py``), unpacked for as long as it is read."""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path

from schemabank.common.errors import InputError

SUFFIX = ".tar.xz"
MOST_FILES = 200_000  # the record of 10,000 runs has 40,000
LARGEST_RECORD = 2 * 2**30  # bytes, unpacked


def is_packed(path: Path) -> bool:
    """Whether a path is that of a packed record."""
    return path.name.endswith(SUFFIX) and not path.is_dir()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the folder of runs: the path itself, or what a packed record holds.

    Raises:
        InputError: the record cannot be read, is too large, or holds other than one folder of
            files.
    """
    if not is_packed(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        try:
            _unpack(path, place)
        except (OSError, tarfile.TarError, LZMAError, EOFError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"cannot read the record {str(path)!r} ({error}): name a file that "
                "benchmarks/pack_runs.py wrote"
            ) from error
        folders = list(Path(place).iterdir())
        if len(folders) != 1 or not folders[0].is_dir():
            raise InputError(
                f"{str(path)!r} holds {len(folders)} files or folders at its top, allowed is the "
                "one folder of a suite's runs: name a file that benchmarks/pack_runs.py wrote"
            )
        yield folders[0]


def _unpack(path: Path, place: str) -> None:
    """Unpack regular files alone, none outside the place and no more than allowed."""
    size = 0
    with tarfile.open(path, "r|xz") as archive:
        for number, member in enumerate(archive, start=1):
            size += member.size
            if not member.isfile():
                raise InputError(
                    f"{str(path)!r} holds {member.name!r:.100}, which is no file: allowed are "
                    "regular files, pack the runs again"
                )
            if number > MOST_FILES or size > LARGEST_RECORD:
                raise InputError(
                    f"{str(path)!r} unpacks to more than {MOST_FILES:,} files or {LARGEST_RECORD:,}"
                    " bytes: allowed is less, unpack it yourself and name the folder"
                )
            archive.extract(member, place, filter="data")
