"""Reading archives that may be damaged or hostile: regular files, and no more than is allowed.

Whatever is wrong with one ends as an ``InputError`` that names it.
"""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from lzma import LZMAError
from pathlib import Path

import pyarrow

from schemabank.common.errors import InputError, first_line
from schemabank.common.files import LARGEST_JSON, check_regular

ZSTD = 93  # how a zip names Zstandard
LOCAL_HEAD = struct.Struct("<26xHH")  # before a member: how long its name and its extra fields are
MOST_FILES = 1_000_000
LARGEST_ARCHIVE = 4 * 2**30  # bytes, unpacked
# Of a zip: RuntimeError for encrypted ones, NotImplementedError for unknown ways of packing.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError),
)


def unpack_tar(path: Path, place: Path) -> None:
    """Unpack a tar file packed with xz, none of whose files may lie outside the place.

    Raises:
        InputError: it cannot be read, is too large, or holds other than regular files.
    """
    check_regular(path)
    try:
        with tarfile.open(path, "r|xz") as archive:
            size = 0
            for number, member in enumerate(archive, start=1):
                size += member.size
                _check_size(path, number, size)
                if not member.isfile():
                    raise InputError(
                        f"{str(path)!r} holds {member.name!r:.100}, which is no file: allowed are "
                        "regular files, pack them again"
                    )
                archive.extract(member, place, filter="data")
    except UNREADABLE as error:
        raise _torn(path, error) from error


def zip_names(path: Path) -> list[str]:
    """Return the names of a zip's members, sorted.

    Raises:
        InputError: it cannot be read, or would unpack to too much.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except UNREADABLE as error:
        raise _torn(path, error) from error
    _check_size(path, len(members), sum(member.file_size for member in members))
    return sorted(member.filename for member in members)


def zip_texts(path: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Read members of a zip one by one: where each stands, and its text.

    Raises:
        InputError: one is torn, too large, or not UTF-8.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                member = archive.getinfo(name)
                if member.compress_type == ZSTD:
                    yield f"{path} {name}", _text(partial(_zstd, path, member), path, name)
                    continue
                with archive.open(member) as file:
                    yield f"{path} {name}", _text(file.read, path, name)
    except UNREADABLE as error:
        raise _torn(path, error) from error


def _zstd(path: Path, member: zipfile.ZipInfo, most: int) -> bytes:
    """Unpack a member packed with Zstandard, which `zipfile` cannot before Python 3.14."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(LOCAL_HEAD.size)
        if len(head) < LOCAL_HEAD.size or member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{member.filename!r:.100} is cut off or encrypted")
        file.seek(sum(LOCAL_HEAD.unpack(head)), io.SEEK_CUR)
        packed = file.read(member.compress_size)
    with pyarrow.input_stream(pyarrow.py_buffer(packed), compression="zstd") as stream:
        content: bytes = stream.read(most)
    if len(content) < most and zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r:.100}")
    return content


def _text(read: Callable[[int], bytes], path: Path, name: str) -> str:
    """A member's text, of which no more is unpacked than is allowed, whatever its head says."""
    content = read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise InputError(
            f"{path} {name} has more than {LARGEST_JSON} bytes: allowed are at most so many"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} {name} is not UTF-8 ({error}): restore the file") from error


def _check_size(path: Path, number: int, size: int) -> None:
    if number > MOST_FILES or size > LARGEST_ARCHIVE:
        raise InputError(
            f"{str(path)!r} unpacks to more than {MOST_FILES:,} files or {LARGEST_ARCHIVE:,} "
            "bytes: allowed is less, name a smaller one"
        )


def _torn(path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot read {str(path)!r} ({first_line(error)}): restore it, or name another file"
    )
