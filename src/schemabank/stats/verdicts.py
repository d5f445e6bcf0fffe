"""What a comparison says, by rules stated before it was made.

The primary contrast and the smallest difference of interest belong to the plan, not to the result;
every further contrast belongs to a family whose p-values `holm` adjusts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from schemabank.common.errors import InputError
from schemabank.stats.checks import Interval
from schemabank.stats.contrasts import Difference
from schemabank.stats.power import detectable_from_error

Outcome = Literal["better", "worse", "no difference detected", "no verdict"]
Relevance = Literal["of interest", "too small to matter", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What a comparison says, and the numbers that it rests on.

    Attributes:
        outcome: of the first arm, against the second.
        relevance: the interval against the smallest difference of interest, if one was given:
            beyond it, within it, or across it.
        difference: of the means.
        interval: of the difference, not adjusted for other comparisons.
        p: adjusted where it was given so; ``None`` where there is no verdict.
        detectable: true difference that would have been found with a probability of 80 %; ``None``
            where too few seeds or no spread leave that unknown.
        sentence: all that in words.
    """

    outcome: Outcome
    relevance: Relevance | None
    difference: float
    interval: Interval | None
    p: float | None
    detectable: float | None
    sentence: str


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of a family, so that at most a share alpha of families errs at all.

    The step-down procedure of Holm 1979 (Scandinavian Journal of Statistics 6:65-70): the smallest
    is multiplied by their number, the next by one less, and none falls below the one before.

    Args:
        p_values: one a comparison, each in [0, 1]; count one that could not be tested as 1.

    Returns:
        Adjusted p-values in the order given, at most 1.
    """
    if not len(p_values) or not all(0 <= p <= 1 for p in p_values):
        raise InputError(
            f"p-values {list(p_values)} are not a family: give at least one, all between 0 and 1"
        )
    found = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(found)
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(p) for p in adjusted]


def verdict(
    contrast: Difference,
    *,
    p: float | None = None,
    num_comparisons: int = 1,
    smallest: float | None = None,
    higher_is_better: bool = True,
    shares: bool = True,
) -> Verdict:
    """Judge a comparison.

    With fewer than `FEWEST_SEEDS` seeds there is no verdict, whatever the interval: where two seeds
    happen to agree, what seeds vary is taken for next to nothing. Over seeds and items, two seeds
    call equal arms different in up to 7 % of comparisons, and three, after Holm's adjustment, some
    of five parts of a split in up to 6 %; with four or more it is 5 %, but for the simulation's
    error (``benchmarks/verdicts.py``, recorded in ``results/verdicts.json``).

    That holds where the runs of both arms vary alike. In the record's worlds of *one arm* the means
    are equal too, but only one arm's runs vary: one in five fails, or half of them are of a better
    kind. A few seeds then often miss the rare runs and show too small a spread. No method that was
    tried keeps 5 % there: this one calls such arms different in up to 18 % of comparisons with
    three seeds, 12 % with four and 8 % with twelve, the most over numbers of items.

    A difference is detected where the p-value is at most one less the contrast's confidence *and*
    the interval excludes 0; without an interval nothing is. The detectable difference is that of
    the first step of `holm`, at alpha over the number of comparisons.

    Args:
        contrast: from `paired_difference`, `welch_difference` or `crossed_difference`.
        p: from `holm` where the contrast is one of a family, or of another test that was planned;
            the contrast's own if ``None``.
        num_comparisons: in that family.
        smallest: smallest difference of interest, positive, in units of the score.
        higher_is_better: false for losses.
        shares: whether scores are shares, whose differences the sentence gives in points of
            percent; else in units of the score.
    """
    _check_rule(p, num_comparisons, smallest)
    enough = contrast.is_enough
    p = (contrast.p if p is None else p) if enough else None
    alpha = 1 - contrast.confidence
    outcome = _outcome(contrast, p, alpha, higher_is_better) if enough else "no verdict"
    detectable = None
    if enough and contrast.standard_error and contrast.df is not None:
        detectable = detectable_from_error(
            contrast.standard_error, contrast.df, alpha=alpha / num_comparisons
        )
    relevance = None if smallest is None or not enough else _relevance(contrast.interval, smallest)
    return Verdict(
        outcome=outcome,
        relevance=relevance,
        difference=contrast.mean,
        interval=contrast.interval,
        p=p,
        detectable=detectable,
        sentence=_Words(contrast, shares).sentence(outcome, relevance, p, detectable),
    )


def _outcome(
    contrast: Difference, p: float | None, alpha: float, higher_is_better: bool
) -> Outcome:
    if p is None or contrast.interval is None or p > alpha:
        return "no difference detected"
    low, high = contrast.interval
    if low <= 0 <= high:
        return "no difference detected"
    return "better" if (low > 0) == higher_is_better else "worse"


def _relevance(interval: Interval | None, smallest: float) -> Relevance:
    if interval is None:
        return "undecided"
    low, high = interval
    if low >= smallest or high <= -smallest:
        return "of interest"
    return "too small to matter" if -smallest < low and high < smallest else "undecided"


@dataclass(frozen=True)
class _Words:
    """A comparison in words, all of its figures in one unit."""

    contrast: Difference
    shares: bool

    def sentence(
        self,
        outcome: Outcome,
        relevance: Relevance | None,
        p: float | None,
        detectable: float | None,
    ) -> str:
        """Return the verdict."""
        unit = " points" if self.shares else ""
        mean = f"{self._signed_text(self.contrast.mean)}{unit}"
        if outcome == "no verdict":
            known = "" if self.contrast.interval is None else f" ({self._interval_text()})"
            return f"No verdict: {mean}{known}; {self.contrast.why_no_verdict}."
        if self.contrast.interval is None or p is None or detectable is None:
            return f"No difference detected: {mean}, but {self.contrast.why_no_verdict}."
        numbers = f"{mean} ({self._interval_text()}, p = {p:.2g})"
        numbers += "" if relevance is None else f", {relevance}"
        if outcome == "no difference detected":
            found = f"{self._signed_text(detectable).lstrip('+')}{unit} would have been found"
            return f"No difference detected: {numbers}; a true difference of {found} 4 times in 5."
        return f"{outcome.capitalize()}: {numbers}."

    def _interval_text(self) -> str:
        assert self.contrast.interval is not None
        low, high = map(self._signed_text, self.contrast.interval)
        return f"{100 * self.contrast.confidence:.4g} % interval {low} to {high}"

    def _signed_text(self, value: float) -> str:
        return f"{100 * value:+.2f}" if self.shares else f"{value:+.4g}"


def _check_rule(p: float | None, num_comparisons: int, smallest: float | None) -> None:
    if p is not None and not 0 <= p <= 1:
        raise InputError(f"p {p} is not between 0 and 1: give what holm returns")
    if num_comparisons < 1:
        raise InputError(f"{num_comparisons} comparisons: give at least 1")
    if smallest is not None and not 0 < smallest < float("inf"):
        raise InputError(
            f"smallest difference of interest {smallest} is not above 0: give one in units of the "
            "score, whichever arm it favours"
        )
