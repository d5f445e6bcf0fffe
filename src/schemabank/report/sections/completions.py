"""How the arms' completions ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from schemabank.common.tables import PlainTable
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import RunSet
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
    for (arm, setting), own in runs.by_place(untrained=True).items():
        summaries = [run.result["groups"][group] for run in own]
        if all(summary.get(name) is not None for summary in summaries for name in ENDINGS):
            ended, at_limit, new_tokens, unparsable = (
                fmean(summary[name] for summary in summaries) for name in ENDINGS
            )
            trained, read = own[0].trained, 1 - unparsable
            found.append(Behaviour(arm, setting, trained, ended, at_limit, new_tokens, read))
    return found


def table(found: Sequence[Behaviour]) -> PlainTable | None:
    """Return how completions ended."""
    rows = [
        {
            "arm": own.arm,
            "setting": place(own.setting),
            "ended": percent(own.ended_ratio),
            "at limit": percent(own.at_limit_ratio),
            "new tokens": number(own.mean_new_tokens, 1),
            "answer read": percent(own.read_ratio),
        }
        for own in found
    ]
    return table_of("how completions ended", rows)
