"""Reading files that may be damaged or hostile: regular files of bounded size, plain values.

Whatever is wrong with a file ends as an ``InputError`` that names it. Numbers that JSON does not
have, ``NaN`` and ``Infinity``, are refused where a reader asks for finite ones.
"""

import csv
import gzip
import hashlib
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TextIO, cast

from schemabank.common.errors import InputError

MIB = 2**20
LARGEST_JSON = 256 * MIB  # the suite.json of 10,000 runs has about 8
LARGEST_TEXT = MIB  # of a file that people write
LONGEST_LINE = 64 * MIB  # a long book in one row has about 10
DEEPEST = 60  # far below Python's limit of recursion
DELIMITERS = (",", ";", "\t", "|")  # between the cells of tables as text
# A text that repeats itself shrinks to a thousandth; real rows shrink to a third or a tenth.
FREE_EXPANSION, MOST_EXPANSION = 1024 * MIB, 200

# A name with a zero byte and text that is no UTF-8 are ValueErrors.
UNREADABLE = (OSError, ValueError, zlib.error, EOFError)

Tree = dict[str, object]


def read_text(path: Path, *, at_most: int = LARGEST_TEXT) -> str:
    """Read a whole text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it is missing, no file, too large, or not UTF-8.
    """
    return _decode_utf8(read_bytes(path, at_most=at_most), path)


def read_bytes(path: Path, *, at_most: int = LARGEST_TEXT) -> bytes:
    """Read a whole file, which may also be a pipe that is given as a file.

    Raises:
        InputError: it is missing, a folder, or too large.
    """
    return _read_content(path, at_most=at_most, is_packed=False)


def read_unpacked(path: Path, *, at_most: int = LARGEST_JSON) -> str:
    """Read a whole text file; a name with ``.gz`` is unpacked.

    Raises:
        InputError: it is missing, no regular file, torn, not UTF-8, or too large.
    """
    check_regular(path)
    return _decode_utf8(_read_content(path, at_most=at_most, is_packed=path.suffix == ".gz"), path)


def read_json(path: Path, *, finite: bool = False) -> Tree:
    """Read one JSON object.

    Raises:
        InputError: the file is missing, no regular file, too large, or malformed.
    """
    check_regular(path)
    value = parse_json(read_text(path, at_most=LARGEST_JSON), str(path), finite=finite)
    if not isinstance(value, dict):
        raise InputError(
            f"{str(path)!r} holds a {type(value).__name__}, allowed is a JSON object: restore it"
        )
    return value


def parse_json(text: str, where: str, *, finite: bool = False) -> object:
    """Parse JSON that comes from outside.

    Args:
        text: the JSON.
        where: file and line, for messages.
        finite: refuse ``NaN``, ``Infinity`` and numbers as large, which are no JSON.

    Raises:
        InputError: it is malformed, or nested too deeply.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:  # also integers beyond Python's digit limit
        position = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"{where} is not valid JSON{position} ({error or type(error).__name__}): mend it there"
        ) from error
    if text.count("[") + text.count("{") > DEEPEST and _nesting_depth(value) > DEEPEST:
        raise InputError(f"{where} is nested more than {DEEPEST} deep: allowed is less, flatten it")
    if finite and (name := _unbounded_name(value)) is not None:
        raise InputError(
            f"{where} holds no finite number in {name!r}, though JSON has no NaN and no Infinity: "
            "write the number, or leave an empty value out"
        )
    return value


def is_number(value: object, *, at_most: float = sys.float_info.max) -> bool:
    """Whether a value of JSON is a finite number of at most this size; ``true`` is not one."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= at_most


