"""What processes did, line by line in files that outlive them, and what of it was done again."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Steps = Mapping[str, list[int]]
"""The steps that a process took, by run, in their order."""
Answers = Mapping[str, Sequence[str]]
"""What runs have answered in a process, by run."""


def read(ledger: Path) -> list[dict[str, Any]]:
    """Read a ledger; its last line may be cut off by a kill."""
    lines = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
    return [json.loads(line) for line in lines]


def steps_in(ledger: Path) -> dict[str, list[int]]:
    """The steps that a ledger has, by run."""
    return _by_run(ledger, "step")


def begun_in(ledger: Path) -> dict[str, list[int]]:
    """The steps at which a ledger says that checkpoints were begun, by run."""
    return _by_run(ledger, "begun")


def answers_in(ledger: Path) -> dict[str, list[str]]:
    """The answers that a ledger has, by run."""
    return _by_run(ledger, "answer")


def _by_run(ledger: Path, name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in read(ledger):
        if name in row:
            found.setdefault(row["run"], []).append(row[name])
    return found


def answered_again(before: Sequence[Answers], now: Answers) -> Iterator[tuple[str, int]]:
    """Yield how many answers a process has given that another had, by run, form and kind."""
    for run, own in now.items():
        known = {answer for each in before for answer in each.get(run, ())}
        again = Counter(answer.rpartition(" ")[0] for answer in own if answer in known)
        yield from ((f"{run} {name}", number) for name, number in again.items())


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


def gone_back(
    begun: Mapping[str, Sequence[int]], before: Mapping[str, int], kept: Mapping[str, int]
) -> Iterator[str]:
    """Say which runs are kept from before where a killed process had certainly kept them.

    A checkpoint is begun when the one before it is written. So all but the newest are kept.

    Args:
        begun: at which steps that process began checkpoints.
        before: after how many steps each run was kept when it began; negative: it had trained.
        kept: likewise, after it was killed.
    """
    for run, own in begun.items():
        least = own[-2] if len(own) > 1 else before.get(run, 0)
        if 0 <= kept.get(run, 0) < least:
            yield f"{run} is kept at step {kept.get(run, 0)}, and was at {least}"


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
