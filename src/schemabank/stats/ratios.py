"""How many times one arm's mean is the other's, with Fieller's interval.

A ratio whose denominator might be 0 can be anything: its interval is then unbounded, and saying so
is the point. Franz 2007 (arXiv 0710.2024) shows the three shapes that the interval can take.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from schemabank.stats import checks
from schemabank.stats.checks import Array, Interval
from schemabank.stats.contrasts import satterthwaite


@dataclass(frozen=True)
class MeanRatio:
    """A ratio of two arms' means.

    Attributes:
        ratio: ``None`` for a denominator of 0.
        interval: ``None`` where it is unbounded, or unknown.
        bounded: whether the denominator can be told from 0; ``None`` where one seed or no spread
            leave that unknown.
        excluded: where the interval is unbounded, the ratios that can be ruled out, if any.
    """

    ratio: float | None
    interval: Interval | None
    bounded: bool | None
    excluded: Interval | None


def ratio_of_means(
    a: npt.ArrayLike, b: npt.ArrayLike, *, paired: bool = True, confidence: float = 0.95
) -> MeanRatio:
    """Return the ratio of two arms' means with Fieller's interval.

    Fieller 1954 (JRSS B 16:175-185): the ratios ``ρ`` for which a t-test does not reject
    ``mean(a) = ρ mean(b)``. Exact for pairs of normal scores. Unpaired it does not take variances
    for equal and has Satterthwaite's degrees of freedom at the observed ratio (Hasler, Vonk and
    Hothorn 2008, Statistics in Medicine 27:490-503).

    Args:
        a: (seed) of the arm in the numerator.
        b: (seed) of the arm in the denominator.
        paired: whether arms share seeds, in the same order.
        confidence: probability that the interval holds the ratio of means over all seeds.
    """
    checks.check_confidence(confidence)
    first, second = checks.as_pairs(a, b) if paired else (checks.as_scores(a), checks.as_scores(b))
    above, below = float(first.mean()), float(np.round(second.mean(), checks.decimals(second)))
    ratio = above / below if below else None
    if _no_spread(first, second, ratio if paired else None):
        return MeanRatio(ratio, None, None, None)
    covariance, df = _mean_errors(first, second, paired, ratio)
    t2 = float(student.isf((1 - confidence) / 2, df)) ** 2
    return _solve_for_ratio(ratio, np.array([above, below]), covariance * t2)


def _mean_errors(
    first: Array, second: Array, paired: bool, ratio: float | None
) -> tuple[Array, float]:
    """Covariance of both means, and its degrees of freedom."""
    if paired:
        return np.cov(first, second) / len(first), len(first) - 1
    parts = float(first.var(ddof=1)) / len(first), float(second.var(ddof=1)) / len(second)
    freedom = len(first) - 1, len(second) - 1
    scale = 1.0 if ratio is None else ratio**2
    return np.diag(parts), satterthwaite((parts[0], scale * parts[1]), freedom)


def _no_spread(first: Array, second: Array, ratio: float | None) -> bool:
    """Whether an arm has one seed, neither has a spread, or all pairs have the same ratio."""
    spreads = checks.sample_sd(first), checks.sample_sd(second)
    if None in spreads or not any(spreads):
        return True
    if ratio is None:
        return False
    return not np.round(first - ratio * second, checks.decimals(first, second)).any()


def _solve_for_ratio(ratio: float | None, means: Array, margin: Array) -> MeanRatio:
    """Solve ``(a − ρ b)² ≤ t² Var(a − ρ b)`` for ``ρ``, a quadratic inequality."""
    form = np.outer(means, means) - margin
    square, half, constant = form[1, 1], form[0, 1], form[0, 0]
    inside = half**2 - square * constant
    if square > 0:
        reach = max(inside, 0.0) ** 0.5
        ends = float((half - reach) / square), float((half + reach) / square)
        return MeanRatio(ratio, ends, bounded=True, excluded=None)
    if square == 0 or inside <= 0:
        return MeanRatio(ratio, None, bounded=False, excluded=None)
    reach = inside**0.5
    ruled_out = float((half + reach) / square), float((half - reach) / square)
    return MeanRatio(ratio, None, bounded=False, excluded=ruled_out)
