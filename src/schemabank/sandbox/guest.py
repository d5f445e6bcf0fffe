"""Runs inside the sandbox, in one process with the code under test: does what the judge asks.

Nothing here is trusted. All that the code could win by taking this file apart is to send replies
of its own, and a reply is only a value, which the judge compares outside.
"""

import __future__

import builtins
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import suppress
from itertools import islice
from types import ModuleType
from typing import cast

from schemabank.sandbox import wire
from schemabank.sandbox.limits import apply_limits

FILE_NAME = "program.py"
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
        self.flags = 0

    def answer(self, request: bytes) -> bytes:
        """Do one request and return the reply's bytes.

        ``SystemExit`` passes: it ends the process, as it would end a program.
        """
        try:
            operation, *fields = cast("list[object]", wire.from_json(request))
            find = self.objects.__getitem__
            values = [wire.decode(field, find, wire.MAX_REQUEST_DEPTH) for field in fields]
            result = getattr(self, f"do_{operation}")(*values)
            reply = wire.to_json(["value", wire.encode(result, self.refer)])
        except wire.WireError:
            return wire.to_json(["large"])
        except SystemExit:
            raise
        except BaseException as error:  # whatever the code raises is its result
            nearest = next(ERRORS[id(kind)] for kind in type.mro(type(error)) if id(kind) in ERRORS)
            return wire.to_json(["raised", nearest])
        return reply if len(reply) <= wire.MAX_REPLY_BYTES else wire.to_json(["large"])

    def refer(self, value: object) -> int:
        """Number an object that stays here."""
        self.objects.append(value)
        return len(self.objects) - 1

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

    def do_list(self, owner: Iterable[object]) -> list[object]:
        """Iterate."""
        return list(islice(owner, wire.MAX_REPLY_BYTES))

    def do_len(self, owner: Sized) -> int:
        """Its length."""
        return len(owner)

    def do_str(self, owner: object) -> str:
        """Its text."""
        return str(owner)

    def do_bool(self, owner: object) -> bool:
        """Its truth."""
        return bool(owner)

    def do_end(self) -> None:
        """Nothing; the reply shows that the pipe is still in order."""


def _serve_one(guest: GuestServer, requests: int, replies: int) -> None:
    (length,) = wire.HEADER.unpack(wire.read_exactly(requests, wire.HEADER.size))
    reply = guest.answer(wire.read_exactly(requests, length))
    # The nonce follows the request and is not read before: while the code runs, no variable
    # holds it, so what a walk over frames and objects finds answers nothing.
    nonce = wire.read_exactly(requests, wire.NONCE_BYTES)
    wire.write_all(replies, wire.HEADER.pack(len(reply)) + nonce + reply)
