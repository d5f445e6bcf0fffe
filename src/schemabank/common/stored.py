"""Owns what is too large for memory: values in a temporary file, which are read one by one.

The file has no name, so it goes when nobody uses it any more, also where the program is killed.
"""

import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import IO, Generic, TypeVar, overload

from schemabank.common.errors import InputError

Value = TypeVar("Value")
Indices = Sequence[int]


@dataclass(frozen=True)
class Codec(Generic[Value]):
    """How a value becomes bytes and comes back, and about how many bytes it takes in memory."""

    write: Callable[[Value], bytes]
    read: Callable[[bytes], Value]
    size: Callable[[Value], int]


def kept(values: Iterable[Value], codec: Codec[Value], *, at_most: int) -> Sequence[Value]:
    """Return all values: as a list, or where that is larger than ``at_most`` bytes, in a file.

    Raises:
        InputError: there is no room for the file.
    """
    held: list[Value] = []
    total, rest = 0, iter(values)
    for value in rest:
        held.append(value)
        total += codec.size(value)
        if total > at_most:
            return _stored(chain(_drained(held), rest), codec)
    return held


def chosen(values: Sequence[Value], indices: Iterable[int]) -> Sequence[Value]:
    """Return the values at some places; what lies in a file stays there."""
    if isinstance(values, Stored):
        return Stored(values.file, values.codec, array("q", (values.indices[i] for i in indices)))
    return [values[index] for index in indices]


class _File:
    """The bytes of values one behind the other, and where each begins."""

    def __init__(self) -> None:
        self.handle = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the last of its values
        weakref.finalize(self, _close, self.handle)
        self.starts = array("q", [0])

    def write(self, packed: Iterable[bytes]) -> None:
        for each in packed:
            self.handle.write(each)
            self.starts.append(self.starts[-1] + len(each))
        self.handle.flush()

    def read(self, index: int) -> bytes:
        start, stop = self.starts[index], self.starts[index + 1]
        return os.pread(self.handle.fileno(), stop - start, start)  # safe beside other threads


def _close(handle: IO[bytes]) -> None:
    with suppress(OSError):  # what a full disk did not take was said before
        handle.close()


class Stored(Sequence[Value]):
    """Values in a file: each is read when it is asked for, and not kept.

    Attributes:
        file: where they lie.
        codec: how they are read.
        indices: which of the file's values these are.
    """

    def __init__(self, file: _File, codec: Codec[Value], indices: Indices) -> None:
        self.file, self.codec, self.indices = file, codec, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored[Value]": ...
    def __getitem__(self, index: int | slice) -> "Value | Stored[Value]":
        if isinstance(index, slice):
            return Stored(self.file, self.codec, self.indices[index])
        return self.codec.read(self.file.read(self.indices[index]))


def _drained(held: list[Value]) -> Iterator[Value]:
    """Give a list's values, and their memory back."""
    held.reverse()
    while held:
        yield held.pop()


def _stored(values: Iterable[Value], codec: Codec[Value]) -> Stored[Value]:
    try:
        file = _File()
        file.write(map(codec.write, values))
    except OSError as error:
        raise InputError(
            f"the data are too large for memory, and the folder for temporary files "
            f"{tempfile.gettempdir()!r} cannot hold them ({error}): set TMPDIR to a folder on a "
            "disk with room"
        ) from error
    return Stored(file, codec, range(len(file.starts) - 1))
