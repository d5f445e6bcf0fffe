"""Journals of campaigns, and pages whose figures are made from the record of one."""

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import BENCHMARKS, load_tool

Record = Mapping[str, Any]


def read_rows(journal: Path) -> list[dict[str, Any]]:
    """Read a journal; a line that was cut off, to which another may have been added, is none."""
    found = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def source_digest() -> str:
    """Which code a record is of."""
    found: str = load_tool(BENCHMARKS / "sourcecode.py").source_digest()
    return found


@dataclass(frozen=True)
class MadePage:
    """A page, of which one part is made.

    Attributes:
        record: a file of JSON.
        page: a file in Markdown.
        begin: the line before the part.
        end: the line after it.
        figures: the lines of the part, from what the record says.
    """

    record: Path
    page: Path
    begin: str
    end: str
    figures: Callable[[Record], Iterable[str]]

    def text(self, text: str, record: Record) -> str:
        """Return a page's text with the figures of a record in their place."""
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            marks = f"{self.begin!r} and {self.end!r}"
            raise ValueError(f"the page has no place for figures: it needs {marks}")
        figures = "".join(f"{line}\n" for line in self.figures(record))
        return f"{before}{begin}{figures}{end}{after}"

    def write(self, record: Record) -> None:
        """Write a record, and the page from it."""
        self.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self.page.write_text(self._wanted(), encoding="utf-8")

    def check(self) -> int:
        """Print in what the page is another than the record says; return 1 if it is."""
        now, wanted = self.page.read_text(encoding="utf-8"), self._wanted()
        sys.stdout.writelines(difflib.unified_diff(now.splitlines(True), wanted.splitlines(True)))
        return int(now != wanted)

    def _wanted(self) -> str:
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return self.text(self.page.read_text(encoding="utf-8"), record)
