"""Reports and their pages, from what ``report.json`` and ``samples.jsonl`` hold.

So tests change what a report says without its types; and what its files lack, no page shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from schemabank.common.tables import PlainTable
from schemabank.report import command, contents
from schemabank.report import page as pages
from schemabank.report.claims.judgements import Judged
from schemabank.report.command import Question
from schemabank.report.comparing.comparison import Comparison
from schemabank.report.contents import Report, TableFile, Topics, report_json
from schemabank.report.figures import Spec
from schemabank.report.page import browser as browsers
from schemabank.report.plain import KEY, SPLICED, plain_fields
from schemabank.report.sections.chart import Chart
from schemabank.report.sections.provenance import Provenance
from schemabank.report.sections.samples import Sample
from schemabank.report.sections.verdict import Scoring
from schemabank.report.warnings.finding import Finding

Json = Mapping[str, Any]


def report(path: Path, question: Question, out: Path | None = None) -> dict[str, Any]:
    """What ``report.json`` holds."""
    return report_json(command.report(path, question, out))


def examined(path: Path, question: Question) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``report.json`` and ``samples.jsonl`` hold."""
    found = command.report(path, question)
    return report_json(found), [plain_fields(sample) for sample in found.samples]


def page(found: Json) -> str:
    """The page in Markdown."""
    return pages.page(typed(found))


def html_page(found: Json, samples: Sequence[Json]) -> str:
    """The page in HTML."""
    return pages.html_page(typed(found, samples))


def browser(samples: Sequence[Json], found: Json) -> str:
    """The part of the page that shows samples."""
    return browsers.browser(typed(found, samples))


def text(found: Json) -> str:
    """What stands below the tables in a terminal."""
    return pages.text(typed(found))


def tables(found: Json) -> list[PlainTable]:
    """The tables in a terminal."""
    return pages.tables(typed(found))


def charts(found: Json) -> list[Chart]:
    """All charts."""
    return contents.charts(typed(found))


def figures(found: Json) -> dict[str, Spec]:
    """All charts as they are drawn."""
    return contents.figures(typed(found))


def typed(found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> Report:
    """A report from what ``report.json`` and ``samples.jsonl`` hold."""
    return Report(
        table=_made(TableFile, found["table"]),
        scored=_made(Scoring, found) if "metric" in found else None,
        comparison=_made(Comparison, found),
        topics=_made(Topics, found),
        warnings=_made(list[Finding], found["warnings"]),
        claims_file=found["claims_file"],
        claims=_made(list[Judged], found["claims"]),
        provenance=_made(Provenance, found.get("provenance")),
        samples=_made(list[Sample], samples),
    )


def _made(kind: Any, value: Any) -> Any:  # noqa: ANN401 -- of any kind
    """A value of a kind, from what JSON knows."""
    parts = get_args(kind)
    if value is None or not (parts or is_dataclass(kind)):
        return value
    if is_dataclass(kind):
        return _filled(kind, value)
    if get_origin(kind) in {Union, UnionType}:  # all of them are of something, or nothing
        return _made(parts[0], value)
    if isinstance(value, Mapping):
        return {key: _made(parts[1], own) for key, own in value.items()}
    if isinstance(value, list):
        own = [_made(parts[0], part) for part in value]
        return tuple(own) if get_origin(kind) is tuple else own
    return value


def _filled(kind: Any, row: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- of any kind
    """A dataclass from its row, which lacks no key but those with a default."""
    kinds = get_type_hints(kind)
    own = {
        f.name: row if f.metadata == SPLICED else row.get(f.metadata.get(KEY, f.name), MISSING)
        for f in fields(kind)
    }
    return kind(**{n: _made(kinds[n], value) for n, value in own.items() if value is not MISSING})
