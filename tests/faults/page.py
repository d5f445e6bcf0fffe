"""The record of campaigns, and the figures of docs/reliability.md, which are made from it."""

import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from faults import campaigns
from faults.world import STEPS

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN = "<!-- faults: made by `python -m tests.faults record` from results/reliability.json -->\n"
END = "<!-- end of faults -->\n"
Record = Mapping[str, Any]
LEFT_OUT = "not run yet"


def write(work: Path) -> int:
    """Write the record from the journals in a folder, and the page from the record."""
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in campaigns.NUMBERS:
        files = sorted(work.glob(f"{name.replace(' ', '-')}-[0-9]*-[0-9]*.jsonl"))
        rows = {row["seed"]: row for file in files for row in campaigns.read_rows(file)}
        if rows:
            known = [file.with_suffix(".machine.json") for file in files]
            where = [json.loads(path.read_text()) for path in known if path.exists()]
            record[name] = campaigns.summary(name, [*rows.values()]) | (where[0] if where else {})
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    return 0


def check() -> int:
    """Print in what the page is another than the record says; return 1 if it is."""
    now = PAGE.read_text(encoding="utf-8")
    wanted = page(now, json.loads(RECORD.read_text()))
    sys.stdout.writelines(difflib.unified_diff(now.splitlines(True), wanted.splitlines(True)))
    return int(now != wanted)


def page(text: str, record: Record) -> str:
    """Return a page with the figures of a record in their place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for figures: it needs {BEGIN!r} and {END!r}")
    figures = "".join(f"{line}\n" for line in _figures(record))
    return f"{before}{BEGIN}{figures}{END}{after}"


def _figures(record: Record) -> Iterator[str]:
    yield "| campaign | cases | all promises kept | where |"
    yield "|---|---:|---:|---|"
    for name in campaigns.NUMBERS:
        own = record.get(name)
        if own is None:
            yield f"| {name} | {LEFT_OUT} | | |"
        else:
            yield f"| {name} | {own['cases']:,} | {own['kept']:,} | {own.get('device', '')} |"
    for name in (campaigns.KILLS, campaigns.DEVICE):
        if name in record:
            yield ""
            yield from _of_kills(name, record[name])
    if campaigns.OPERATIONS in record:
        yield ""
        yield from _of_operations(record[campaigns.OPERATIONS])
    if campaigns.POWER in record:
        yield ""
        yield from _of_power(record[campaigns.POWER])


def _of_kills(name: str, own: Record) -> Iterator[str]:
    places = ", ".join(f"{number} in {place}" for place, number in own["by_place"].items())
    stages = ", ".join(f"{number} in stage {n}" for n, number in own["by_stage"].items())
    yield f"**{name[0].upper()}{name[1:]}.** {own['kills']} kills: {places}."
    yield f"By the last step that had ended, {stages} of the curriculum and "
    yield f"{own['in_later_epochs']} after the first epoch; {own['in_search']} in a search for"
    yield f"learning rates. {own['of_started_programs']} met a program that had been started as a"
    yield f"user does. At most {own['most_steps_lost']} steps of a run were taken again, with a"
    yield f"checkpoint after every {STEPS}."


def _of_operations(own: Record) -> Iterator[str]:
    ends = own["by_end"]
    yield f"**File operations.** {own['met']:,} runs met a fault. {ends.get('went on', 0):,} went"
    yield "on and ended with the right bytes."
    yield f"{ends.get('said so', 0):,} ended with a sentence, and the next call with the right bytes."
    yield ""
    yield "| fault | runs |"
    yield "|---|---:|"
    yield from (f"| {fault} | {number:,} |" for fault, number in own["by_fault"].items())
    yield ""
    yield "| operation | runs |"
    yield "|---|---:|"
    yield from (f"| {name} | {number:,} |" for name, number in own["by_operation"].items())


def _of_power(own: Record) -> Iterator[str]:
    orders = ", ".join(f"{number} as {name!r}" for name, number in own["by_order"].items())
    yield f"**Power losses.** {own['states']:,} different states of the disk; {own['in_saves']:,}"
    yield f"of the cases lie within a save. What had not been waited for: {orders}."
    yield f"From {own['gone_on_to_the_end']} of them the program went on to its end."
