"""Differences that are judged together: their p-values adjusted by Holm over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemabank import stats


@dataclass(frozen=True)
class Adjusted:
    """A difference's p-value, adjusted over its family, and the verdict on it."""

    p_holm: float | None
    verdict: stats.Verdict


def judged_together(differences: Sequence[stats.Difference]) -> list[Adjusted]:
    """Judge a family of differences; what cannot be tested counts as p = 1."""
    if not differences:
        return []
    adjusted = stats.holm([1.0 if found.p is None else found.p for found in differences])
    return [
        _judged(found, None if found.p is None else p, len(differences))
        for found, p in zip(differences, adjusted, strict=True)
    ]


def _judged(difference: stats.Difference, p_holm: float | None, num: int) -> Adjusted:
    return Adjusted(p_holm, stats.verdict(difference, p=p_holm, num_comparisons=num))
