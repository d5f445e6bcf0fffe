"""Owns the values of a row: columns by name or by a dotted path into them, as text where needed.

``answers.text`` is the column of that name, or else ``text`` inside the column ``answers``. Inside
a list a number counts from 0, and any other name is looked up in every item.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from schemabank.common.errors import InputError, did_you_mean
from schemabank.tasks.prompts import unknown_in
from schemabank.tasks.scoring.answers import plain_decimal

MISSING = object()  # what a name finds that leads nowhere; what is there may be null
Row = tuple[str, Mapping[str, object]]  # where it stands, for messages, and its columns


def column(columns: Mapping[str, object], name: str) -> object:
    """Return a column, or what a dotted name finds inside one; ``None`` if there is nothing."""
    found = _found(columns, name)
    return None if found is MISSING else found


def is_null(columns: Mapping[str, object], name: str) -> bool:
    """Whether a column, or what a dotted name finds inside one, is there and null.

    Everything inside an object that is null is null, too.
    """
    return _found(columns, name) is None


def dotted_in(template: str, names: Iterable[str]) -> list[str]:
    """Return the dotted names of a template that lead into one of these columns."""
    known = tuple(names)
    heads = tuple(f"{name}." for name in known)
    return [name for name in unknown_in(template, known) if name.startswith(heads)]


def check_scalar(row: Row, name: str, setting: str) -> None:
    """Refuse a value that is neither text nor a number where text is needed; a missing one passes.

    Raises:
        InputError: a list, an object, a truth value, or a number that is not finite, such as the
            NaN that pandas has for an empty cell.
    """
    where, columns = row
    value = column(columns, name)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    is_number |= isinstance(value, float) and math.isfinite(value)
    if value is None or isinstance(value, str) or is_number:
        return
    kind = {list: "a list", dict: "an object", bool: "a truth value"}.get(type(value), "no number")
    inner = {"a list": f" write {name}.0 for its first item,"}
    inner |= {"an object": f" write {name}. and a name in it,"}
    raise InputError(
        f"{where} has {kind}, {value!r:.60}, in column {name!r}, which {setting} names: allowed is "
        f"text or a number,{inner.get(kind, '')} write it as text or leave the row out"
    )


def references_in(row: Row, name: str | None) -> tuple[str, ...]:
    """Return the texts in a column with one or several right answers.

    Raises:
        InputError: there are none, or something else.
    """
    if name is None:
        return ()
    where, columns = row
    value: Any = column(columns, name)
    if isinstance(value, dict):
        raise InputError(
            f"{where} has an object in column {name!r} (task.records.references): a text or a list "
            f"of texts is allowed, perhaps one of its own columns ({', '.join(value):.300})"
        )
    values = value if isinstance(value, list) else [value]
    for each in values:
        check_scalar((where, {name: each}), name, "task.records.references")
    texts = tuple(as_text(v) for v in values if v is not None and as_text(v).strip())
    if not texts:
        guess = "" if name in columns else did_you_mean(name, columns)
        raise InputError(
            f"{where} has no references in column {name!r} (task.records.references){guess}: a "
            "text or a list of texts is allowed, add one"
        )
    return texts


def text_in(row: Row, setting: str, name: str | None, *, otherwise: str) -> str:
    """Return the text of the column that a setting of records names, or else a default.

    Raises:
        InputError: the column is missing, empty or no text.
    """
    if name is None:
        return otherwise
    where, columns = row
    value = column(columns, name)
    check_scalar(row, name, f"task.records.{setting}")
    if value is None or not as_text(value):
        raise InputError(
            f"{where} has no column {name!r}, which task.records.{setting} names"
            f"{did_you_mean(name, columns)}: allowed are {', '.join(map(repr, columns)):.300}, add "
            "the column or name another"
        )
    return as_text(value)


def as_text(value: object) -> str:
    """Spell a value out: numbers without an exponent, lists and objects as JSON."""
    if isinstance(value, float):
        return plain_decimal(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain_row(where: str, row: Mapping[str, object]) -> Row:
    """Return a row as JSON can hold it; refuse text that is not valid Unicode.

    Dates, times and decimals of tables become their text, as a CSV file has them. Columns with
    something else, such as pictures, are left out.

    Raises:
        InputError: such text.
    """
    spelt = {str(name): v if _is_plain(v) else _spelt(v) for name, v in row.items()}
    known = {name: value for name, value in spelt.items() if _is_plain(value)}
    try:
        "".join(as_text(value) for value in known.values() if value is not None).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds text that is not valid Unicode ({error}): mend it"
        ) from error
    return where, known


def _found(columns: Mapping[str, object], name: str) -> object:
    """What a name finds, or that it is missing."""
    if name in columns:
        return columns[name]
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:end])
        if head in columns:
            return _inside(columns[head], parts[end:])
    return MISSING


def _inside(value: object, parts: list[str]) -> object:
    """What a path finds in a value; items of a list that lack it or have null are left out."""
    if not parts or value is None:
        return value
    first, *rest = parts
    if isinstance(value, Mapping):
        return _inside(value[first], rest) if first in value else MISSING
    if not isinstance(value, list):
        return MISSING
    if first.isdecimal():
        return _inside(value[int(first)], rest) if int(first) < len(value) else MISSING
    found = [_inside(item, parts) for item in value]
    return [item for item in found if item is not None and item is not MISSING] or MISSING


def _spelt(value: object) -> object:
    """A value with its dates, times and decimals as text; a decimal keeps its zeros."""
    if isinstance(value, dict):
        return {name: _spelt(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value) if isinstance(value, date | time | timedelta) else value


def _is_plain(value: object) -> bool:
    """Whether JSON can hold a value; data sets may have pictures and times, which it cannot."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(v) for name, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)
