"""A warning: what the rows or the runs show, and no more.

Its id is stable, so that a program can look for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_NAMED = 5  # rows or runs in a sentence
# From the gravest: what puts scores or adapters in doubt, what puts the comparison in doubt, what a
# reader should know besides.
WEIGHTS: tuple[tuple[str, ...], ...] = (
    (
        "adapter-not-as-trained",
        "adapter-not-compared",
        "identical-rows",
        "impossible-score",
        "failed-runs",
        "unfinished-runs",
        "skipped-steps",
    ),
    (
        "other-conditions",
        "other-evaluation",
        "other-contrast",
        "contrast-not-declared",
        "group-not-declared",
        "setting-not-declared",
        "margin-not-declared",
        "below-reference",
        "not-above-reference",
        "no-reference",
        "format-explains-difference",
        "loss-disagrees",
        "completions-at-limit",
        "learning-rates-on-test",
        "learning-rates-not-tuned",
        "unequal-tuning",
        "rate-at-edge",
        "unequal-steps",
        "unequal-teachers",
        "unequal-updates",
        "unequal-parameters",
        "other-settings",
        "runs-left-out",
        "few-seeds",
        "clusters-not-recorded",
        "few-clusters",
        "single-runs",
        "no-items",
        "selection-on-test",
    ),
    (
        "subset-of-test",
        "subset-of-split",
        "trimmed-prompts",
        "excluded-runs",
        "excluded-tasks",
        "lower-variance-unsupported",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: stable name of the rule.
        numbers: that it rests on; shares as in the table.
        sentence: the finding in words.
    """

    id: str
    numbers: Mapping[str, object]
    sentence: str


def first_named(texts: Sequence[str]) -> str:
    """Return the first of some texts, and how many more there are."""
    left = len(texts) - MOST_NAMED
    return "; ".join(texts[:MOST_NAMED]) + (f" and {left} more" if left > 0 else "")


def times(num: int, what: str) -> str:
    """Say how many, as ``1 run`` or ``2 runs``."""
    return f"{num} {what}{'s' * (num != 1)}"


def by_weight(found: Iterable[Finding], contrast: tuple[str, str]) -> list[Finding]:
    """Return findings, the gravest first; of equal weight, those on an arm not compared come last.

    Args:
        found: what was found.
        contrast: treatment and control.
    """
    groups = {name: group for group, names in enumerate(WEIGHTS) for name in names}
    places = {name: place for names in WEIGHTS for place, name in enumerate(names)}
    return sorted(
        found,
        key=lambda own: (
            groups[own.id],
            own.numbers.get("arm", contrast[0]) not in contrast,
            places[own.id],
        ),
    )
