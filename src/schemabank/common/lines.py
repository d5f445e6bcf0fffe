"""Anybody's text in one line, for places that give characters a meaning: terminals, Markdown, JSON.

What steers a terminal or turns the text around it does so in Markdown as well, since files are
printed, too.
"""

import json
import re

MARK = "\N{REPLACEMENT CHARACTER}"
# Controls, among them the second set that begins with U+0080; ends of lines; marks of direction;
# and what no file in UTF-8 holds.
STEERING = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
)
NOT_IN_LINE = re.compile(f"[{STEERING}]")
# Of CommonMark, and of what GitHub adds to it: ~~deleted~~, $mathematics$, bare addresses. An
# underscore within a word is none.
MARKS = re.compile(r"([\\`*{}\[\]<>#|~$&@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.)", re.I)
AT_START = re.compile(r"^([-+=]|\d{1,9}(?=[.)](?:\s|$)))")  # of lists, rules and headings


def one_line(text: str) -> str:
    """Return text with every run of white space as one space."""
    return " ".join(text.split())


def marked_line(text: str) -> str:
    """Return text as one line with a mark in place of each character that steers a terminal.

    In a report such characters are a finding; in messages `schemabank.common.errors.printable` puts
    blanks.
    """
    return NOT_IN_LINE.sub(MARK, one_line(text))


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it as it stands: no markup, one line."""
    return AT_START.sub(lambda found: _not_at_start(found[0]), markdown_cell(text))


def markdown_cell(text: str) -> str:
    """Return text as a cell of a Markdown table, in which nothing begins a list or a heading."""
    return MARKS.sub(r"\\\1", marked_line(text))


def markdown_code(text: str) -> str:
    """Return text as code in a cell of Markdown; other marks take the place of backticks."""
    shown = marked_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{shown or ' '}`"


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return JSON whose characters are as they are but for those that steer a terminal."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub(rf"(?!\n)[{STEERING}]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _not_at_start(mark: str) -> str:
    """A mark that begins no list; a number is kept apart from its full stop."""
    return f"\\{mark}" if not mark.isdigit() else f"{mark}\\"
