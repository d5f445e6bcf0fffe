"""What a report holds and shows: all its topics, in order.

A topic is a file in `schemabank.report.sections`. It says what it finds in a folder of runs, and
its charts and tables. This file lists the topics: what is found (`find_topics`), where it stands on
the page (`sections`) and in a terminal (`tables`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from schemabank.common.tables import PlainTable, without_empty_columns
from schemabank.report.claims.judgements import Judged
from schemabank.report.comparing.comparison import Comparison
from schemabank.report.comparing.items import ItemComparison
from schemabank.report.comparing.material import Material
from schemabank.report.figures import Spec
from schemabank.report.plain import plain, plain_fields
from schemabank.report.reading.itemresults import TASKS
from schemabank.report.sections import (
    claims,
    completions,
    cost,
    curves,
    differences,
    groups,
    items,
    others,
    provenance,
    rates,
    routing,
    samples,
    scores,
    verdict,
)
from schemabank.report.sections.chart import Chart, Labels, given
from schemabank.report.sections.completions import Behaviour
from schemabank.report.sections.cost import Cost
from schemabank.report.sections.curves import Curve
from schemabank.report.sections.groups import GroupContrast
from schemabank.report.sections.others import OtherArm
from schemabank.report.sections.provenance import Provenance
from schemabank.report.sections.rates import Tried
from schemabank.report.sections.routing import HeatMap
from schemabank.report.sections.samples import Sample, Shown
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.finding import Finding


@dataclass(frozen=True)
class TableFile:
    """What scores were read from: a table of results, or a folder of runs."""

    name: str
    sha256: str
    num_rows: int


@dataclass(frozen=True)
class Topics:
    """What a folder of runs tells and a table of results does not."""

    groups: Sequence[GroupContrast] = ()
    others: Sequence[OtherArm] = ()
    items: ItemComparison | None = None
    rates: Sequence[Tried] = ()
    curves: Sequence[Curve] = ()
    behaviour: Sequence[Behaviour] = ()
    cost: Sequence[Cost] = ()
    routing: Sequence[HeatMap] = ()
    samples_of: Shown | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    Attributes:
        table: what it was made from.
        comparison: of treatment and control.
        warnings: what a reviewer would raise.
        scored: what runs were scored by; ``None`` for a table of results.
        topics: what else runs tell; empty for a table of results.
        claims_file: name of the file of claims; ``None`` without one.
        claims: that were checked.
        provenance: of runs; ``None`` for a table of results.
        samples: what the arms wrote; they lie in a file of their own.
    """

    table: TableFile
    comparison: Comparison
    warnings: Sequence[Finding]
    scored: Scoring | None = None
    topics: Topics = Topics()
    claims_file: str | None = None
    claims: Sequence[Judged] = ()
    provenance: Provenance | None = None
    samples: Sequence[Sample] = ()

    @property
    def labels(self) -> Labels:
        """What charts call things."""
        own = self.comparison
        arms = dict.fromkeys([own.treatment, own.control, *(at.arm for at in own.arms)])
        score = self.scored.metric if self.scored else "score"
        return Labels(list(arms), score, own.setting_name)


@dataclass(frozen=True)
class Section:
    """A part of the page. Its texts may come from anybody, so pages escape them.

    Attributes:
        key: its anchor.
        title: without names of arms.
        paragraphs: texts, the most important first.
        leading: how many of them, from the first, stand out.
        charts: drawings.
        lines: of a list; ``None`` where there is none.
        tables: beside those of the charts.
        open_tables: how many of them, from the first, a reader need not open.
        has_samples: whether a page in HTML shows the samples here.
    """

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    leading: int = 0
    charts: Sequence[Chart] = ()
    lines: Sequence[str] | None = None
    tables: Sequence[PlainTable] = ()
    open_tables: int = 0
    has_samples: bool = False

    @property
    def says_something(self) -> bool:
        """Whether there is anything beside samples."""
        return self.lines is not None or any((self.paragraphs, self.charts, self.tables))


def find_topics(material: Material) -> tuple[Topics, Sequence[Sample]]:
    """Return what a folder of runs tells, and what the arms wrote."""
    runs, group, settings = material.runs, material.group, material.settings
    loss = curves.find(runs)
    shown, answers = samples.find(runs, group, *material.arms, settings[-1])
    one = material.primary is not None
    found = Topics(
        groups=groups.find(material),
        others=others.find(material),
        items=material.by_item.comparison(group, material.arms, settings, primary=one),
        rates=rates.find(material.folder, runs, group),
        curves=loss,
        behaviour=completions.find(runs, group),
        cost=cost.find(runs, loss),
        routing=routing.find(runs),
        samples_of=shown,
    )
    return found, answers