def read_lines(path: Path, *, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Read a text file's lines with their numbers, from 1; a name with ``.gz`` is unpacked.

    Args:
        path: the file.
        newline: as for ``open``; empty leaves the ends of lines as they are.

    Raises:
        InputError: it is missing, no regular file, not UTF-8, torn, or a line or what a packed
            file unpacks to is too long.
    """
    check_regular(path)
    number = 0
    try:
        with _open_lines(path, newline) as lines:
            total, allowed = 0, _most_characters(path)
            while line := lines.readline(LONGEST_LINE):
                number, total = number + 1, total + len(line)
                _check_length(path, number, line, is_too_much=total > allowed)
                yield number, line
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: restore it or name another file") from error
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read after line {number} ({error}): it must be text lines in UTF-8"
        ) from error


def csv_rows(
    path: Path, *, delimiter: str = ",", strict: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read a CSV file with a head: where each row ends, and its cells by column, all of them text.

    Args:
        path: the file.
        delimiter: what stands between cells.
        strict: refuse a head that names a column twice or not at all, and a row with more or fewer
            cells than the head.

    Raises:
        InputError: as :func:`read_lines`, and what is no CSV.
    """
    # Line ends within quotes are text, so that they come as they are.
    lines = (line for _, line in read_lines(path, newline=""))
    csv.field_size_limit(LONGEST_LINE)  # 128 KiB by default, for all readers of the process
    # Without ``strict`` a quote that nothing closes takes all further rows into its cell.
    rows = csv.DictReader(lines, delimiter=delimiter, strict=strict)
    try:
        if strict:
            _check_head(path, rows.fieldnames, delimiter)
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if strict and (None in row or None in row.values()):
                found = sum(value is not None for name, value in row.items() if name is not None)
                raise InputError(
                    f"{where} has {found + len(row.get(None) or ())} cells, but the head names "
                    f"{len(rows.fieldnames or ())} columns: allowed is a cell for each, put text "
                    "with a delimiter or a line break into quotes"
                )
            yield where, row
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read after line {rows.line_num} ({error}): it must be CSV, in which "
            "a cell that begins with a quote ends with one, and has its own quotes doubled"
        ) from error


def _check_head(path: Path, names: Sequence[str] | None, delimiter: str) -> None:
    """Refuse a head whose columns cannot be told apart."""
    if not names:
        raise InputError(f"{path} is empty: its first line must name the columns")
    other = next((mark for mark in DELIMITERS if mark != delimiter and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        raise InputError(
            f"{path} has {delimiter!r} between its cells by its name, but its first line has "
            f"{other!r} ({names[0]!r:.60}): write it with {delimiter!r}, or with tabs as .tsv"
        )
    if not names[0]:
        raise InputError(
            f"{path} has a first column without a name, as pandas writes its index: name it, or "
            "leave it out (index=False)"
        )
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise InputError(
            f"{path} names its columns {', '.join(map(repr, names)):.200} in its first line: "
            "allowed are distinct names, name every column"
        )


def json_lines(path: Path, *, finite: bool = False) -> Iterator[tuple[str, Tree]]:
    """Read JSON lines: where each stands, and its object; empty lines are skipped.

    Raises:
        InputError: as :func:`read_lines`, and where a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path} line {number}"
            value = parse_json(line, where, finite=finite)
            if not isinstance(value, dict):
                raise InputError(
                    f"{where} must be an object with named columns, not {value!r:.60}: mend it"
                )
            yield where, value


def json_rows(
    path: Path, *, finite: bool = False, is_row: Callable[[Tree], bool] = lambda _: False
) -> Iterator[tuple[str, Tree]]:
    """Read a JSON file's rows: a list of objects, one inside an object, or JSON lines.

    ``is_row`` says of an object that is the whole file whether it is its only row.

    Raises:
        InputError: as :func:`read_unpacked`, and what is none of these.
    """
    if _is_json_lines(path):
        yield from json_lines(path, finite=finite)
        return
    value = parse_json(read_unpacked(path), str(path), finite=finite)
    value = [value] if isinstance(value, dict) and is_row(value) else value
    inner = value.values() if isinstance(value, dict) else ()
    lists = [v for v in inner if isinstance(v, list) and v and isinstance(v[0], dict)]
    rows = value if isinstance(value, list) else (lists[0] if len(lists) == 1 else None)
    if rows is None:
        raise InputError(
            f"{str(path)!r} holds no list of rows: allowed are a list of objects, an object with "
            "one such list in it, or an object a line, restore it"
        )
    for index, row in enumerate(rows):
        where = f"{path} row {index}"
        if not isinstance(row, dict):
            raise InputError(
                f"{where} must be an object with named columns, not {row!r:.60}: mend it"
            )
        yield where, row


def _is_json_lines(path: Path) -> bool:
    """Whether a file's first line is an object by itself and another follows.

    A line may be the whole file, so that a long one is no line of rows, and no fault here.
    """
    check_regular(path)
    try:
        with _open_lines(path, None) as file:
            lines = (
                line for line in iter(partial(file.readline, LONGEST_LINE), "") if line.strip()
            )
            first, second = next(lines, ""), next(lines, "")
    except UNREADABLE:
        return False  # which is said when it is read
    if not (first.lstrip().startswith("{") and second.lstrip().startswith("{")):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of files, one behind the other.

    Raises:
        OSError: one cannot be read.
    """
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: found)  # goes on with the same digest
    return found.hexdigest()


def check_regular(path: Path) -> None:
    """Refuse a folder, a pipe or a device in place of a file; a missing file passes.

    Raises:
        InputError: it is one of these.
    """
    try:
        is_other = path.exists() and not path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): name a readable file") from error
    if is_other:
        raise InputError(
            f"{str(path)!r} is not a regular file: put the file there, or name another"
        )


