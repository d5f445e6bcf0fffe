"""A report as one page of HTML that opens offline and runs nothing but what it was written with.

Charts are drawings that need no script; where scripts run, Vega replaces them by the same charts
with tooltips. The page's policy allows the scripts and the style by their hashes alone: no network,
no ``eval`` (Vega's expressions are interpreted), no code that came with a text.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from schemabank.report.contents import Report, Section, sections
from schemabank.report.figures import Spec, drawable, svg
from schemabank.report.page.browser import browser
from schemabank.report.page.markup import (
    clipped,
    details,
    html,
    isolated,
    json_script,
    listing,
    scrolling,
    sentence,
    table,
)
from schemabank.report.sections.chart import Chart

SNIPPET = "window.vegaEmbed = vegaEmbed;"
LONGEST_ALT = 600  # characters of a drawing's description


def html_page(report: Report) -> str:
    """Return the page; all texts of the report may be anybody's."""
    own, answers = report.comparison, browser(report)
    parts = [section for section in sections(report) if section.says_something or answers]
    main = "".join(_section(part, answers) for part in parts)
    charts = [chart for part in parts for chart in part.charts]
    data = {c.name: drawable({"spec": _quiet(c.spec), "arms": list(c.arms)}) for c in charts}
    links = "".join(f'<li><a href="#{p.key}">{p.key.capitalize()}</a></li>' for p in parts)
    title = f"{own.treatment} against {own.control}"
    heading = f"{isolated(own.treatment)} against {isolated(own.control)}"
    body = (
        '<a class="skip" href="#verdict">Skip to the verdict</a>'
        f'<header><h1>{heading}</h1><nav aria-label="Parts"><ul>{links}</ul></nav></header>'
        f"<main>{main}</main><footer><p>Made by SchemaBank from {html(report.table.name)}; "
        "the same figures are in report.json.</p></footer>"
    )
    return _document(html(title), body + json_script("charts", data), with_charts=bool(charts))


def _document(title: str, body: str, *, with_charts: bool) -> str:
    style = _asset("page.css")
    scripts = [*([_vega()] if with_charts else []), _asset("page.js")]
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src {_hashed(style)}; script-src {' '.join(map(_hashed, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{title}</title><style>{style}</style></head>\n<body>{body}"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


def _section(section: Section, answers: str) -> str:
    drawn = [chart.table for chart in section.charts]
    content = [
        _paragraph(text, is_headline=at < section.leading)
        for at, text in enumerate(section.paragraphs)
    ]
    content += [_figure(chart) for chart in section.charts]
    content += [] if section.lines is None else [listing(section.lines)]
    content += [
        details(sentence(t[0]), table(t), is_open=at < section.open_tables)
        for at, t in enumerate(section.tables)
        if t not in drawn
    ]
    if section.has_samples:
        content.append(answers)
    head = f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
    title = f'<h2 id="{section.key}-title">{html(section.title)}</h2>'
    return f"{head}{title}{''.join(content)}</section>"


def _paragraph(text: str, *, is_headline: bool) -> str:
    kind = ' class="headline"' if is_headline else ""
    return f"<p{kind}>{isolated(text)}</p>"


def _figure(chart: Chart) -> str:
    words = html(f"{chart.title}. {clipped(chart.caption, LONGEST_ALT)}")
    drawing = (
        f'<div class="drawing" data-chart="{html(chart.name)}" role="img" aria-label="{words}">'
        f'<div aria-hidden="true">{svg(_quiet(chart.spec))}</div></div>'
    )
    return (
        f"<figure><h3>{html(chart.title)}</h3>{scrolling(f'Chart: {chart.title}', drawing)}"
        f"<figcaption>{isolated(chart.caption)}</figcaption>"
        f"{details('The same data as a table', table(chart.table))}</figure>"
    )


def _quiet(spec: Spec) -> Spec:
    """The figure without labels of its parts: on the page it is one image with one description."""
    return {**spec, "config": {**spec["config"], "aria": False}}


def _hashed(code: str) -> str:
    digest = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _asset(name: str) -> str:
    return (files("schemabank.report.page") / "assets" / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and their interpreter of expressions, as a script for a page."""
    import vl_convert  # noqa: PLC0415 -- optional

    code = vl_convert.javascript_bundle(SNIPPET)
    assert "</script" not in code.lower()
    assert "<!--" not in code
    return str(code)