def sections(report: Report) -> list[Section]:
    """Return the parts of the page that there is something to say in, in order."""
    comparison, topics, labels = report.comparison, report.topics, report.labels
    found = [
        Section(
            "verdict",
            "Verdict",
            verdict.paragraphs(comparison, report.scored, topics.groups, topics.items),
            leading=1,
        ),
        Section(
            "scores",
            "Scores",
            charts=given(rates.chart(topics.rates, labels), scores.chart(comparison, labels)),
            tables=given(rates.table(topics.rates), scores.table(comparison)),
        ),
        Section(
            "differences",
            "Differences",
            charts=given(
                differences.chart(comparison, labels),
                others.chart(topics.others, labels),
                groups.chart(topics.groups, labels),
            ),
            tables=_comparison_tables(report),
        ),
        Section("curves", "Learning curves", charts=given(curves.chart(topics.curves, labels))),
        Section("warnings", "Warnings", lines=warning_lines(report)),
        *_claims_section(report.claims),
        Section(
            "completions",
            "Completions",
            tables=given(completions.table(topics.behaviour)),
            open_tables=1,
            has_samples=True,
        ),
        Section("routing", "Routing", charts=list(routing.charts(topics.routing))),
        Section("cost", "Cost", tables=given(cost.table(topics.cost)), open_tables=1),
        _provenance_section(report),
    ]
    shown = [s for s in found if s.says_something or s.has_samples]
    named = [_mapped_tables(s, partial(_with_own_words, report=report)) for s in shown]
    return [_mapped_tables(s, without_empty_columns) for s in named]


def tables(report: Report) -> list[PlainTable]:
    """Return the tables for a terminal, in order."""
    topics = report.topics
    found = [
        scores.table(report.comparison),
        *_comparison_tables(report),
        *given(
            rates.table(topics.rates),
            completions.table(topics.behaviour),
            cost.table(topics.cost),
        ),
    ]
    return [_with_own_words(table, report) for table in found]


def _with_own_words(table: PlainTable, report: Report) -> PlainTable:
    """A table whose settings are called what they are, where these are tasks."""
    title, head, rows = table
    is_of_tasks = report.comparison.setting_name == TASKS
    return title, ["task" if is_of_tasks and name == "epochs" else name for name in head], rows


def charts(report: Report) -> list[Chart]:
    """Return the charts that there is data for, in the order of the page."""
    return [chart for section in sections(report) for chart in section.charts]


def figures(report: Report) -> dict[str, Spec]:
    """Return the charts that there is data for, by the name of their files."""
    return {chart.name: chart.spec for chart in charts(report)}


def warning_lines(report: Report) -> list[str]:
    """Return one line a warning, its id first."""
    return [f"{found.id}: {found.sentence}" for found in report.warnings]


def report_json(report: Report) -> dict[str, Any]:
    """Return what ``report.json`` holds, its keys in their order."""
    from_runs = report.scored is not None
    return {
        "table": plain(report.table),
        **plain_fields(report.scored),
        **plain_fields(report.comparison),
        **(plain_fields(report.topics) if from_runs else {}),
        "warnings": plain(report.warnings),
        "claims_file": report.claims_file,
        "claims": plain(report.claims),
        **({"provenance": plain(report.provenance)} if from_runs else {}),
    }


def _comparison_tables(report: Report) -> list[PlainTable]:
    topics = report.topics
    return [
        *differences.tables(report.comparison),
        *given(others.table(topics.others), groups.table(topics.groups)),
        *items.tables(topics.items),
    ]


def _claims_section(own: Sequence[Judged]) -> list[Section]:
    if not own:
        return []
    tables = [claims.table(own)]
    return [Section("claims", claims.title(own), lines=claims.lines(own), tables=tables)]


def _provenance_section(report: Report) -> Section:
    source, found = report.table, report.provenance
    lines = [f"From {source.name}, {source.num_rows} rows, sha256 {source.sha256}."]
    left = provenance.left_tables(found) if found else []
    return Section(
        "provenance",
        "Provenance",
        [*lines, *(provenance.named(found) if found else ())],
        tables=[*left, *(provenance.compared_tables(found) if found else ())],
        open_tables=len(left),
    )


def _mapped_tables(section: Section, change: Callable[[PlainTable], PlainTable]) -> Section:
    """The section with its tables, and those of its charts, changed.

    A table that has lost all of its columns is left out.
    """
    return replace(
        section,
        tables=[table for table in map(change, section.tables) if table[1]],
        charts=[replace(c, table=change(c.table)) for c in section.charts],
    )
