"""Says what a program waits for.

Compiling, loading and other processes may take minutes, and a program that waits in silence looks
like one that hangs. Short waits are never mentioned.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FIRST_S = 60.0  # of waiting, before the first note
GROWTH = 2.0  # of the pause from note to note

Note = Callable[[str], None]


class Wait:
    """What is being waited for, and since when.

    Args:
        what: the first of it, as it stands in a sentence.
    """

    def __init__(self, what: str) -> None:
        self.what = [what]
        self.since = time.monotonic()

    def goes_on(self) -> None:
        """Say that something has happened: it is waited for the next now."""
        self.since = time.monotonic()


# Of this thread: a wait within another one shares its clock and tells more exactly what it is for.
_OUTER: ContextVar[Wait | None] = ContextVar("outer", default=None)


@contextmanager
def waiting(what: str, note: Note) -> Iterator[Wait]:
    """Do what may take long; after a minute, and then ever more rarely, say what it is.

    Within another one, only ``what`` changes for a while.

    Args:
        what: as in "still ``what``", for instance "loading the base model".
        note: told one line, from another thread.
    """
    outer = _OUTER.get()
    if outer is not None:
        outer.what.append(what)
        try:
            yield outer
        finally:
            outer.what.pop()
        return
    wait, ended = Wait(what), threading.Event()
    watcher = threading.Thread(target=_watch_and_note, args=(wait, ended, note), daemon=True)
    token = _OUTER.set(wait)
    watcher.start()
    try:
        yield wait
    finally:
        ended.set()
        _OUTER.reset(token)
        watcher.join()


def _watch_and_note(wait: Wait, ended: threading.Event, note: Note) -> None:
    since, pause_s = wait.since, FIRST_S
    due = since + pause_s
    while not ended.wait(max(0.0, due - time.monotonic())):
        if wait.since != since:
            since, pause_s = wait.since, FIRST_S
            due = since + pause_s
            continue
        try:
            note(f"still {wait.what[-1]}, {time.monotonic() - since:.0f} s so far")
        except (OSError, ValueError):  # the notes cannot be written; the waiting thread will notice
            return
        pause_s *= GROWTH
        due = time.monotonic() + pause_s
