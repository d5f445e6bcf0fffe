"""What people see of a report: page, Markdown and terminal; and what in it is more than text.

Each output is read as what shows it reads it: HTML and Markdown by a parser, and the bytes of a
terminal as its escape sequences and its text. A payload is text there if nothing but text differs
from the output with a harmless word in its place.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from html.parser import HTMLParser
from typing import Any

from altair.utils import schemapi
from markdown_it import MarkdownIt
from rich.console import Console

import reports
from faults.fields import Tree
from schemabank.cli import printing
from schemabank.report import figures
from schemabank.report.page import html as html_pages
from schemabank.report.page import page, tables, text
from schemabank.report.routing import report as routing
from schemabank.report.sections import curves, differences, groups, others, rates, scores
from schemabank.report.sections import routing as routed

OUTPUTS = ("page", "Markdown", "terminal", "JSON")
WIDTH = 600  # of a terminal that breaks no line of a table
VOID = {"meta", "link", "img", "br", "hr", "input"}
LEADING = {"src", "srcset", "action", "formaction", "data", "style", "xlink:href", "srcdoc"}
# Vega reads these as expressions, addresses or places in the data.
READ = {"expr", "test", "signal", "calculate", "filter", "update", "href", "url", "field", "format"}
ENDING = re.compile(r'[\\"\n\r]')  # what may end a text within an expression
STYLED = re.compile(r"\x1b\[[0-9;]*m")  # the one kind of sequence that rich writes
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
CODE = re.compile(r"(?i)https?://|www\.|[\w.+-]@\w")  # what GitHub makes links of
Shape = Sequence[Any]


def page_of(source: str, tree: Tree) -> str:
    """A report as HTML, which an analysis of routing has not."""
    return html_pages.html_page(reports.typed(tree, tree["samples"])) if source == "report" else ""


def markdown_of(source: str, tree: Tree) -> str:
    """A report, or an analysis of routing, as Markdown."""
    if source == "report":
        return page(reports.typed(tree))
    maps = {name: title for name, (_, title, _) in routing.heat_map_cells(tree).items()}
    return routing._page(tree, maps)


def printed_of(source: str, tree: Tree) -> str:
    """What is printed of it to a terminal."""
    own = reports.typed(tree) if source == "report" else None
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=WIDTH)
    before, printing.console = printing.console, lambda: console
    try:
        printing.print_tables(routing.tables(tree) if own is None else tables(own))
    finally:
        printing.console = before
    file.write("" if own is None else text(own))
    return file.getvalue()


def json_of(tree: Tree) -> str:
    """What is printed of it to a terminal as JSON, which has no samples."""
    with redirect_stdout(io.StringIO()) as file:
        printing.print_json({name: tree[name] for name in tree if name != "samples"})
    return file.getvalue()


def drawn_once() -> None:
    """Make each chart once: most of a payload's pages have the same, and one takes long."""
    for section in (curves, differences, groups, others, rates, scores):
        section.chart = _once(section.chart)  # type: ignore[attr-defined]
    routed.charts = _once(lambda found, own=routed.charts: list(own(found)))
    schemapi.DEBUG_MODE = False  # altair looks at each part again and again
    html_pages.svg = _once(figures.svg)  # type: ignore[attr-defined] -- as it is imported there
    html_pages._vega = lambda: "vega"  # type: ignore[assignment] -- 800 KB that no text reaches


