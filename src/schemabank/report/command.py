"""The command ``schemabank report``: results in, a report and its pages out.

What computes is imported once the results are read, since scipy takes seconds. What draws is
imported for a report that is written; one for the terminal has no charts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from schemabank.common.extras import require
from schemabank.common.folders import check_new, new_folder
from schemabank.common.writing import write_json, write_lines
from schemabank.report.gate import why_stop
from schemabank.report.plain import plain_fields
from schemabank.report.reading.question import Question, read_results

if TYPE_CHECKING:
    from schemabank.report.contents import Report

__all__ = ["HTML", "JSON", "PAGE", "SAMPLES", "Question", "report", "why_stop"]

# What else one may do without the packages that draw.
NO_PAGE = "leave --out out, which prints the verdict and the tables"
JSON, PAGE, HTML, SAMPLES = "report.json", "report.md", "report.html", "samples.jsonl"


def report(path: Path | None, question: Question, out: Path | None = None) -> "Report":
    """Examine runs, a table or other tools' results, and write the report if a folder is named.

    Args:
        path: a folder of runs or their packed record, a CSV, or a folder or file of other tools;
            ``None`` where the question names the arms' own places.
        question: what is asked.
        out: folder to write; must not exist.

    Raises:
        InputError: a run or a line is wrong, the arms are not clear, ``out`` exists, or its charts
            cannot be drawn for want of a package.
    """
    if out is not None:
        check_new(out)
        require("report", f"--out {str(out)!r}: a page with charts", otherwise=NO_PAGE)
    with read_results(path, question) as (place, results):
        from schemabank.report.examine import examine

        found = examine(place, results, question)
    if out is not None:
        with new_folder(out) as partial:
            _write(partial, found)
    return found


def _write(folder: Path, found: "Report") -> None:
    """Write the report, its pages and its figures."""
    from schemabank.report.contents import figures, report_json
    from schemabank.report.figures import write_figure
    from schemabank.report.page import html_page, page

    write_json(folder / JSON, report_json(found))
    if found.samples:
        write_lines(folder / SAMPLES, map(plain_fields, found.samples))
    for name, spec in figures(found).items():
        write_figure(folder / name, spec)
    (folder / PAGE).write_text(page(found), encoding="utf-8")
    (folder / HTML).write_text(html_page(found), encoding="utf-8")
