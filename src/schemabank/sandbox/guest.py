"""Runs inside the sandbox, in one process with the code under test: does what the judge asks.

Nothing here is trusted. All that the code could win by taking this file apart is to send replies
of its own, and a reply is only a value, which the judge compares outside.
"""

import __future__

import builtins
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sized
from contextlib import suppress
from itertools import islice
from types import ModuleType
from typing import cast

from schemabank.sandbox import wire
from schemabank.sandbox.limits import apply_limits

FILE_NAME = "program.py"
MOMENT_S = 0.001
ARGUMENTS = vars(BaseException)["args"]  # whatever a class of the code's calls so
MAX_ARGUMENTS_BYTES = 2**16
FUTURES = 0
for _name in __future__.all_feature_names:
    FUTURES |= getattr(__future__, _name).compiler_flag
# By identity: a class of the code's may have a builtin's name, or a metaclass that lies.
ERRORS = {
    id(kind): kind.__name__
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}


def main() -> None:
    """Serve the judge on the two descriptors named on the command line."""
    requests, replies, memory_mib, cpu_s = map(int, sys.argv[1:5])
    apply_limits(memory_mib=memory_mib, cpu_s=cpu_s)
    sys.argv = [FILE_NAME]
    sys.path[:] = [path for path in sys.path if path != "/sandbox"]
    guest = GuestServer()
    with suppress(EOFError, BrokenPipeError):
        while True:
            _serve_one(guest, requests, replies)


class GuestServer:
    """The code's module and the objects in it that the judge knows by number."""

    def __init__(self) -> None:
        self.module = ModuleType("solution")
        self.objects: list[object] = []
        self.numbers: dict[int, int] = {}
        self.flags = 0

    def answer(self, request: bytes) -> bytes:
        """Do one request and return the reply's bytes.

        ``SystemExit`` passes: it ends the process, as it would end a program.
        """
        try:
            operation, *fields = cast("list[object]", wire.from_json(request))
            values = [
                wire.decode(field, self.find, self.find, wire.MAX_REQUEST_DEPTH) for field in fields
            ]
            result = getattr(self, f"do_{operation}")(*values)
            reply = wire.to_json(["value", wire.encode(result, self.refer)])
        except wire.WireError:
            return wire.to_json(["large"])
        except SystemExit:
            raise
        except BaseException as error:  # whatever the code raises is its result
            nearest = next(ERRORS[id(kind)] for kind in type.mro(type(error)) if id(kind) in ERRORS)
            return wire.to_json(["raised", nearest, self.arguments(error)])
        return reply if len(reply) <= wire.MAX_REPLY_BYTES else wire.to_json(["large"])

    def refer(self, value: object) -> int:
        """Number an object that stays here; it keeps its number, and lives as long as this."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def find(self, number: int, _value: object = None) -> object:
        """The object with a number, whatever value was sent with it."""
        return self.objects[number]

    def arguments(self, error: BaseException) -> object:
        """An exception's arguments, or none if they are too much to send."""
        with suppress(wire.WireError):
            found = wire.encode(ARGUMENTS.__get__(error), self.refer)
            if len(wire.to_json(found)) < MAX_ARGUMENTS_BYTES:
                return found
        return ["tuple"]

    def do_start(self, name: str) -> None:
        """Make the module that the code is to run in."""
        self.module.__name__ = name
        self.module.__dict__["__builtins__"] = __builtins__
        sys.modules[name] = self.module

    def do_run(self, text: str) -> bool:
        """Run source in the module; whether it compiles."""
        try:
            code = compile(text, FILE_NAME, "exec", flags=self.flags, dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return False
        self.flags |= code.co_flags & FUTURES
        exec(code, self.module.__dict__)  # noqa: S102 -- what the sandbox is for
        return True

    def do_find(self, names: list[str]) -> dict[str, object]:
        """Those of the names that the module has."""
        return {name: vars(self.module)[name] for name in names if name in vars(self.module)}

    def do_call(
        self, function: Callable[..., object], args: list[object], kwargs: dict[str, object]
    ) -> object:
        """Call it."""
        return function(*args, **kwargs)

    def do_get(self, owner: object, name: str) -> object:
        """Read an attribute."""
        return getattr(owner, name)

    def do_set(self, owner: object, name: str, value: object) -> None:
        """Write an attribute."""
        setattr(owner, name, value)

    def do_item(self, owner: Mapping[object, object], key: object) -> object:
        """Read an item."""
        return owner[key]

    def do_put(self, owner: MutableMapping[object, object], key: object, value: object) -> None:
        """Write an item."""
        owner[key] = value

    def do_delete(self, owner: MutableMapping[object, object], key: object) -> None:
        """Delete an item."""
        del owner[key]

    def do_iter(self, owner: Iterable[object]) -> "Iteration":
        """Begin to iterate."""
        return Iteration(iter(owner))

    def do_take(self, held: "Iteration", most: int) -> list[object]:
        """The next items, at most so many and as many as are made in a moment; none at the end."""
        taken: list[object] = []
        ends = time.monotonic() + MOMENT_S
        for item in islice(held.iterator, most):
            taken.append(item)
            if time.monotonic() > ends:
                break
        return taken

    def do_next(self, owner: Iterator[object]) -> list[object]:
        """The next item, or nothing at the end."""
        with suppress(StopIteration):
            return [next(owner)]
        return []

    def do_operate(self, name: str, left: object, right: object) -> object:
        """Use an operator of two objects here."""
        result: object = getattr(operator, name)(left, right)
        return result

    def do_hash(self, owner: object) -> int:
        """Its hash."""
        return hash(owner)

    def do_isinstance(self, owner: object, kind: type) -> bool:
        """Whether it is of a class here."""
        return isinstance(owner, kind)

    def do_len(self, owner: Sized) -> int:
        """Its length."""
        return len(owner)

    def do_str(self, owner: object) -> str:
        """Its text."""
        return str(owner)

    def do_repr(self, owner: object) -> str:
        """Its text for programmers."""
        return repr(owner)

    def do_format(self, owner: object, how: str) -> str:
        """Its text in some format."""
        return format(owner, how)

    def do_bool(self, owner: object) -> bool:
        """Its truth."""
        return bool(owner)

    def do_end(self) -> None:
        """Nothing; the reply shows that the pipe is still in order."""


class Iteration:
    """An iterator, which stays here whatever its class extends."""

    def __init__(self, iterator: Iterator[object]) -> None:
        self.iterator = iterator


def _serve_one(guest: GuestServer, requests: int, replies: int) -> None:
    (length,) = wire.HEADER.unpack(wire.read_exactly(requests, wire.HEADER.size))
    reply = guest.answer(wire.read_exactly(requests, length))
    # The nonce follows the request and is not read before: while the code runs, no variable
    # holds it, so what a walk over frames and objects finds answers nothing.
    nonce = wire.read_exactly(requests, wire.NONCE_BYTES)
    wire.write_all(replies, wire.HEADER.pack(len(reply)) + nonce + reply)
