"""Anybody's text in a line of a terminal, of Markdown and of JSON."""

import json
import re

import pytest
from markdown_it import MarkdownIt

from schemabank.common.lines import json_text, markdown_code, markdown_text, marked_line

STEERING = "\x1b[2J \x9b1A \x00 \x7f \u202e \u2066 \u200f \u2028 \ud800"


@pytest.mark.parametrize(
    "text",
    [
        *("- x", "* x", "+ x", "1. x", "7) x", "---", "# x", "> x", "===", "12."),
        *("a | b", "<b>x</b>", "&lt;b&gt;", "[x](y)", "![x](y)", "<https://x.invalid>", "[x]: y"),
        *("*x* **x** _x_ __x__", "~~x~~", "`x`", "\\", "\\*x\\*", "x  \ny", "    x"),
    ],
)
def test_markdown_shows_a_text_as_it_stands(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    outer, inner, _ = parser.parse(markdown_text(text))
    assert outer.type == "paragraph_open"
    assert {part.type for part in inner.children or ()} <= {"text", "text_special"}
    shown = "".join(part.content for part in inner.children or ())
    assert shown == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("https://x.invalid", r"https\://x.invalid"),
        ("WWW.x.invalid", r"WWW\.x.invalid"),
        ("a@x.invalid", r"a\@x.invalid"),
        ("$x$", r"\$x\$"),
        ("snake_case_name 1.5 a:b", "snake_case_name 1.5 a:b"),
    ],
)
def test_what_github_adds_to_markdown_is_text_too(text: str, written: str) -> None:
    assert markdown_text(text) == written


def test_code_ends_where_it_should() -> None:
    assert markdown_code("a`b|c") == r"`a'b\|c`"
    assert markdown_code("") == "` `"


def test_nothing_steers_a_terminal() -> None:
    for shown in (marked_line(STEERING), markdown_text(STEERING), json_text([STEERING])):
        assert not re.search(
            "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown
        )
        assert shown.encode()


def test_json_keeps_its_values() -> None:
    value = {"é\x9b": [STEERING, 1.5, None, "\U0001f600"]}
    assert json.loads(json_text(value, indent=2)) == value
    assert "é" in json_text(value)
    assert json_text(value, indent=2).count("\n") > 3
