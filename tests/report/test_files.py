"""The files of a report on a folder of runs."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports import figures, html_page, page, report
from schemabank.cli import app
from schemabank.common.files import read_json
from schemabank.report.command import HTML, JSON, PAGE, SAMPLES, Question


@pytest.fixture(scope="module")
def reported(written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs, and the files of a report on them."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(written, folder / "runs")
    report(folder / "runs", Question(), folder / "out")
    return folder / "runs", folder / "out"


def test_the_command_writes_all_of_it_and_the_same_bytes(
    reported: tuple[Path, Path], tmp_path: Path
) -> None:
    runs, once = reported
    done = CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    names = [{p.name: p.read_bytes() for p in out.iterdir()} for out in (once, tmp_path / "again")]
    assert names[0] == names[1]
    assert {JSON, PAGE, HTML, SAMPLES} <= names[0].keys()
    assert json.loads(names[0][JSON])["metric"] == "correct"


def test_the_files_of_a_report_hold_all_that_its_pages_show(
    reported: tuple[Path, Path],
) -> None:
    _, out = reported
    found = read_json(out / JSON)
    drawn = [json.loads(line) for line in (out / SAMPLES).read_text().splitlines()]
    assert (out / PAGE).read_text() == page(found)
    assert (out / HTML).read_text() == html_page(found, drawn)
    assert {path.stem for path in out.glob("*.svg")} == set(figures(found))
