"""The site: every page builds, every link leads somewhere, nothing comes from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docblocks import ROOT
from schemabank.report.command import Question, report
from schemabank.report.contents import charts
from tools import load_tool

gallery: Any = load_tool(ROOT / "docs" / "build_gallery.py")
# What a page loads by itself, as against what a reader follows.
LOADED = re.compile(r'<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)="(?:https?:)?//', re.DOTALL)


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `make site` does; with --quiet, nothing would be a warning."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run(
        [*command, "--site-dir", str(out)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    ended = build(ROOT / "mkdocs.yml", out)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return out


BROKEN = ("nowhere.md", "a.md#nope", "../examples/nope.py", "../src/nope/", "nope.svg")


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    links = "".join(f"[a]({to})\n" for to in BROKEN)
    (tmp_path / "docs" / "a.md").write_text(f"# A\n\n{links}", encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    hooks = ROOT / "docs" / "sitehooks.py"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: [{hooks}]\nplugins: []\nnav: [a.md]\n"
        f"docs_dir: {tmp_path / 'docs'}\n",
        encoding="utf-8",
    )
    ended = build(config, tmp_path / "site")
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if "'a.md' contains" in line]
    assert [to for to in BROKEN if not any(f"'{to}'" in line for line in said)] == []


def test_it_builds_without_a_broken_link_and_loads_nothing_from_elsewhere(site: Path) -> None:
    found = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(found) > 40
    assert [str(path) for path, text in found.items() if LOADED.search(text)] == []
    # Drawn by a script that the theme loads from another host: a reader would see its source.
    assert [str(path) for path, text in found.items() if 'mermaid"' in text] == []


def test_a_page_has_the_picture_of_the_rooms(site: Path) -> None:
    page = (site / "architecture.html").read_text(encoding="utf-8")
    (source,) = re.findall(r'<img alt="Which rooms [^"]*" src="([^"]*)"', page)
    assert (site / source).read_bytes() == (ROOT / "docs" / "rooms.svg").read_bytes()


def test_pages_from_outside_of_docs_are_there(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="methods.html"' in first
    assert "docs/methods.md" not in first
    assert 'href="tree/examples/own_pairs.py.html"' in first
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(f'id="schemabank.{name}"' in api for name in ("runs.tuner.Tuner", "stats.holm"))
    assert ":meth:" not in api
    notebook = (site / "notebooks" / "first_adapter.html").read_text(encoding="utf-8")
    assert "train_cohort" in notebook


def test_the_gallery_is_what_its_records_say() -> None:
    """Captions, not drawings: those depend on a machine's fonts."""
    shown = {record: list(charts(report(ROOT / record, Question()))) for record in gallery.SHOWN}
    assert gallery.TARGET.read_text(encoding="utf-8") == gallery.page(shown)
    pictures = {gallery.picture(record, chart) for record in shown for chart in shown[record]}
    assert set(gallery.FOLDER.iterdir()) == pictures
