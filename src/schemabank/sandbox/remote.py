"""The judge's end of the pipe: asks the guest, and stands in for what lives there.

Every request carries a fresh nonce that its reply must return; anything else on the pipe ends the
check. An object that has no literal form is stood in for by :class:`RemoteObject`, which forwards
what tests do with it. Of operators only those between two objects of the code's are forwarded: if
the code were asked about a test's own value, it could say that it equals that.
"""

import builtins
import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from types import MappingProxyType
from typing import cast

from schemabank.sandbox import reasons, wire

# An iterator is asked for single items at first, since the one after may take for ever.
ONE_BY_ONE, MOST_AT_ONCE = 64, 1024


class CheckEnded(BaseException):
    """The check is over; no ``except Exception`` of a test may catch it.

    Attributes:
        reason: one of :data:`schemabank.sandbox.reasons.REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnsendableError(Exception):
    """The tests pass the code something that has no literal form."""


class RemoteGuest:
    """The process that runs the code under test, seen from outside.

    Args:
        requests: descriptor that the guest reads.
        replies: descriptor that the guest writes.
    """

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = requests
        self._replies = replies
        self._poll = select.poll()
        self._poll.register(replies, select.POLLIN)
        self.raised: Exception | None = None
        self._objects: dict[int, object] = {}
        self._ended: CheckEnded | None = None

    def ask(self, operation: str, *values: object) -> object:
        """Have one operation done and return its value.

        Raises:
            CheckEnded: the guest is gone or broke the protocol.
            UnsendableError: a value has no literal form.
            Exception: of the builtin kind that the code raised.
        """
        if self._ended is not None:  # whatever the tests caught
            raise self._ended
        fields = [_encode_argument(value) for value in values]
        try:
            answer = self._answer(wire.to_json([operation, *fields]))
        except CheckEnded as ended:
            self._ended = ended
            raise
        except (MemoryError, RecursionError):
            # A set of objects asks for their hashes while it is read, and a reply to that may be
            # another set of objects.
            self._ended = CheckEnded(reasons.TOO_LARGE)
            raise self._ended from None
        if isinstance(answer, Exception):
            self.raised = answer
            raise answer
        return answer

    def _answer(self, request: bytes) -> object:
        """Send a request; return the value that came back, or the exception that was raised."""
        self._check_silent()
        nonce = os.urandom(wire.NONCE_BYTES)
        try:
            wire.write_all(self._requests, wire.HEADER.pack(len(request)) + request + nonce)
            return self._parse_reply(self._read_reply(nonce))
        except (EOFError, BrokenPipeError):
            raise CheckEnded(reasons.ENDED) from None
        except wire.WireError:
            raise CheckEnded(reasons.PROTOCOL) from None

    def _check_silent(self) -> None:
        """Nobody asked, so nothing may stand in the pipe."""
        if self._poll.poll(0):
            raise CheckEnded(reasons.PROTOCOL if os.read(self._replies, 1) else reasons.ENDED)

    def _read_reply(self, nonce: bytes) -> bytes:
        (length,) = wire.HEADER.unpack(wire.read_exactly(self._replies, wire.HEADER.size))
        if wire.read_exactly(self._replies, wire.NONCE_BYTES) != nonce:
            raise CheckEnded(reasons.PROTOCOL)
        if length > wire.MAX_REPLY_BYTES:
            raise CheckEnded(reasons.TOO_LARGE)
        return wire.read_exactly(self._replies, length)

    def _object(self, number: object) -> object:
        """What stands for the object with a number, the same one each time."""
        if type(number) is not int:
            raise wire.WireError("malformed number")
        if number not in self._objects:
            self._objects[number] = _bound(RemoteObject(), self, number)
        return self._objects[number]

    def _extended(self, number: object, value: object) -> object:
        """A value of a builtin's subclass, as it was when it was sent."""
        if type(number) is not int or type(value) not in EXTENDED:
            raise wire.WireError("malformed value")
        return _bound(EXTENDED[type(value)](value), self, number)

    def _parse_reply(self, reply: bytes) -> object:
        match wire.from_json(reply):
            case ["value", value]:
                return wire.decode(value, self._object, self._extended)
            case ["raised", str(name), given]:
                error = _builtin_exception(name)
                arguments = wire.decode(given, self._object, self._extended)
                if type(arguments) is not tuple:
                    raise CheckEnded(reasons.PROTOCOL)
                error.args = arguments
                return error
            case ["large"]:
                raise CheckEnded(reasons.TOO_LARGE)
        raise CheckEnded(reasons.PROTOCOL)