def _once(own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that computes each value once."""
    known: dict[str, Any] = {}

    def same(*arguments: object) -> Any:  # noqa: ANN401
        key = repr(arguments)
        if key not in known:
            known[key] = own(*arguments)
        return known[key]

    return same


class Elements(HTMLParser):
    """A page's elements: in order, those of drawings apart, and the data of its script."""

    def __init__(self, written: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[Any] = []
        self.drawn: set[Any] = set()
        self.led: list[str] = []  # attributes that lead elsewhere or run
        self.data: Any = None
        self.open: list[str] = []
        self.feed(written)
        self.close()
        self.shape += [f"open at the end: {self.open}"] if self.open else []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = (tag, *sorted(name for name, _ in attrs))
        if "svg" in self.open:
            self.drawn.add(found)
        else:
            self.shape.append(found)
        if tag not in VOID:
            self.open.append(tag)
        self.led += [
            f"<{tag} {name}={value!r:.60}>"
            for name, value in attrs
            if name in LEADING
            or name.startswith("on")
            or (name == "href" and not (value or "").startswith("#"))
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.shape.append(f"a stray </{tag}>")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and data.startswith("{"):
            self.data = json.loads(data)

    def handle_comment(self, _: str) -> None:
        self.shape.append("a comment")

    def unknown_decl(self, _: str) -> None:
        self.shape.append("a declaration")

    def handle_pi(self, _: str) -> None:
        self.shape.append("an instruction")


def page_problems(harmless: Elements, written: str) -> Iterator[str]:
    """Yield what a payload has become in a page, beside text."""
    found = Elements(written)
    if found.shape != harmless.shape:
        yield f"page: {_first_other(found.shape, harmless.shape)}"
    yield from (f"page: a drawing has {new}" for new in found.drawn - harmless.drawn)
    yield from (f"page: {led}" for led in found.led)
    yield from (f"page: Vega reads {place}" for place in _read_by_vega(harmless.data, found.data))
    yield from ("page: half a character" for _ in re.findall("[\ud800-\udfff]", written)[:1])


def _first_other(found: Sequence[Any], wanted: Sequence[Any]) -> str:
    """The first part in which two shapes differ."""
    pairs = zip([*found, "the end"], [*wanted, "the end"], strict=False)
    one, other = next((one, other) for one, other in pairs if one != other)
    return f"{one} for {other}"


def _read_by_vega(one: Any, other: Any, place: str = "") -> Iterator[str]:  # noqa: ANN401 -- JSON
    """Where two charts differ in more than texts that are drawn."""
    if type(one) is not type(other):
        yield f"{place}: a {type(other).__name__}"
    elif isinstance(one, dict | list):
        one, other = _by_key(one, place), _by_key(other, place)
        if one.keys() != other.keys():
            yield f"{place}: other keys"
        elif "field" in other and ENDING.search(str(other.get("title"))):
            yield f"{place}.title, which is part of an expression"
        else:
            for key, value in one.items():
                yield from _read_by_vega(value, other[key], f"{place}.{key}")
    elif one != other and not READ.isdisjoint(place.split(".")):
        yield place


def _by_key(value: dict[str, Any] | list[Any], place: str) -> dict[Any, Any]:
    """An object, or a list by its places; the names of data are hashes of what they hold."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return dict(enumerate(value.values())) if place.endswith(".datasets") else value


def markdown_shape(written: str) -> list[str]:
    """The kinds of Markdown's parts, in order."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.validateLink = lambda _: True  # type: ignore[method-assign] -- others follow any
    found = []
    for token in parser.parse(written):
        found.append(token.type)
        for inner in token.children or ():
            if inner.type not in {"text", "softbreak", "text_special"}:
                leads = str(inner.attrs.get("src") or inner.attrs.get("href") or "")
                is_beside = re.fullmatch(r"[\w%.-]+\.svg", leads)  # its name may have a field's
                found.append(f"{inner.type} {'' if is_beside else leads}")
    return found


def markdown_problems(harmless: Sequence[str], written: str) -> Iterator[str]:
    """Yield what a payload has become in Markdown, beside text."""
    found = markdown_shape(written)
    if found != harmless:
        yield f"Markdown: {_first_other(found, harmless)}"
    if links := CODE.findall(re.sub(r"`[^`\n]*`", "", written)):
        yield f"Markdown: GitHub makes a link of {links[0]!r}"
    if re.search(r"(?<!\\)\$", re.sub(r"`[^`\n]*`", "", written)):
        yield "Markdown: GitHub makes mathematics of $"
    if steering := STEERING.search(written):
        yield f"Markdown: holds {steering[0]!r}"


def terminal_problems(harmless: str, written: str, word: str, text: str) -> Iterator[str]:
    """Yield what a payload has become in a terminal, beside text.

    Args:
        harmless: what is printed with a harmless word.
        written: what is printed with the payload.
        word: the harmless word.
        text: the payload.
    """
    if new := set(STYLED.findall(written)) - set(STYLED.findall(harmless)):
        yield f"terminal: another style {min(new)!r}"
    if steering := STEERING.search(STYLED.sub("", written)):
        yield f"terminal: {steering[0]!r}"
    # rich drops what it takes for a style, and draws what it takes for the name of a picture.
    wanted = _seen(harmless).count(_seen(word))
    seen = _seen(written).count(_seen(text))
    is_short = len(text) < len(word) and "\n" not in text
    if is_short and _seen(text) and seen < wanted:
        yield f"terminal: {seen} of {wanted} times as it stands"


def json_problems(written: str, tree: Tree) -> Iterator[str]:
    """Yield what a payload has become in JSON that is printed, beside text."""
    if steering := STEERING.search(written):
        yield f"JSON: {steering[0]!r}"
    if json.loads(written) != {name: tree[name] for name in tree if name != "samples"}:
        yield "JSON: other values"


def _seen(text: str) -> str:
    """The letters of a text, without blanks and marks for what cannot be shown."""
    shown = STYLED.sub("", text)
    return "".join(c for c in shown if c.isprintable() and c not in " \N{REPLACEMENT CHARACTER}")
