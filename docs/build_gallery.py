"""Write docs/gallery.md and its pictures from committed records: python docs/build_gallery.py.

The charts are those of `schemabank report` on the records of two suites and on the published table,
with the captions that the report gives them.
"""

from collections.abc import Iterator
from pathlib import Path

from schemabank.report.command import Question, report
from schemabank.report.contents import charts
from schemabank.report.figures import styled_svg
from schemabank.report.sections.chart import Chart

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).with_name("gallery.md")
FOLDER = Path(__file__).with_name("gallery")
# What each record is, below its heading.
SHOWN = {
    "results/suites/judge_smollm2.tar.xz": "A suite with tuned rates: six arms, eight seeds each, "
    "all of GSM8K's test questions, SmolLM2-135M ([findings](findings.md#smollm2-135m)).",
    "results/suites/reproduce_smollm2_end_token.tar.xz": "A suite over two lengths of training, "
    "with the document's own rates ([findings](findings.md#with-end-tokens)).",
    "results/published/gsm8k.csv": "A table of scores that somebody else published "
    "([example](report.md#example-the-published-gsm8k-table)).",
}
HEADER = """# Report gallery

Pictures of [reports](report.md). `python docs/build_gallery.py` draws them from the records in
`results/`, with the captions of the report. `schemabank report RECORD --out DIR` shows each record
as a page with tables, warnings and completions beside its charts. There are more pictures on the
pages of [findings](findings.md) and of [the router](routing.md).
"""


def main() -> None:
    """Write the page and its pictures."""
    FOLDER.mkdir(exist_ok=True)
    shown = {record: list(charts(report(ROOT / record, Question()))) for record in SHOWN}
    for record, found in shown.items():
        for chart in found:
            picture(record, chart).write_text(styled_svg(chart.spec), encoding="utf-8")
    TARGET.write_text(page(shown), encoding="utf-8")


def page(shown: dict[str, list[Chart]]) -> str:
    """Return the page with the charts of each record."""
    return HEADER + "".join(line for record in shown for line in part(record, shown[record]))


def part(record: str, found: list[Chart]) -> Iterator[str]:
    """The part of the page on one record."""
    yield f"\n## {Path(record).name.partition('.')[0]}\n\n{SHOWN[record]}\n"
    yield f"\n```console\n$ schemabank report {record} --out report\n```\n"
    for chart in found:
        place = picture(record, chart).relative_to(TARGET.parent)
        yield f"\n### {chart.title}\n\n![{chart.title}]({place})\n\n{chart.caption}\n"


def picture(record: str, chart: Chart) -> Path:
    """Where a chart's picture is."""
    return FOLDER / f"{Path(record).name.partition('.')[0]}-{chart.name}.svg"


if __name__ == "__main__":
    main()
