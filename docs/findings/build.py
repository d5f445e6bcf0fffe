"""Write docs/findings.md, its figures and the README's verdict from the records in results/suites.

    python docs/findings/build.py
    python docs/findings/build.py --check

Texts are templates in this folder. Every figure in them is computed from a record, so a text and
the records cannot disagree. ``--check`` writes nothing and fails where a page or what a chart shows
is another. It compares charts as Vega-Lite, because drawings depend on a machine's fonts.
"""

import argparse
import difflib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alltried import FUNCTIONS as ALL_TRIED
from charts import MOST_LOSS, charts
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from judged import FUNCTIONS as JUDGED
from records import Suite, unpacked
from tables import FUNCTIONS

from schemabank.report.figures import styled_svg

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS = ROOT / "results" / "suites"
CHART = ".vl.json"
BEGIN, END = "<!-- findings: made by docs/findings/build.py -->\n", "<!-- end of findings -->"


def main() -> None:
    """Write the pages, or compare them with what they should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as place:
        pages = build({suite.name: suite for suite in unpacked(RECORDS, Path(place))})
    if not check:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
            if path.name.endswith(CHART):
                drawing = path.with_name(path.name.removesuffix(CHART) + ".svg")
                drawing.write_text(styled_svg(json.loads(text)), encoding="utf-8")
        return
    differences = [line for path, text in pages.items() for line in difference(path, text)]
    sys.stdout.writelines(differences)
    sys.exit(1 if differences else 0)


def build(suites: dict[str, Suite]) -> dict[Path, str]:
    """Return the pages, and the charts as Vega-Lite, by their paths."""
    templates = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- Markdown
    )
    templates.globals |= {**FUNCTIONS, **JUDGED, **ALL_TRIED}
    templates.globals |= {"suites": suites, "most_loss": MOST_LOSS}
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    verdict = templates.get_template("verdict.md").render()
    specs = {
        HERE / f"{name}{CHART}": json.dumps(spec, indent=1) + "\n"
        for name, spec in charts(suites).items()
    }
    return {
        **specs,
        HERE.with_suffix(".md"): templates.get_template("findings.md").render(),
        readme: f"{before}{BEGIN}{verdict}{END}{after}",
    }


def difference(path: Path, text: str) -> Iterator[str]:
    """Say in what a page differs from what its records say."""
    old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    name = str(path.relative_to(ROOT))
    yield from difflib.unified_diff(old, text.splitlines(keepends=True), name, "the records")


if __name__ == "__main__":
    main()
