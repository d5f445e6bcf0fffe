"""Differences that are judged together: their p-values adjusted by Holm over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemabank import stats


@dataclass(frozen=True)
class Adjusted:
    """A difference, its p-value adjusted over the family, and the verdict on that."""

    difference: float
    interval: stats.Interval | None
    p: float | None
    p_holm: float | None
    outcome: stats.Outcome
    sentence: str


def judged_together(differences: Sequence[stats.Difference]) -> list[Adjusted]:
    """Judge a family of differences; what cannot be tested counts as p = 1."""
    if not differences:
        return []
    adjusted = stats.holm([1.0 if found.p is None else found.p for found in differences])
    judged = []
    for found, p in zip(differences, adjusted, strict=True):
        p_holm = None if found.p is None else p
        verdict = stats.verdict(found, p=p_holm, num_comparisons=len(differences))
        outcome, sentence = verdict.outcome, verdict.sentence
        judged.append(Adjusted(found.mean, found.interval, found.p, p_holm, outcome, sentence))
    return judged
