"""What a foreign model may raise when it is asked for something that it was not written for.

A model says no in whatever its parts raise, and so does PEFT on it. That is an answer, for which
every question here has a sentence. Memory that runs out is none: it says nothing of the model, for
fewer slots, or another device, may have room. It goes to whoever can do something about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from schemabank.errors import InputError, first_line
from schemabank.memory import is_out_of_memory

# KeyError and IndexError are LookupErrors, NotImplementedError is a RuntimeError.
REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class RefusalError(Exception):
    """A model, or a library on it, refused; the message is the first line of what it said."""


@contextmanager
def asking() -> Iterator[None]:
    """Run a model's code, and tell its refusal from everything else that may go wrong.

    Our own ``InputError`` has its sentence already and passes, as memory that runs out does.

    Raises:
        RefusalError: the model refused.
    """
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        raise RefusalError(first_line(error)) from error
