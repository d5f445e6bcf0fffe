"""A suite's packed record (``benchmarks/pack_runs.py``), unpacked for as long as it is read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemabank.common.archives import unpack_tar
from schemabank.common.errors import InputError

SUFFIX = ".tar.xz"


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
        unpack_tar(path, Path(place))
        folders = list(Path(place).iterdir())
        if len(folders) != 1 or not folders[0].is_dir():
            raise InputError(
                f"{str(path)!r} holds {len(folders)} files or folders at its top, allowed is the "
                "one folder of a suite's runs: name a file that benchmarks/pack_runs.py wrote"
            )
        yield folders[0]
