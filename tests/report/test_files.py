"""The files of a report on a folder of runs."""

import json
from pathlib import Path

from typer.testing import CliRunner

from reports import figures, html_page, page, report
from schemabank.cli import app
from schemabank.common.files import read_json
from schemabank.report.command import HTML, JSON, PAGE, SAMPLES, Question


def test_the_command_writes_all_of_it_and_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        done = CliRunner().invoke(app, ["report", str(runs), "--out", str(out)])
        assert done.exit_code == 0, done.output
    names = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outs]
    assert names[0] == names[1]
    assert {JSON, PAGE, HTML, SAMPLES} <= names[0].keys()
    assert json.loads(names[0][JSON])["metric"] == "correct"


def test_the_files_of_a_report_hold_all_that_its_pages_show(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report(runs, Question(), out)
    found = read_json(out / JSON)
    drawn = [json.loads(line) for line in (out / SAMPLES).read_text().splitlines()]
    assert (out / PAGE).read_text() == page(found)
    assert (out / HTML).read_text() == html_page(found, drawn)
    assert {path.stem for path in out.glob("*.svg")} == set(figures(found))
