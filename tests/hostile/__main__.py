"""Runs all hostile programs and all references, or one program by its name.

    python -m tests.hostile run                       as `make soak` does
    python -m tests.hostile run --only "a long range"     that program alone
    python -m tests.hostile record                    write results/hostile.json and the page
    python -m tests.hostile check                     whether the page is what the record says

A campaign that is interrupted goes on from its journal in --work. It ends with 1 where a program
got what it wanted, was still there, or took too much, or where a reference failed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from hostile import campaign, meter, page, references
from madepages import read_rows

WORK = Path(__file__).parents[2] / "soak"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="tests.hostile", description="Hostile programs.")
    parser.add_argument("what", choices=["run", "record", "check"])
    parser.add_argument("--only", help="the name of the program to run alone")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the journal")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    journal: Path = options.work / f"hostile-{campaign.digest()}.jsonl"
    if options.what == "check":
        sys.exit(page.made().check())
    if options.what == "record":
        sys.exit(page.write(journal))
    sys.exit(_run(journal, options.only))


def _run(journal: Path, only: str | None) -> int:
    """Run what the journal lacks; return 1 if anything failed."""
    rows = read_rows(journal) if only is None else []
    known = {(row["kind"], row["name"], row["form"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder, meter.finest() as measured:
        with campaign.world(Path(folder)) as world:
            for case in campaign.cases():
                if only not in {None, case.name} or (case.kind, case.name, case.form) in known:
                    continue
                row = campaign.tried(case, world, measured) | {"measured_by": measured.way}
                rows.append(row)
                if only is None:
                    with journal.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                if page.is_bad(row) or only is not None:
                    print(json.dumps(row, indent=1), flush=True)
        if only is None and not any("references" in row for row in rows):
            rows.append(_references())
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return int(any(page.is_bad(row) for row in rows))


def _references() -> dict[str, object]:
    """How many references there are and which fail."""
    given = {
        "HumanEval": (references.check_humaneval, references.humaneval()),
        "MBPP, sanitized": (references.check_sanitized_mbpp, references.sanitized_mbpp()),
    }
    found = {
        name: {"number": len(rows), "failed": references.failures(check, rows)}
        for name, (check, rows) in given.items()
    }
    print(json.dumps(found), flush=True)
    return {"kind": None, "name": None, "form": None, "references": found}


if __name__ == "__main__":
    main()
