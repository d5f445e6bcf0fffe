"""Exceptions that the command line turns into an exit code of their own: 2 and 3."""

import textwrap


class InputError(ValueError):
    """Bad input from outside: a setting, a file, a model or a data set.

    Its message is one sentence that names the value, what is allowed and how to mend it.
    """


class FailedRunsError(RuntimeError):
    """Some runs of several failed, and nothing can be made of the others as yet."""


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, short enough for a sentence."""
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], width=300).rstrip(".")
