"""A commit is released only if its tag, version, citation and changelog agree."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import BENCHMARKS

FILES = {
    "pyproject.toml": '[project]\nversion = "0.2.0"\n',
    "CITATION.cff": "version: 0.2.0\n",
    "CHANGELOG.md": "# Changelog\n\n## 0.2.0 (2026-12-01)\n",
}


def git(folder: Path, *arguments: str) -> None:
    own = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *own, *arguments], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    def write(*, tag: str = "v0.2.0", **changes: str) -> Path:
        for name, text in FILES.items():
            key = name.partition(".")[0].lower()
            (tmp_path / name).write_text(changes.get(key, text), encoding="utf-8")
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", "A release")
        if tag:
            git(tmp_path, "tag", "-a", tag, "-m", tag)
        return tmp_path

    return write


def asked(folder: Path) -> tuple[int, str]:
    command = [sys.executable, str(BENCHMARKS / "release.py"), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout


def test_a_tagged_commit_is_ready(tree: Callable[..., Path]) -> None:
    assert asked(tree()) == (0, "0.2.0: ready\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tag": ""}, "pyproject.toml says 0.2.0, this commit's tags are []: tag v0.2.0"),
        ({"tag": "v0.2.1"}, "this commit's tags are ['v0.2.1']"),
        ({"citation": "version: 0.1.0\n"}, "CITATION.cff says 0.1.0: write 0.2.0"),
        ({"changelog": "## Unreleased\n"}, "no heading '## 0.2.0 (YYYY-MM-DD)'"),
    ],
)
def test_what_does_not_agree_is_said(
    changes: dict[str, str], said: str, tree: Callable[..., Path]
) -> None:
    code, printed = asked(tree(**changes))
    assert code == 1
    assert said in printed


def test_a_tree_with_changes_is_refused(tree: Callable[..., Path]) -> None:
    folder = tree()
    (folder / "CHANGELOG.md").write_text("## 0.2.0 (2026-12-01)\n", encoding="utf-8")
    assert asked(folder) == (1, "the tree has changes: commit them first\n")
