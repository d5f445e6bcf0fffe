"""What is built: the wheel, the source distribution, and the page that an index shows."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from schemabank import __version__
from tools import BENCHMARKS, load_tool

ROOT = BENCHMARKS.parent
RECORD = ROOT / "results" / "package.json"
package = load_tool(BENCHMARKS / "package.py")
Change = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    wheel, source = package.build(tmp_path_factory.mktemp("dist"))
    return wheel, source


def changed_wheel(wheel: Path, out: Path, change: Change) -> Path:
    """A copy of a wheel with other contents."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(out / wheel.name, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out / wheel.name


def test_nothing_is_wrong_with_them(built: tuple[Path, Path]) -> None:
    wheel, source = built
    assert wheel.name == f"schemabank-{__version__}-py3-none-any.whl"
    assert list(package.problems_of_wheel(wheel)) == []
    assert list(package.problems_of_source(source)) == []


def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {
        "schemabank",
        f"schemabank-{__version__}.dist-info",
    }
    assert {"schemabank/py.typed", "schemabank/tasks/conditional.txt"} <= names
    assert "schemabank/report/page/assets/page.css" in names


META = f"schemabank-{__version__}.dist-info/METADATA"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.pop("schemabank/py.typed"), "lacks schemabank/py.typed"),
        (lambda files: files.update({"tests/test_a.py": b""}), "should not have tests/test_a.py"),
        (
            lambda files: files.pop(META.replace("METADATA", "licenses/LICENSE")),
            "lacks .*/licenses/LICENSE",
        ),
        (
            lambda files: files.update({META: files[META] + b"[a](docs/method.md)"}),
            "links into the tree",
        ),
        (
            lambda files: files.update(
                {META: files[META].replace(b"text/markdown", b"text/plain")}
            ),
            "is text/plain, not Markdown",
        ),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(
    change: Change, said: str, built: tuple[Path, Path], tmp_path: Path
) -> None:
    (sentence,) = package.problems_of_wheel(changed_wheel(built[0], tmp_path, change))
    assert re.search(said, sentence), sentence


def test_what_is_wrong_with_a_source_distribution_is_said(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.tar.gz"
    with tarfile.open(built[1]) as archive, tarfile.open(other, "w:gz") as written:
        for member in archive.getmembers():
            if not member.name.endswith("/tests/tiny.py"):
                content = archive.extractfile(member) if member.isfile() else None
                written.addfile(member, content)
        extra = tarfile.TarInfo("schemabank-0/runs/secret.txt")
        written.addfile(extra, io.BytesIO())
    assert list(package.problems_of_source(other)) == [
        "the source distribution lacks tests/tiny.py",
        "the source distribution should not have runs/secret.txt",
    ]


def test_the_page_can_be_shown(built: tuple[Path, Path]) -> None:
    shown = pytest.importorskip("readme_renderer.markdown", exc_type=ImportError)
    with zipfile.ZipFile(built[0]) as archive:
        page = archive.read(META).decode().partition("\n\n")[2]
    html = shown.render(page)
    assert re.search(r"<h1[^>]*>SchemaBank<", html)
    assert "<table>" in html
    assert 'href="docs' not in html
    assert 'href="#many' not in html, "headings have other names there"


@pytest.mark.soak
def test_the_tests_of_a_source_distribution_can_be_collected(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    ended = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    # A colon follows the name of a file that is collected, and of one that is skipped.
    assert {name for name in here if f"{name}:" in ended.stdout} == here


def test_the_table_of_the_docs_is_that_of_its_record() -> None:
    shown = "\n".join(package.table(json.loads(RECORD.read_text())))
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert page.partition("<!-- package.py: results/package.json -->\n")[2].startswith(f"{shown}\n")


def test_an_install_is_as_light_as_is_recorded() -> None:
    """PEFT and TRL are what one who trains adapters has; the core adds little to them."""
    rows = {row["install"]: row for row in json.loads(RECORD.read_text())["rows"]}
    core, usual = rows["SchemaBank"], rows["PEFT + TRL"]
    added = set(core["packages"]) - set(usual["packages"]) - {"schemabank"}
    assert len(core["packages"]) <= len(usual["packages"]) + 6  # itself, and five more
    assert added <= {"scipy", "gguf", "requests", "certifi", "charset-normalizer", "urllib3"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {line.partition(">=")[0].lower() for line in settings["dependencies"]}
    known = {name.lower().replace("_", "-") for name in core["packages"]}
    assert wanted - known == set(), "a record of other requirements: make it again"
