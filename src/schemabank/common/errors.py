"""Exceptions that the command line turns into an exit code of their own: 2 and 3."""

import difflib
import textwrap
from collections.abc import Iterable

LONGEST_WORD = 400  # characters, of a message; paths are words
LONGEST_LINE = 2400  # of a message


class InputError(ValueError):
    """Bad input from outside: a setting, a file, a model or a data set.

    Its message is one sentence that names the value, what is allowed and how to mend it. Values
    come from outside and may be of any length, so that what is too long to be read is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_readable, message.split("\n"))))


class FailedRunsError(RuntimeError):
    """Some of several runs failed, and the others alone are of no use yet."""


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, short enough for a sentence."""
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], width=300).rstrip(".")


def printable(text: str, keep: str = "") -> str:
    """Return a text that can neither move a terminal's cursor nor change its colours.

    Names and texts of others stand in messages; ``keep`` are characters that may stay.
    """
    return "".join(c if c.isprintable() or c in keep else " " for c in text)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name most like a wrong one, or nothing."""
    spelt = {_letters_and_digits(known): known for known in allowed}
    close = difflib.get_close_matches(_letters_and_digits(name), spelt, n=1, cutoff=0.7)
    return f" (did you mean {spelt[close[0]]!r}?)" if close else ""


def _readable(line: str) -> str:
    """A line of a message without most of its longest words, and of its middle if it is long."""
    words = (_cut(word, LONGEST_WORD) for word in line.split(" "))
    return _cut(" ".join(words), LONGEST_LINE)


def _cut(text: str, longest: int) -> str:
    """A text that may lack its middle: at its end stands how to mend what is wrong."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}...{text[-longest // 4 :]}"


def _letters_and_digits(name: str) -> str:
    """A name without what is easily mistaken: case, blanks and the marks for them."""
    return "".join(character for character in name.casefold() if character.isalnum())
