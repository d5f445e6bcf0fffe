"""Blocks of code in the pages for people, and who runs them.

``examples.yaml`` beside this file names for every block and every command the test that runs it, or
why none does.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("examples.yaml")
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FILE = "file: "  # of a mark: the block is saved under this name


@dataclass(frozen=True)
class Block:
    """A fenced block; ``mark`` is the comment on the line before it."""

    mark: str
    language: str
    body: str

    @property
    def commands(self) -> list[str]:
        """What stands behind the prompts, without comments and with continued lines joined."""
        lines = self.body.replace("\\\n", " ").splitlines()
        typed = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        return [shlex.join(shlex.split(one, comments=True)) for one in typed]

    @property
    def items(self) -> list[str]:
        """Names in the list: each command, or of another block its mark or its first line."""
        first = next((line.strip() for line in self.body.splitlines() if line.strip()), "")
        return self.commands or [f"{self.language or 'text'}: {self.mark or first}"]


def pages() -> list[str]:
    """The pages for people, by their place in the tree."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.md")]
    # Templates of a page, and a history.
    left_out = {ROOT / "docs" / "findings", ROOT / "CHANGELOG.md"}
    return sorted(
        str(path.relative_to(ROOT)) for path in found if not left_out & {path, path.parent}
    )


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for found in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        indent = len(found["indent"])
        lines = found["body"].splitlines(keepends=True)
        body = "".join(line[indent:] if line.strip() else line for line in lines)
        yield Block(found["mark"] or "", found["language"], body)
