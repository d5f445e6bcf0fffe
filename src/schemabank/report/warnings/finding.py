"""A warning: what the rows or the runs show, and no more.

Its id is stable, so that a program can look for it.
"""

from collections.abc import Iterable, Mapping
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
        "other-contrast",
        "contrast-not-declared",
        "format-explains-difference",
        "learning-rates-on-test",
        "learning-rates-not-tuned",
        "unequal-tuning",
        "unequal-steps",
        "unequal-updates",
        "unequal-parameters",
        "other-settings",
        "other-conditions",
        "runs-left-out",
        "few-seeds",
        "selection-on-test",
        "below-reference",
        "not-above-reference",
        "no-reference",
        "rate-at-edge",
        "completions-at-limit",
    ),
    (
        "subset-of-test",
        "subset-of-split",
        "trimmed-prompts",
        "excluded-runs",
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


def by_weight(found: Iterable[Finding], contrast: tuple[str, str]) -> list[Finding]:
    """Return findings from the gravest on; those on arms beside the contrast come last of theirs.

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
