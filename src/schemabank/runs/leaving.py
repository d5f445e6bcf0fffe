"""Leaving in the middle of a training: a signal that asks for it first lets the runs be saved.

The first SIGINT or SIGTERM only takes note. A second one does what the program does with such a
signal by itself, and so does the first if nobody has begun to answer it in a few seconds.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

GRACE_S = 5.0  # a batch system that ends a program kills it after some more
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Leaving:
    """Takes note of signals for a while; in other threads than the main one it does nothing.

    A signal that the program ignores, or has no own way to end at, stays as it is.

    Attributes:
        asked: the signal that came; ``None``: there was none, or it was answered.
        at_once: whether nothing more may be waited for.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.at_once = False
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        """Begin to take note."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if callable(before):
                    self._before[number] = before
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, *_error: object) -> None:
        """Let the program have its signals back; one that nobody has answered counts now."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self.leave()

    def answer(self) -> None:
        """Let what is done before leaving take its time; another signal does not wait for it."""
        self._timer = None  # it finds out; to cancel it takes a lock, which a handler must not

    def leave(self) -> None:
        """Do what the program does with the signal that came, if one did."""
        self.answer()
        if self.asked is not None:
            number, self.asked = self.asked, None
            self._before[number](number, None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
            self._timer = timer = threading.Timer(GRACE_S, lambda: self._repeat(number, timer))
            timer.daemon = True
            timer.start()
        else:
            self.answer()
            self.asked = None  # what it does is done
            self.at_once = True
            self._before[number](number, frame)
            self.at_once = False  # the program goes on

    def _repeat(self, number: int, timer: threading.Timer) -> None:
        """Let a signal count that nobody has begun to answer."""
        main = threading.main_thread().ident
        if self._timer is timer and main is not None:
            signal.pthread_kill(main, number)
