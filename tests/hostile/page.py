"""The record of hostile programs, and the figures of docs/sandbox.md, which are made from it."""

import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hostile import campaign
from madepages import MadePage, Record, read_rows
from schemabank import __version__
from schemabank.common.cores import given_cores

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "results" / "hostile.json", ROOT / "docs" / "sandbox.md"
BEGIN = "<!-- hostile: made by `python -m tests.hostile record` from results/hostile.json -->\n"
END = "<!-- end of hostile -->\n"
TITLES = {
    "leaving early": "leave early: an exit, a crash, a signal, machine code",
    "equal objects": "return objects that equal, contain or are everything",
    "walking": "walk frames and the garbage collector, trace, profile, change a result later",
    "patching": "change lists, integers, imports, unittest or the interpreter under the tests",
    "forging": "forge, repeat, cut or delay the protocol's replies",
    "taking over": "take over the guest that runs them",
    "reading": "read files, environment, memory, names and devices of others",
    "killing": "kill others, start processes or threads, or stay when they should be gone",
    "exhausting": "use up memory, disk, output, time",
    "reaching out": "reach the network, other roots, devices, the kernel's settings",
    "unfolded": "have the judge build what is large",
    "refused": "ask for the kernel's memory that nothing counts",
    "bounded": "fill what the kernel bounds",
    "watched": "fill what is watched from outside",
}


def is_bad(row: Mapping[str, Any]) -> bool:
    """Whether a program got through, or a reference failed."""
    if row.get("references"):
        return any(own["failed"] for own in row["references"].values())
    most = campaign.MEMORY_MIB * 2
    kept = row["contained"] and not row["survivors"] and not row["harm"]
    return not kept or row["memory_mib"] > most


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page says of a campaign's rows."""
    cases = [row for row in rows if not row.get("references")]
    (given,) = [row["references"] for row in rows if row.get("references")]
    kinds = {}
    for kind in TITLES:
        own = [row for row in cases if row["kind"] == kind]
        kinds[kind] = {
            "programs": len({row["name"] for row in own}),
            "runs": len(own),
            "got through": sum(not row["contained"] for row in own),
            "survivors": sum(len(row["survivors"]) for row in own),
            "most_mib": round(max(row["memory_mib"] for row in own)),
            "reasons": dict(Counter(row["reason"] for row in own).most_common()),
        }
    return {
        "digest": campaign.digest(),
        "kinds": kinds,
        "failed": [[row["kind"], row["name"], row["form"]] for row in cases if is_bad(row)],
        "memory_mib": campaign.MEMORY_MIB,
        "measured_by": cases[0]["measured_by"],
        "references": given,
        "device": f"{given_cores()} CPU cores",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": {"schemabank": __version__, "python": platform.python_version()},
    }


def write(journal: Path) -> int:
    """Write the record from a whole journal, and the page from the record."""
    rows = read_rows(journal)
    missing = len(campaign.cases()) + 1 - len(rows)
    if missing:
        sys.exit(f"{journal}: {missing} cases are missing: run `python -m tests.hostile run` first")
    made().write(summary(rows))
    return 0


def made() -> MadePage:
    """Return the page with its record."""
    return MadePage(RECORD, PAGE, BEGIN, END, _figures)


def _figures(record: Record) -> Iterator[str]:
    kinds = record["kinds"].values()
    total = {
        name: sum(own[name] for own in kinds)
        for name in ("programs", "runs", "got through", "survivors")
    }
    most = max(own["most_mib"] for own in kinds)
    yield (
        f"{total['programs']} programs in {total['runs']} runs, each with {record['memory_mib']} "
        f"MiB: {total['got through']} got through, {total['survivors']} processes were left, and "
        f"the machine had at most {most:,} MiB more in use, judge and sandboxes included "
        f"({most / record['memory_mib']:.2f} times the limit; counted by {record['measured_by']})."
    )
    yield ""
    yield "| programs that | number | runs | got through | left behind | most MiB |"
    yield "|---|---:|---:|---:|---:|---:|"
    for kind, own in record["kinds"].items():
        yield (
            f"| {TITLES[kind]} | {own['programs']} | {own['runs']} | {own['got through']} "
            f"| {own['survivors']} | {own['most_mib']:,} |"
        )
    yield ""
    passed = [
        f"{name}: {own['number'] - len(own['failed'])} of {own['number']}"
        for name, own in record["references"].items()
    ]
    yield f"References that pass: {'; '.join(passed)}. On {record['device']}, {record['system']}."
