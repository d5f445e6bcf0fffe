"""The one exception that means "your input is wrong", which the command line turns into exit 2."""

import textwrap


class InputError(ValueError):
    """Bad input from outside: a setting, a file, a model or a data set.

    Its message is one sentence that names the value, what is allowed and how to mend it.
    """


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, short enough for a sentence."""
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], width=300).rstrip(".")