class Remote:
    """What stands for an object in the guest, and reads its attributes and texts there."""

    _guest: RemoteGuest
    _number: int

    def __getattr__(self, name: str) -> object:
        # Python's own probes, such as copy's for __deepcopy__, are no business of the guest's.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._guest.ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._guest.ask("set", self, name, value)

    def __str__(self) -> str:
        return cast("str", self._guest.ask("str", self))  # Python checks the type

    def __repr__(self) -> str:
        return cast("str", self._guest.ask("repr", self))  # Python checks the type

    def __format__(self, how: str) -> str:
        return cast("str", self._guest.ask("format", self, how))  # Python checks the type


class RemoteObject(Remote):
    """An object in the guest: a function, a class, an instance, an iterator.

    One stands for an object for as long as the check takes. It never equals a value of the tests,
    whatever the object there would say.
    """

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it there."""
        return self._guest.ask("call", self, list(args), kwargs)

    def __getitem__(self, key: object) -> object:
        return self._guest.ask("item", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        self._guest.ask("put", self, key, value)

    def __delitem__(self, key: object) -> None:
        self._guest.ask("delete", self, key)

    def __iter__(self) -> Iterator[object]:
        held = self._guest.ask("iter", self)
        for most in chain(repeat(1, ONE_BY_ONE), repeat(MOST_AT_ONCE)):
            taken = _as_list(self._guest.ask("take", held, most))
            yield from taken
            if not taken:
                return

    def __next__(self) -> object:
        for item in _as_list(self._guest.ask("next", self)):
            return item
        raise StopIteration

    def __len__(self) -> int:
        return cast("int", self._guest.ask("len", self))  # Python checks the type

    def __bool__(self) -> bool:
        return cast("bool", self._guest.ask("bool", self))  # Python checks the type

    def __hash__(self) -> int:
        return cast("int", self._guest.ask("hash", self))  # Python checks the type

    def __instancecheck__(self, instance: object) -> bool:
        return (
            isinstance(instance, Remote) and self._guest.ask("isinstance", instance, self) is True
        )


def _operator(name: str) -> Callable[[RemoteObject, object], object]:
    def forward(self: RemoteObject, other: object) -> object:
        if not isinstance(other, RemoteObject):
            return NotImplemented
        guest: RemoteGuest = vars(self)["_guest"]
        return guest.ask("operate", name, self, other)

    return forward


# No __ne__, which Python derives, and no reflected ones, which the guest's operator tries.
for _name in ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod",
              "matmul", "pow", "and", "or", "xor"):  # fmt: skip
    setattr(RemoteObject, f"__{_name}__", _operator(f"__{_name}__"))


def _missing(self: Remote, key: object) -> object:
    return self._guest.ask("item", self, key)


# Values whose class extends a builtin: compared as that, and asked as objects for the rest.
EXTENDED: MappingProxyType[type, type] = MappingProxyType(
    {
        base: type(
            f"Remote{base.__name__}",
            (Remote, base),
            {"__missing__": _missing} if base is dict else {},
        )
        for base in wire.PLAIN
    }
)


def _bound(stand_in: object, guest: RemoteGuest, number: int) -> object:
    """Say which object something stands for, past ``__setattr__``, which writes in the guest."""
    vars(stand_in).update(_guest=guest, _number=number)
    return stand_in


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise CheckEnded(reasons.PROTOCOL)
    return value


def _encode_argument(value: object) -> object:
    try:
        return wire.encode(value, _number, wire.MAX_REQUEST_DEPTH)
    except wire.WireError as error:
        raise UnsendableError(str(error)) from error


def _number(value: object) -> int | None:
    if isinstance(value, Remote):
        return int(vars(value)["_number"])
    if isinstance(value, tuple(wire.PLAIN)):
        return None
    raise UnsendableError(f"a {type(value).__name__} has no literal form")


def _builtin_exception(name: str) -> Exception:
    """An exception of the builtin class with this name, without arguments, or a plain one.

    StopIteration would silently end the test's own loops, ``all(map(candidate, ...))`` say.
    """
    if name in {"StopIteration", "StopAsyncIteration"}:
        return RuntimeError(name)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):  # a group is nothing without its members
            return kind.__new__(kind)
    return Exception(name)
