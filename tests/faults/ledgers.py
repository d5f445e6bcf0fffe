"""What processes did, line by line in files that outlive them, and what of it was done again."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Steps = Mapping[str, list[int]]
"""The steps that a process took, by run, in their order."""


def read(ledger: Path) -> list[dict[str, Any]]:
    """Read a ledger; its last line may be cut off by a kill."""
    lines = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
    return [json.loads(line) for line in lines]


def steps_in(ledger: Path) -> dict[str, list[int]]:
    """The steps that a ledger has, by run."""
    found: dict[str, list[int]] = {}
    for row in read(ledger):
        found.setdefault(row["run"], []).append(row["step"])
    return found


def lost(steps: Steps, kept: Mapping[str, int]) -> dict[str, int]:
    """How many steps of each run were taken and are not kept.

    Args:
        steps: of the process that was killed.
        kept: after how many steps each run goes on; negative: it has trained.
    """
    newest = {run: kept.get(run, 0) for run in steps}
    return {
        run: 0 if newest[run] < 0 else max(0, own[-1] + 1 - newest[run])
        for run, own in steps.items()
    }


def repeated(steps: Steps, kept: Mapping[str, int]) -> Iterator[str]:
    """Say which runs did not go on from where they were kept."""
    for run, own in steps.items():
        begin = kept.get(run, 0)
        if begin < 0:
            yield f"{run} had trained and was trained again from step {own[0]}"
        elif own[0] != begin:
            yield f"{run} was kept at step {begin} and went on at {own[0]}"
        if own != list(range(own[0], own[-1] + 1)):
            yield f"{run} took the steps {own}"
