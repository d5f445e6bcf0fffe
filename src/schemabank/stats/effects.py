"""Effect sizes: differences in standard deviations, and how often one arm outperforms the other."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gammaln, nctdtr
from scipy.stats import beta, chi2, norm

from schemabank.stats import checks
from schemabank.stats.checks import Interval

LARGEST_T = 1e4  # beyond, scipy's noncentral t fails, and only the estimated spread counts


@dataclass(frozen=True)
class Effect:
    """A mean difference in standard deviations; ``None`` where these are unknown or 0.

    Attributes:
        raw: Cohen's d, which overstates: by 38 % with 4 pairs, 13 % with 8.
        corrected: Hedges' g, without that bias.
        interval: of the effect in the population.
    """

    raw: float | None
    corrected: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Outperformance:
    """How probable it is that the first arm scores higher than the second.

    Attributes:
        probability: ties count half.
        interval: of that.
    """

    probability: float
    interval: Interval


def hedges_g(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> Effect:
    """Return the difference of two arms in pooled standard deviations.

    Hedges 1981 (Journal of Educational Statistics 6:107-128): g is d times the exact correction of
    its equation 6e. The interval inverts the noncentral t distribution (Steiger and Fouladi 1997;
    Cumming and Finch 2001, Educational and Psychological Measurement 61:532-574) and is exact for
    normal scores of equal variance.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other; the numbers of seeds may differ, 4 in all at least.
        confidence: probability that the interval holds the population's effect.
    """
    checks.check_confidence(confidence)
    first, second = checks.as_scores(a), checks.as_scores(b)
    df = len(first) + len(second) - 2
    if df < 2:
        return Effect(None, None, None)
    centred = np.concatenate([first - first.mean(), second - second.mean()])
    pooled = float(np.sqrt(np.square(centred).sum() / df))
    if pooled <= checks.rounding(first, second):
        return Effect(None, None, None)
    raw = float(first.mean() - second.mean()) / pooled
    return _corrected_effect(
        raw, df, len(first) * len(second) / (len(first) + len(second)), confidence
    )


def paired_d_z(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> Effect:
    """Return the mean paired difference in standard deviations of the differences.

    Cohen 1988, Statistical Power Analysis, chapter 2; Lakens 2013 (Frontiers in Psychology
    4:863, equation 6). Corrected and with an interval as `hedges_g`.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other, in the same order, 3 at least.
        confidence: probability that the interval holds the population's effect.
    """
    checks.check_confidence(confidence)
    values = checks.differences(a, b)
    sd = checks.sample_sd(values)
    if len(values) < 3 or not sd:
        return Effect(None, None, None)
    return _corrected_effect(float(values.mean()) / sd, len(values) - 1, len(values), confidence)


def paired_outperformance(
    a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95
) -> Outperformance:
    """Return the probability that the first arm wins a pair, ``P(A > B)``.

    Bouthillier et al. 2021 (arXiv 2103.03098, section 4), who call an improvement meaningful
    where the interval lies above 0.5 and reaches 0.75. Their percentile bootstrap shrinks to a
    point where all pairs agree, so this is the interval of Clopper and Pearson 1934 (Biometrika
    26:404-413) with a tie as half a win. It covers at least as often as stated and agrees with the
    sign test: as with that, 6 pairs are the fewest that can exclude 0.5.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other, in the same order.
        confidence: probability that the interval holds the population's probability.
    """
    checks.check_confidence(confidence)
    values = checks.differences(a, b)
    wins, num, tail = float((np.sign(values).sum() + len(values)) / 2), len(values), 1 - confidence
    low = float(beta.ppf(tail / 2, wins, num - wins + 1)) if wins else 0.0
    high = float(beta.isf(tail / 2, wins + 1, num - wins)) if wins < num else 1.0
    return Outperformance(wins / num, (low, high))


def unpaired_outperformance(
    a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95
) -> Outperformance:
    """Return the probability that a run of the first arm beats one of the second, ``P(A > B)``.

    Mann and Whitney's U over the number of pairs, with the interval of Newcombe 2006 (Statistics in
    Medicine 25:559-573, method 5), which stays inside [0, 1] and has width where all of one arm's
    runs beat all of the other's. Simulated coverage at a stated 95 % with 4 seeds an arm: 94.4 %
    without a difference, 93.1 % at one of 3 standard deviations.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other; the numbers of seeds may differ.
        confidence: probability that the interval holds the population's probability.
    """
    checks.check_confidence(confidence)
    first, second = checks.as_scores(a), checks.as_scores(b)
    gaps = np.round(np.subtract.outer(first, second), checks.decimals(first, second))
    share, z = float((np.sign(gaps).mean() + 1) / 2), float(norm.isf((1 - confidence) / 2))
    others = (len(first) + len(second)) / 2 - 1

    def beyond(theta: float, direction: int) -> float:
        spread = 1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return share - theta + direction * z * math.sqrt(theta * (1 - theta) * spread / gaps.size)

    # At 0 and 1 the equation also holds trivially, for a share that has no variance there.
    low = 0.0 if share == 0 else brentq(beyond, 0, min(share, 1 - 1e-9), args=(-1,))
    high = 1.0 if share == 1 else brentq(beyond, max(share, 1e-9), 1, args=(1,))
    return Outperformance(share, (float(low), float(high)))


def _corrected_effect(raw: float, df: int, size: float, confidence: float) -> Effect:
    """The effect whose t statistic is ``raw √size``."""
    correction = np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / (df / 2) ** 0.5
    ends = [
        _noncentrality(raw * size**0.5, df, tail) / size**0.5
        for tail in ((1 + confidence) / 2, (1 - confidence) / 2)
    ]
    return Effect(raw, float(raw * correction), (ends[0], ends[1]))


def _noncentrality(t: float, df: int, tail: float) -> float:
    """The noncentrality at which a statistic up to ``t`` has the probability ``tail``."""
    if t < 0:
        return -_noncentrality(-t, df, 1 - tail)
    if t > LARGEST_T:
        return t * math.sqrt(chi2.isf(tail, df) / df)
    least, rare = float(norm.isf(tail)), min(tail, 1 - tail) / 1000
    most = t * math.sqrt(chi2.isf(rare, df) / df) + float(norm.isf(rare))
    return float(brentq(lambda shift: nctdtr(df, shift, t) - tail, least - 0.01, most))
