"""What goes through the pipe: frames, and values as plain data.

A frame is a length, a nonce and JSON. JSON has no sets or tuples, so a container is a list that
begins with its type's name; decoding builds nothing but plain builtin values, whatever the bytes
say. An object of any other class stays where it is and travels as a number. One whose class
extends a builtin travels as both.
"""

import json
import os
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import chain
from typing import Any

HEADER = struct.Struct(">I")
NONCE_BYTES = 16
MAX_REPLY_BYTES = 2**20
MAX_REPLY_DEPTH = 100
# Tests put what came back into larger values, so a request may be more than any reply.
MAX_REQUEST_DEPTH = 300
MAX_ITEMS = 2**21
# What JSON gives for itself, which most values of a long list are.
FLAT = frozenset({int, float, str, bool, type(None)})
# Beyond 64 bits integers travel in hexadecimal, which is parsed in linear time.
SMALL = range(-(2**63), 2**63)

Encode = Callable[[object], int | None]
Decode = Callable[[int], object]
Extend = Callable[[int, object], object]


class WireError(Exception):
    """Bytes that are no value, or a value that cannot be sent."""


def read_exactly(fd: int, num_bytes: int) -> bytes:
    """Read that many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    parts = bytearray()
    while len(parts) < num_bytes:
        part = os.read(fd, min(num_bytes - len(parts), 2**16))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def to_json(value: object) -> bytes:
    """Write encoded values as bytes."""
    return json.dumps(value, separators=(",", ":")).encode()


def from_json(data: bytes) -> object:
    """Read what :func:`to_json` wrote; the result still has to be decoded.

    Raises:
        WireError: the bytes are something else.
    """
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(str(error)) from error
    return value


def encode(value: object, refer: Encode, depth: int = MAX_REPLY_DEPTH) -> object:
    """Turn a value into lists, numbers and strings.

    A subclass of a builtin becomes the builtin, read below any method that it overrides, and the
    object's number if it has one.

    Args:
        value: anything.
        refer: gives an object that has no literal form its number; None if it is a value only.
        depth: how many containers may stand inside each other.

    Raises:
        WireError: too many containers inside each other, or too many items in one.
    """
    if depth < 0:
        raise WireError("too deep")
    kind = type(value)
    if value is None or kind in {bool, str, float} or (kind is int and value in SMALL):
        return value
    if kind in SCALARS:
        return [kind.__name__, *SCALARS[kind](value)]
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    if kind in CONTAINERS or (kind in PARTS and _is_plain_time(value)):
        items = _flat_items(value) if kind in CONTAINERS else PARTS[kind](value)
        return [kind.__name__, *(encode(item, refer, depth - 1) for item in items)]
    return _encode_object(value, refer, depth)


def _encode_object(value: object, refer: Encode, depth: int) -> object:
    number = refer(value)
    for base, plain in PLAIN.items():
        if issubclass(type(value), base):
            found = encode(plain(value), refer, depth - 1)
            return found if number is None else ["sub", number, found]
    return ["object", number]


def decode(data: object, find: Decode, extend: Extend, depth: int = MAX_REPLY_DEPTH) -> object:
    """Turn what :func:`encode` gave back into a value.

    Args:
        data: parsed JSON from the other side.
        find: gives the object with a number.
        extend: gives the object with a number that also is a value.
        depth: how many containers may stand inside each other.

    Raises:
        WireError: it is nothing that :func:`encode` gives.
    """
    if depth < 0:
        raise WireError("too deep")
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise WireError("a bare object")
        return data
    try:
        name, *fields = data
        if name == "object":
            (number,) = fields
            return find(number)
        if name == "sub":
            number, field = fields
            return extend(number, decode(field, find, extend, depth - 1))
        if name in MAKERS:
            return MAKERS[name](*fields)
        return BUILDERS[name](
            [
                field if type(field) in FLAT else decode(field, find, extend, depth - 1)
                for field in fields
            ]
        )
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise WireError("malformed value") from error


def _flat_items(value: object) -> Iterable[object]:
    assert isinstance(value, CONTAINERS)
    if len(value) > MAX_ITEMS:
        raise WireError("too long")
    return chain.from_iterable(value.items()) if isinstance(value, dict) else value


def _is_plain_time(value: object) -> bool:
    """Whether it has no time zone that the code wrote itself."""
    return not isinstance(value, datetime | time) or type(value.tzinfo) in {type(None), timezone}


def _as_dict(parts: list[object]) -> dict[object, object]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _parse_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise WireError("malformed value") from error


# Fields of values that are written out, by their type.
SCALARS: dict[type, Callable[[Any], tuple[object, ...]]] = {
    int: lambda v: (hex(v),),
    complex: lambda v: (v.real, v.imag),
    bytes: lambda v: (v.hex(),),
    bytearray: lambda v: (v.hex(),),
    range: lambda v: (hex(v.start), hex(v.stop), hex(v.step)),
    slice: lambda v: (v.start, v.stop, v.step),
    Fraction: lambda v: (hex(v.numerator), hex(v.denominator)),
    Decimal: lambda v: (str(v),),
}
CONTAINERS = (list, tuple, set, frozenset, dict, OrderedDict, Counter)
KEYS: type = type({}.keys())
ITEMS: type = type({}.items())
# Values that are made of other values.
PARTS: dict[type, Callable[[Any], Iterable[object]]] = {
    date: lambda v: (v.year, v.month, v.day),
    time: lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold),
    datetime: lambda v: (*v.timetuple()[:6], v.microsecond, v.tzinfo, v.fold),
    timedelta: lambda v: (v.days, v.seconds, v.microseconds),
    timezone: lambda v: v.__getinitargs__(),
    deque: lambda v: (list(v), v.maxlen),
    KEYS: list,
    ITEMS: lambda v: chain.from_iterable(v),
}
TYPES = {
    kind.__name__: kind
    for kind in (bool, float, str, object, *SCALARS, *CONTAINERS, *PARTS)
    if kind not in {KEYS, ITEMS}
}
# How a subclass is read without asking the methods that it may have replaced.
PLAIN: dict[type, Callable[[Any], object]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: lambda v: str.__getitem__(v, slice(None)),
    bytes: lambda v: bytes.__getitem__(v, slice(None)),
    list: lambda v: list.__getitem__(v, slice(None)),
    tuple: lambda v: tuple.__getitem__(v, slice(None)),
    set: lambda v: set().union(set.copy(v)),
    frozenset: lambda v: frozenset().union(frozenset.copy(v)),
    dict: lambda v: dict(dict.items(v)),
}
MAKERS: dict[str, Callable[..., object]] = {
    "int": lambda text: int(text, 16),
    "complex": complex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda *texts: range(*(int(text, 16) for text in texts)),
    "slice": slice,
    "Fraction": lambda *texts: Fraction(*(int(text, 16) for text in texts)),
    "Decimal": _parse_decimal,
    "type": TYPES.__getitem__,
}
BUILDERS: dict[str, Callable[[list[Any]], object]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": _as_dict,
    "OrderedDict": lambda parts: OrderedDict(_as_dict(parts)),
    "Counter": lambda parts: Counter(_as_dict(parts)),
    "date": lambda parts: date(*parts),
    "time": lambda parts: time(*parts[:5], fold=parts[5]),
    "datetime": lambda parts: datetime(*parts[:8], fold=parts[8]),  # noqa: DTZ001 -- it may have none
    "timedelta": lambda parts: timedelta(*parts),
    "timezone": lambda parts: timezone(*parts),
    "deque": lambda parts: deque(*parts),
    "dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "dict_items": lambda parts: _as_dict(parts).items(),
}
