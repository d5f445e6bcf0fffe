"""Build the wheel and the source distribution, look into them, and weigh what an install brings.

    python benchmarks/package.py --out dist
    python benchmarks/package.py --out dist --weigh results/package.json
    python benchmarks/package.py --show results/package.json

The first command, `make package`, builds both from a copy of the tree and ends with 1 if something
is wrong with them. ``--weigh`` also makes empty environments, installs the wheel's core, all its
extras, and PEFT with TRL, and writes how many packages and MiB each holds. PyTorch is the version
in constraints.txt, for CPUs where the index has that; all else is as new as it can be.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib import import_module, util
from pathlib import Path
from typing import Any

from schemabank.common.tables import markdown_table
from schemabank.common.writing import write_json

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "constraints.txt", "LICENSE")
FILES += (
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "mkdocs.yml",
)
FOLDERS = ("benchmarks", "configs", "docs", "examples", "results", "src", "tests")
MADE = ("__pycache__", "*.egg-info", ".hypothesis", ".*_cache")
# What a build adds to the files of the tree.
ADDED = re.compile(r"PKG-INFO|setup\.cfg|src/schemabank\.egg-info/.*")
OWN_PACKAGES = {"pip"}  # of an environment that is empty
LINK = re.compile(r"\]\((?!https?://)")
INSTALLS = {
    "PEFT + TRL": ["peft", "trl"],
    "SchemaBank": ["{wheel}"],
    "SchemaBank, all extras": ["{wheel}[all]"],
}
BUILD = "from setuptools.build_meta import build_sdist as s, build_wheel as w; s('..'); w('..')"


def main() -> None:
    """Build, look, and weigh if asked to."""
    arguments = _arguments()
    if arguments.show:
        print("\n".join(table(json.loads(arguments.show.read_text()))))  # noqa: T201 -- a script
        return
    wheel, source = build(arguments.out)
    found = [*problems_of_wheel(wheel), *problems_of_source(source)]
    sys.stdout.write("".join(f"{line}\n" for line in [str(wheel), str(source), *found]))
    if found:
        sys.exit(1)
    if arguments.weigh:
        write_json(arguments.weigh, weighed(wheel))


def build(out: Path) -> tuple[Path, Path]:
    """Build both from a copy of the tree, and return the wheel and the source distribution."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "tree")
        for name in FOLDERS:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*MADE))
        for name in FILES:
            shutil.copy(ROOT / name, copy)
        command = [sys.executable, "-c", BUILD]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"the build failed: {ended.stderr}")
        made = [next(copy.parent.glob(f"*{ending}")) for ending in (".whl", ".tar.gz")]
        wheel, source = (Path(shutil.move(path, out / path.name)) for path in made)
        return wheel, source


def tree() -> set[str]:
    """All files that a source distribution has, by their place in the tree."""
    paths = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    own = [path.relative_to(ROOT) for path in paths]
    return {str(p) for p in own if not any(q.match(m) for q in _parts(p) for m in MADE)} | {*FILES}


def problems_of_wheel(wheel: Path) -> Iterator[str]:
    """Say what is wrong with the wheel: its files, its metadata, its page."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = message_from_bytes(archive.read(metadata))
    folder = metadata.rpartition("/")[0]
    beside = {name.removeprefix(f"{folder}/") for name in names if name.startswith(folder)}
    package = {name for name in names if not name.startswith(folder)}
    ours = {name.removeprefix("src/") for name in tree() if name.startswith("src/schemabank/")}
    yield from (f"the wheel lacks {name}" for name in sorted(ours - package))
    yield from (f"the wheel should not have {name}" for name in sorted(package - ours))
    wanted = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    yield from (f"the wheel lacks {folder}/{name}" for name in sorted(wanted - beside))
    yield from _problems_of_page(about)


def problems_of_source(source: Path) -> Iterator[str]:
    """Say which files the source distribution lacks, and which it should not have."""
    with tarfile.open(source) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    names = {name for name in names if not ADDED.fullmatch(name)}
    yield from (f"the source distribution lacks {name}" for name in sorted(tree() - names))
    yield from (f"the source distribution should not have {n}" for n in sorted(names - tree()))


def weighed(wheel: Path) -> dict[str, Any]:
    """Install into empty environments, one after another, and say what each then holds."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    rows = []
    for name, wanted in INSTALLS.items():
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            python = place / "bin" / "python"
            for what in ([torch], [text.format(wheel=wheel.resolve()) for text in wanted]):
                subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
            rows.append({"install": name, **_held(python, place)})
    return {"python": sys.version.split()[0], "rows": rows}


def table(record: dict[str, Any]) -> list[str]:
    """The record as lines of Markdown."""
    rows = [
        [row["install"], str(len(row["packages"])), f"{row['mib']:,} MiB"] for row in record["rows"]
    ]
    return markdown_table(["installed into an empty environment", "packages", "size"], rows)


def _held(python: Path, place: Path) -> dict[str, Any]:
    listed = [python, "-m", "pip", "list", "--format=json"]
    found = subprocess.run(listed, check=True, capture_output=True, text=True)
    packages = {one["name"]: one["version"] for one in json.loads(found.stdout)}
    size = sum(path.lstat().st_blocks for path in place.rglob("*")) * 512
    kept = {name: known for name, known in packages.items() if name not in OWN_PACKAGES}
    return {"packages": kept, "mib": round(size / 2**20)}


def _problems_of_page(about: Message) -> Iterator[str]:
    """Whether an index can show the page, as far as the packages for that are here."""
    page = str(about.get_payload())
    if about["Description-Content-Type"] != "text/markdown":
        yield f"the page is {about['Description-Content-Type']}, not Markdown"
    if not page.startswith("# SchemaBank") or LINK.search(page):
        yield "the page is not the README, or has links into the tree"
    if util.find_spec("readme_renderer") is not None:
        shown = import_module("readme_renderer.markdown").render(page)
        if shown is None or "<h1" not in shown:
            yield "the page cannot be shown"


def _parts(path: Path) -> list[Path]:
    return [Path(part) for part in path.parts]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of what is built")
    parser.add_argument("--weigh", type=Path, metavar="FILE", help="install, and write the record")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a record's table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
