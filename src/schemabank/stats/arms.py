"""One arm over its seeds: mean, spread and Student's interval; whether two arms' spreads differ.

A coefficient of variation, sd over mean, compares spreads of scores of different size.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from scipy.stats import f as fisher

from schemabank.stats.checks import Interval, as_scores, check_confidence, sample_sd


@dataclass(frozen=True)
class ArmSummary:
    """One arm's scores over seeds.

    Attributes:
        num_seeds: how many scores there are.
        mean: of the scores.
        sd: standard deviation with ``n - 1``; ``None`` for one seed.
        cv: coefficient of variation, ``sd / |mean|``; ``None`` also for a mean of 0.
        interval: of the mean over seeds; ``None`` also where the scores show no spread.
    """

    num_seeds: int
    mean: float
    sd: float | None
    cv: float | None
    interval: Interval | None


@dataclass(frozen=True)
class SpreadRatio:
    """The first arm's standard deviation over the second's; ``None`` where either has none.

    Attributes:
        ratio: of the standard deviations.
        interval: of that ratio.
        p: two-sided, of equal variances.
    """

    ratio: float | None
    interval: Interval | None
    p: float | None


def summarise_arm(scores: npt.ArrayLike, *, confidence: float = 0.95) -> ArmSummary:
    """Summarise one score a seed, with Student's interval of the mean.

    Student 1908 (Biometrika 6:1-25); exact for normal scores at any number of seeds.

    Args:
        scores: (seed).
        confidence: probability that the interval holds the mean over all seeds.
    """
    check_confidence(confidence)
    values = as_scores(scores)
    num, mean, sd = len(values), float(values.mean()), sample_sd(values)
    return ArmSummary(
        num_seeds=num,
        mean=mean,
        sd=sd,
        cv=None if sd is None or mean == 0 else sd / abs(mean),
        interval=student_interval(mean, None if sd is None else sd / num**0.5, num - 1, confidence),
    )


def sd_ratio(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> SpreadRatio:
    """Compare the spreads of two arms by the F distribution of their ratio of variances.

    NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.5.9. Exact for independent normal
    scores; arms that share seeds are positively correlated if anything, which makes it cautious.
    Eight seeds an arm cannot tell a ratio below 2.2 from 1, four none below 3.9.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other; the numbers of seeds may differ.
        confidence: probability that the interval holds the ratio over all seeds.
    """
    check_confidence(confidence)
    first, second = as_scores(a), as_scores(b)
    sds = sample_sd(first), sample_sd(second)
    if not sds[0] or not sds[1]:
        return SpreadRatio(None, None, None)
    ratio, freedom = sds[0] / sds[1], (len(first) - 1, len(second) - 1)
    low, high = np.sqrt(fisher.ppf([(1 - confidence) / 2, (1 + confidence) / 2], *freedom))
    tails = fisher.cdf(ratio**2, *freedom), fisher.sf(ratio**2, *freedom)
    return SpreadRatio(ratio, (float(ratio / high), float(ratio / low)), float(2 * min(tails)))


def student_interval(
    mean: float, standard_error: float | None, df: float | None, confidence: float
) -> Interval | None:
    """Return Student's interval; ``None`` where there is no standard error or it is 0."""
    if not standard_error or df is None:
        return None
    reach = float(stdtrit(df, (1 + confidence) / 2)) * standard_error
    return mean - reach, mean + reach
