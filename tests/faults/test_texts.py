"""A few payloads in a report's fields; and that the campaign sees what it looks for."""

import pytest

from faults import outputs, texts
from faults.outputs import Elements
from faults.payloads import KINDS, PAYLOADS

ROUTING = 2 * texts.GROUPS["report"]  # the first group of an analysis, which has no charts
NAMES = ("image", "table", "C1 CSI", "rich link", "Vega expression")
MARKDOWN = ("emphasis", "Markdown link", "list", "heading", "bare address", "mathematics", "NUL")
WORD = texts.WORDS[False]


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_text_where_an_analysis_of_routing_shows_it(name: str) -> None:
    row = texts.tried(ROUTING * len(PAYLOADS) + list(PAYLOADS).index(name))
    assert (row["payload"], row["problems"]) == (name, [])
    assert row["shown"].keys() == {"Markdown", "terminal", "JSON"}


def test_there_are_more_than_sixty_payloads_and_each_has_one_kind() -> None:
    assert len(PAYLOADS) == sum(map(len, KINDS.values())) > 60
    assert len(set(PAYLOADS.values())) == len(PAYLOADS)


@pytest.mark.parametrize("name", ["image", "closing tags", "comment", "double quote", "end tag"])
def test_markup_in_a_page_is_seen(name: str) -> None:
    payload = PAYLOADS.get(name, "</p>")
    harmless = Elements(f'<p title="{WORD}">{WORD}</p>')
    assert list(outputs.page_problems(harmless, f'<p title="{WORD}">{WORD}</p>')) == []
    assert list(outputs.page_problems(harmless, f'<p title="{payload}">{payload}</p>')) != []


def test_an_expression_of_vega_is_seen() -> None:
    def page(test: str, text: str) -> str:
        chart = f'{{"mark": {{"test": "{test}"}}, "data": [{{"arm": "{text}"}}]}}'
        return f'<script type="application/json">{chart}</script>'

    harmless = Elements(page("datum.x", WORD))
    assert list(outputs.page_problems(harmless, page("datum.x", "' || 1"))) == []
    assert list(outputs.page_problems(harmless, page("' || 1", WORD))) != []


@pytest.mark.parametrize("name", MARKDOWN)
def test_markup_in_markdown_is_seen(name: str) -> None:
    harmless = outputs.markdown_shape(f"{WORD}\n")
    assert list(outputs.markdown_problems(harmless, "other words\n")) == []
    assert list(outputs.markdown_problems(harmless, f"{PAYLOADS[name]}\n")) != []


@pytest.mark.parametrize("name", ["colour", "link", "C1 CSI", "override", "backspace", "NUL"])
def test_what_steers_a_terminal_is_seen(name: str) -> None:
    payload = PAYLOADS[name]
    assert list(outputs.terminal_problems(WORD, payload, WORD, payload)) != []
    assert list(outputs.terminal_problems(WORD, "plain", WORD, "plain")) == []
    assert list(outputs.terminal_problems(WORD, "", WORD, "[red]x")) != []
