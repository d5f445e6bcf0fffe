"""Say whether this commit can be released: its tag, the version and the changelog agree.

    python benchmarks/release.py

It prints the version, or what does not fit, and then ends with 1. `make release` asks it before it
builds the distributions.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Look, and say what was found."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    found = list(problems(root, version))
    sys.stdout.write("".join(f"{line}\n" for line in found) or f"{version}: ready\n")
    sys.exit(1 if found else 0)


def problems(root: Path, version: str) -> Iterator[str]:
    """Say what keeps the commit from being the release of a version."""
    if git(root, "status", "--porcelain"):
        yield "the tree has changes: commit them first"
    tags = git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        yield f"pyproject.toml says {version}, this commit's tags are {tags}: tag v{version}"
    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    if cited != version:
        yield f"CITATION.cff says {cited}: write {version}"
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE):
        yield f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'"


def git(root: Path, *arguments: str) -> str:
    """What git prints."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
