"""Anybody's text for a page: nothing written through here can leave its place.

Text is escaped for its place, characters that a page cannot hold get a mark, and a direction that
a text changes ends with it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from schemabank.common.tables import PlainTable

MOST_ROWS = 200
MOST_LINES = 200
LONGEST_CELL = 1_000  # characters
# HTML allows none of these; NUL would be dropped, a carriage return would become a line feed.
NOT_HTML = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]")
# Ends of scripts and comments; line ends of scripts; what no file in UTF-8 holds; what hides.
NOT_SCRIPT = re.compile(
    r"[<>&\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufffe\uffff]"
)
NUMERIC = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( to [-+]?[\d.,]+)?|")


def visible(text: str) -> str:
    """Return text with a mark in place of each character that HTML cannot hold."""
    return NOT_HTML.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def html(text: str) -> str:
    """Return text escaped for an element's content or a quoted attribute."""
    return escape(visible(text), quote=True)


def isolated(text: str) -> str:
    """Return text as an element whose direction and marks of direction end with it."""
    return f"<bdi>{html(clipped(text, LONGEST_CELL))}</bdi>"


def clipped(text: str, longest: int) -> str:
    """Return the start of a very long text, and how much of it is not shown."""
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"


def json_script(name: str, value: Mapping[str, Any]) -> str:
    """Return data for a script, in an element that is no script itself."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = NOT_SCRIPT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'<script type="application/json" id="{html(name)}">{safe}</script>'


def sentence(text: str) -> str:
    """Return text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def details(summary: str, content: str, *, is_open: bool = False) -> str:
    """Return what a reader may open or close; ``content`` is HTML, ``summary`` text."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{html(summary)}</summary>{content}</details>"


def scrolling(label: str, content: str) -> str:
    """Return HTML in a box of its own that scrolls, also by keyboard."""
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{html(label)}">{content}</div>'
    )


def listing(lines: Sequence[str], none: str = "None.") -> str:
    """Return texts as a list."""
    if not lines:
        return f"<p>{html(none)}</p>"
    items = "".join(f"<li>{_with_lead(line)}</li>" for line in lines[:MOST_LINES])
    left = len(lines) - MOST_LINES
    return f"<ul>{items}</ul>" + (f"<p>{left:,} more are in report.json.</p>" if left > 0 else "")


def _with_lead(line: str) -> str:
    """A line whose words before the first colon stand out."""
    first, colon, rest = clipped(line, LONGEST_CELL).partition(": ")
    return isolated(line) if not colon else f"<b>{isolated(first)}</b>: {isolated(rest)}"


def table(plain: PlainTable) -> str:
    """Return a table; of very many rows the first, and how many there are."""
    title, head, rows = plain
    shown = rows[:MOST_ROWS]
    numeric = [all(NUMERIC.fullmatch(row[at]) for row in shown) for at in range(len(head))]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    cells = [
        f'<th scope="col"{kind}>{html(name)}</th>' for name, kind in zip(head, kinds, strict=True)
    ]
    body = "".join(f"<tr>{_table_row(row, kinds)}</tr>" for row in shown)
    note = f"<p>{len(shown):,} of {len(rows):,} rows; the others are in report.json.</p>"
    return scrolling(
        title,
        f"<table><caption>{html(title)}</caption><thead><tr>{''.join(cells)}</tr></thead>"
        f"<tbody>{body}</tbody></table>",
    ) + (note if len(shown) < len(rows) else "")


def _table_row(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *others = zip(row, kinds, strict=True)
    return f'<th scope="row"{first[1]}>{isolated(first[0])}</th>' + "".join(
        f"<td{kind}>{html(cell) if kind else isolated(cell)}</td>" for cell, kind in others
    )
