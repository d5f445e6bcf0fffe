"""What a foreign model may raise when it is asked for something that it was not written for.

Models raise many kinds of errors for that, and so does PEFT on them. Here these become one error,
and the caller says what it means. Running out of memory is not among them: with fewer slots, or on
another device, the model may work. That error passes unchanged, to code that can free memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from schemabank.common.errors import InputError, first_line
from schemabank.common.memory import is_out_of_memory

# KeyError and IndexError are LookupErrors, NotImplementedError is a RuntimeError, and a division by
# zero is an ArithmeticError. An ImportError tells of a library that the model needs.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


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
