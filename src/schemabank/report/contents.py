"""What a report's page says, in the order in which it says it, whatever it is written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schemabank.report.sections.cells import interval, points, short
from schemabank.report.sections.charts import Chart, charts
from schemabank.report.sections.facttables import (
    behaviour,
    compared_tables,
    comparison_tables,
    cost,
    left_tables,
    rates,
)
from schemabank.report.sections.tables import (
    arms,
    claim_lines,
    claims_table,
    claims_title,
    contrast_tables,
    other_verdicts,
    verdict,
    warning_lines,
)
from schemabank.stats import FEWEST_SEEDS
from schemabank.tables import PlainTable, without_empty_columns

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page; all its texts may hold anybody's.

    Attributes:
        key: its anchor.
        title: without names of arms.
        paragraphs: texts, the most important first.
        leading: how many of them, from the first, stand out.
        charts: drawings.
        lines: of a list; ``None`` where there is none.
        tables: beside those of the charts.
        open_tables: how many of them, from the first, a reader need not open.
    """

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    leading: int = 0
    charts: Sequence[Chart] = ()
    lines: Sequence[str] | None = None
    tables: Sequence[PlainTable] = ()
    open_tables: int = 0


def sections(report: Report) -> list[Section]:
    """Return the parts that there is something to say in."""
    by_name = {chart.name: chart for chart in charts(report)}
    routing = [chart for name, chart in by_name.items() if name.startswith("routing")]
    found = [
        Section("verdict", "Verdict", _verdict(report), leading=1),
        Section(
            "scores",
            "Scores",
            charts=_named(by_name, "rates", "means"),
            tables=[*_tables(rates(report)), arms(report)],
        ),
        Section(
            "differences",
            "Differences",
            charts=_named(by_name, "differences", "others", "groups"),
            tables=[*contrast_tables(report), *comparison_tables(report)],
        ),
        Section("curves", "Learning curves", charts=_named(by_name, "curves")),
        Section("warnings", "Warnings", lines=warning_lines(report)),
        *_claims(report),
        Section("completions", "Completions", tables=_tables(behaviour(report)), open_tables=1),
        Section("routing", "Routing", charts=routing),
        Section("cost", "Cost", tables=_tables(cost(report)), open_tables=1),
        _provenance(report),
    ]
    return [_without_empty_columns(section) for section in found if _says_something(section)]


def headline(report: Report) -> str:
    """Return the primary contrast in one sentence: outcome, effect, interval and seeds."""
    primary = report["primary"]
    found = primary["verdict"]
    ends = found["interval"]
    known = "" if ends is None else f" (95 % interval {interval(ends, 100)})"
    effect = "" if found["difference"] is None else f": {points(found['difference'])} points"
    p = "" if found["p"] is None else f", p = {short(found['p'])}"
    outcome = str(found["outcome"])
    few = f" Fewer than {FEWEST_SEEDS} seeds give no verdict." if outcome == "no verdict" else ""
    return f"{outcome[:1].upper()}{outcome[1:]}{effect}{known}{p}, {_seeds(report)}{few}"


def _seeds(report: Report) -> str:
    contrasts = [report["pooled"], *report["contrasts"]]
    verdict = report["primary"]["verdict"]
    contrast = next((c for c in contrasts if c["verdict"] == verdict), report["pooled"])
    if contrast["test"] == "crossed":
        num_items = f"{report['items']['num_items']:,}"
        return f"{_times(len(contrast['seeds']), 'seed')} and {num_items} items, paired."
    if contrast["test"] == "paired":
        return f"{_times(len(contrast['seeds']), 'seed')}, paired."
    numbers = [contrast[arm]["num_seeds"] for arm in ("treatment", "control")]
    return f"{numbers[0]} against {numbers[1]} seeds, not paired."


def _times(num: int, what: str) -> str:
    return f"{num} {what}{'s' * (num != 1)}"


def _verdict(report: Report) -> list[str]:
    names = {"metric": "score", "split": "split", "group": "part of it"}
    asked = [f"{name}: {report[key]}" for key, name in names.items() if report.get(key)]
    has_family = len(report["primary"]["holm_family"]) > 1
    return [
        headline(report),
        verdict(report),
        *other_verdicts(report),
        *([f"What is compared: {'; '.join(asked)}."] if asked else []),
        *([f"Holm's adjustment covers {report['primary']['holm_covers']}."] if has_family else []),
    ]


def _claims(report: Report) -> list[Section]:
    if not report["claims"]:
        return []
    tables = [claims_table(report)]
    return [Section("claims", claims_title(report), lines=claim_lines(report), tables=tables)]


def _provenance(report: Report) -> Section:
    tables = [*left_tables(report), *compared_tables(report)]
    return Section(
        "provenance",
        "Provenance",
        _source(report),
        tables=tables,
        open_tables=len(left_tables(report)),
    )


def _source(report: Report) -> list[str]:
    source = report["table"]
    found = report.get("provenance") or {}
    lines = [f"From {source['name']}, {source['num_rows']} rows, sha256 {source['sha256']}."]
    titles = {"models": "Models", "tasks": "Tasks", "dtypes": "Numbers computed in"}
    named = [(title, ", ".join(found.get(key) or [])) for key, title in titles.items()]
    return lines + [f"{title}: {names}." for title, names in named if names]


def _named(by_name: Mapping[str, Chart], *names: str) -> list[Chart]:
    return [by_name[name] for name in names if name in by_name]


def _tables(found: PlainTable | None) -> list[PlainTable]:
    return [] if found is None else [found]


def _without_empty_columns(section: Section) -> Section:
    """The section whose tables, and those of its charts, lack the columns that hold nothing.

    A table all of whose cells are empty is left out.
    """
    tables = map(without_empty_columns, section.tables)
    return replace(
        section,
        tables=[table for table in tables if table[1]],
        charts=[replace(c, table=without_empty_columns(c.table)) for c in section.charts],
    )


def _says_something(section: Section) -> bool:
    parts = (section.paragraphs, section.charts, section.tables)
    return section.lines is not None or any(parts) or section.key == "completions"
