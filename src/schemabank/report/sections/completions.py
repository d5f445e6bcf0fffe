"""How the arms' completions ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from schemabank.common.tables import PlainTable
from schemabank.report.plain import EPOCHS
from schemabank.report.reading import ReportedRun, RunSet
from schemabank.report.sections.cells import number, percent, place
from schemabank.report.sections.chart import table_of

ENDINGS = ("ended_ratio", "length_limit_ratio", "mean_new_tokens", "unparsable_ratio")


@dataclass(frozen=True)
class Behaviour:
    """How an arm's completions ended: shares of all of them, and their mean length.

    Attributes:
        arm, setting: of the runs.
        trained: whether the arm trains anything.
        ended_ratio: ended by themselves.
        at_limit_ratio: ran to the token limit.
        mean_new_tokens: of a completion.
        read_ratio: held something that could be read as an answer.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    trained: bool
    ended_ratio: float
    at_limit_ratio: float
    mean_new_tokens: float
    read_ratio: float


def find(runs: RunSet, group: str) -> list[Behaviour]:
    """Return how completions ended, arm by arm; nothing where none were decoded."""
    found = []
    for (arm, setting), own in _by_place(runs).items():
        summaries = [run.result["groups"][group] for run in own]
        if all(summary.get(name) is not None for summary in summaries for name in ENDINGS):
            found.append(
                Behaviour(
                    arm=arm,
                    setting=setting,
                    trained=own[0].trained,
                    ended_ratio=_mean(summaries, "ended_ratio"),
                    at_limit_ratio=_mean(summaries, "length_limit_ratio"),
                    mean_new_tokens=_mean(summaries, "mean_new_tokens"),
                    read_ratio=1 - _mean(summaries, "unparsable_ratio"),
                )
            )
    return found


def table(found: Sequence[Behaviour]) -> PlainTable | None:
    """Return how completions ended."""
    rows = [
        [
            own.arm,
            place(own.setting),
            percent(own.ended_ratio),
            percent(own.at_limit_ratio),
            number(own.mean_new_tokens, 1),
            percent(own.read_ratio),
        ]
        for own in found
    ]
    head = ["arm", "setting", "ended", "at limit", "new tokens", "answer read"]
    return table_of("how completions ended", head, rows)


def _by_place(runs: RunSet) -> dict[tuple[str, str], list[ReportedRun]]:
    found: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in runs.runs:
        found.setdefault((run.arm, run.setting), []).append(run)
    return found


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return fsum(row[name] for row in rows) / len(rows)
