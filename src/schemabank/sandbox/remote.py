"""The judge's end of the pipe: asks the guest, and stands in for what lives there.

Every request carries a fresh nonce that its reply must return; anything else on the pipe ends the
check. An object that has no literal form is stood in for by :class:`RemoteObject`, which forwards
what tests do with it, except comparing: it equals itself alone.
"""

import builtins
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from schemabank.sandbox import reasons, wire


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

    def _parse_reply(self, reply: bytes) -> object:
        match wire.from_json(reply):
            case ["value", value]:
                return wire.decode(value, lambda number: RemoteObject(self, number))
            case ["raised", str(name)]:
                return _builtin_exception(name)
            case ["large"]:
                raise CheckEnded(reasons.TOO_LARGE)
        raise CheckEnded(reasons.PROTOCOL)


class RemoteObject:
    """An object in the guest: a function, a class, an instance, an iterator.

    It has no ``__eq__``, so it equals no expected value, whatever the object there would say.
    """

    _guest: RemoteGuest
    _number: int

    def __init__(self, guest: RemoteGuest, number: object) -> None:
        if type(number) is not int:
            raise wire.WireError("malformed number")
        # Past __setattr__, which writes to the object in the guest.
        vars(self).update(_guest=guest, _number=number)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it there."""
        return self._guest.ask("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> object:
        # Python's own probes, such as copy's for __deepcopy__, are no business of the guest's.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._guest.ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._guest.ask("set", self, name, value)

    def __getitem__(self, key: object) -> object:
        return self._guest.ask("item", self, key)

    def __iter__(self) -> Iterator[object]:
        items = self._guest.ask("list", self)
        if not isinstance(items, list):
            raise CheckEnded(reasons.PROTOCOL)
        return iter(items)

    def __len__(self) -> int:
        return cast("int", self._guest.ask("len", self))  # Python checks the type

    def __bool__(self) -> bool:
        return cast("bool", self._guest.ask("bool", self))  # Python checks the type

    def __str__(self) -> str:
        return cast("str", self._guest.ask("str", self))  # Python checks the type


def _encode_argument(value: object) -> object:
    try:
        return wire.encode(value, _number, wire.MAX_REQUEST_DEPTH)
    except wire.WireError as error:
        raise UnsendableError(str(error)) from error


def _number(value: object) -> int:
    if not isinstance(value, RemoteObject):
        raise UnsendableError(f"a {type(value).__name__} has no literal form")
    return int(vars(value)["_number"])


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