def inside(folder: Path, name: str) -> Path:
    """Return the path of a folder's file after making sure that no link leads out of the folder.

    The hub's cache is made of links into its own store of files, and these count as inside.

    Raises:
        InputError: the file is missing, is not a regular file, or lies elsewhere.
    """
    path = folder / name
    try:
        home, real = folder.resolve(), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise InputError(
            f"cannot read {str(path)!r} ({error}): name a folder that has it"
        ) from error
    check_regular(path)
    store = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in {home, store}:
        raise InputError(
            f"{str(path)!r} is a link to {str(real)!r}, outside its folder: allowed are files of "
            "the folder itself, copy the file there"
        )
    return path


def _check_length(path: Path, number: int, line: str, *, is_too_much: bool) -> None:
    if len(line) == LONGEST_LINE and not line.endswith("\n"):
        raise InputError(
            f"{path} line {number} has more than {LONGEST_LINE} characters: allowed are "
            "shorter ones, break the line or name another file"
        )
    if is_too_much:
        raise InputError(
            f"{path} unpacks to more than {MOST_EXPANSION} times its size: allowed is less, give "
            "the file unpacked if it is meant"
        )


def _read_content(path: Path, *, at_most: int, is_packed: bool) -> bytes:
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            content = file.read(at_most + 1)
    except UNREADABLE as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): name a readable file") from error
    if len(content) > at_most:
        raise InputError(
            f"{str(path)!r} has more than {at_most} bytes, allowed are files of at most so many: "
            "name the right file, or restore it"
        )
    return content


def _decode_utf8(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): save it as UTF-8") from error


def _open_lines(path: Path, newline: str | None) -> IO[str]:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=newline))
    return path.open(encoding="utf-8-sig", newline=newline)


def _most_characters(path: Path) -> float:
    """The most characters to read of a file: unlimited, unless it is packed."""
    if path.suffix != ".gz":
        return math.inf
    return max(FREE_EXPANSION, MOST_EXPANSION * path.stat().st_size)


def _unbounded_name(value: object, name: str = "") -> str | None:
    """The dotted name of the first number that is not finite."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        found = (
            _unbounded_name(part, f"{name}.{key}" if name else str(key)) for key, part in parts
        )
        return next((place for place in found if place is not None), None)
    return name if isinstance(value, float) and not math.isfinite(value) else None


def _nesting_depth(value: object) -> int:
    """How deep lists and objects lie in each other."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        depth += 1
        inner = [v for v in level if isinstance(v, dict | list)]
        level = [v for c in inner for v in (c.values() if isinstance(c, dict) else c)]
    return depth
