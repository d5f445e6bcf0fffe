"""When Python looks for garbage, which is objects that hold each other in circles.

It looks at all objects that there are. PyTorch and transformers alone make hundreds of thousands,
which stay to the end: to look at them again and again costs a second at the start and at the end.
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python free no circles of objects meanwhile."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command or a worker needs, and never look at it for garbage.

    In a process that had imported PyTorch before, there may be garbage among what would be left out
    of later looks, so nothing is.
    """
    is_new = "torch" not in sys.modules
    with uncollected():
        yield
        if is_new:
            gc.freeze()


def look_no_more_at_the_end() -> None:
    """Let this process end without a last look for garbage: all memory goes back to the system.

    Everything else that Python does at its end is done, before and after.
    """
    atexit.register(gc.freeze)
