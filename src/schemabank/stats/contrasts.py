"""Two arms over seeds: their mean difference with Student's or Welch's interval and p-value.

Arms that were trained with the same seeds, hence on the same data in the same order, are compared
seed by seed; others by Welch's test, which does not take their variances for equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt
from scipy.special import stdtr
from scipy.stats import t as student

from schemabank.stats.arms import student_interval
from schemabank.stats.checks import Interval, as_scores, check_confidence, differences, sample_sd

FEWEST_SEEDS = 4  # that a verdict takes: see benchmarks/verdicts.py


@dataclass(frozen=True)
class Difference:
    """How much higher the first arm's mean is than the second's.

    Attributes:
        mean: of the first arm less the second.
        standard_error: of that; ``None`` where too few seeds tell it.
        df: degrees of freedom of the standard error; ``None`` likewise.
        interval: ``None`` also where no spread shows.
        p: two-sided, of no difference; ``None`` likewise.
        confidence: of the interval.
        num_seeds: pairs, or seeds of the arm that has fewer.
    """

    mean: float
    standard_error: float | None
    df: float | None
    interval: Interval | None
    p: float | None
    confidence: float
    num_seeds: int

    @property
    def is_enough(self) -> bool:
        """Whether a verdict may rest on it."""
        return self.num_seeds >= FEWEST_SEEDS

    @property
    def may_be_enough(self) -> bool:
        """Whether as many scores may lead to a verdict, whatever these are."""
        return self.is_enough and self.standard_error is not None

    @property
    def why_no_verdict(self) -> str:
        """Why none may, or why none can: nothing shows any spread."""
        if self.is_enough:
            return "seeds without any spread cannot tell it from chance"
        are = "seed is" if self.num_seeds == 1 else "seeds are"
        return f"{self.num_seeds} {are} too few, a verdict takes {FEWEST_SEEDS}"

    def upper_tail(self, statistic: float) -> float:
        """Return the probability of a larger value, in standard errors, if there is no difference.

        The difference must have a standard error above 0.
        """
        return float(student.sf(statistic, self.df))

    def quantile(self, tail: float) -> float:
        """Return the value, in standard errors, that is exceeded with this probability."""
        return float(student.isf(tail, self.df))


@dataclass(frozen=True)
class PairedDifference(Difference):
    """A difference over pairs of runs that share a seed.

    Attributes:
        sd: standard deviation of the pairs' differences with ``n - 1``; ``None`` for one pair.
    """

    sd: float | None


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95
) -> PairedDifference:
    """Compare two arms seed by seed: Student's paired test, as `scipy.stats.ttest_rel`.

    Student 1908 (Biometrika 6:1-25, section 9, the sleep data). Exact where differences are normal.
    Simulated coverage at a stated 95 % where they are exponential, more skewed than averages over
    hundreds of items get: 89.7 % with 8 seeds, 88.1 % with 4. Of the mean over other items too it
    covers as little as 53.0 %, where these come in clusters: that takes `crossed_difference`.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other, in the same order.
        confidence: probability that the interval holds the mean difference over all seeds, on
            these items.
    """
    check_confidence(confidence)
    values = differences(a, b)
    num, mean, sd = len(values), float(values.mean()), sample_sd(values)
    error = None if sd is None else sd / num**0.5
    return PairedDifference(
        mean=mean,
        standard_error=error,
        df=None if error is None else num - 1,
        interval=student_interval(mean, error, num - 1, confidence),
        p=two_sided_p(mean, error, num - 1),
        confidence=confidence,
        num_seeds=num,
        sd=sd,
    )


def welch_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> Difference:
    """Compare two arms of independent seeds: Welch's test, as `scipy.stats.ttest_ind`.

    Welch 1947 (Biometrika 34:28-35), with the degrees of freedom of Satterthwaite 1946 (Biometrics
    Bulletin 2:110-114). It needs two seeds of each arm.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other; the numbers of seeds may differ.
        confidence: probability that the interval holds the difference of the arms' means over all
            seeds, on these items.
    """
    check_confidence(confidence)
    first, second = as_scores(a), as_scores(b)
    mean = float(first.mean() - second.mean())
    sds, num = (sample_sd(first), sample_sd(second)), min(len(first), len(second))
    if sds[0] is None or sds[1] is None:
        return Difference(mean, None, None, None, None, confidence, num)
    parts = sds[0] ** 2 / len(first), sds[1] ** 2 / len(second)
    error = sum(parts) ** 0.5
    df = satterthwaite(parts, (len(first) - 1, len(second) - 1))
    return Difference(
        mean=mean,
        standard_error=error,
        df=df,
        interval=student_interval(mean, error, df, confidence),
        p=two_sided_p(mean, error, df),
        confidence=confidence,
        num_seeds=num,
    )


def satterthwaite(parts: Sequence[float], freedom: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of estimated variances (Satterthwaite 1946).

    For parts that are all 0, the sum of their own.
    """
    total = sum(parts)
    if not total:
        return float(sum(freedom))
    shares = [(part / total) ** 2 / df for part, df in zip(parts, freedom, strict=True)]
    return 1 / sum(shares)


def two_sided_p(mean: float, standard_error: float | None, df: float | None) -> float | None:
    """Return Student's two-sided p-value; ``None`` where there is no standard error or it is 0."""
    if not standard_error or df is None:
        return None
    return float(2 * stdtr(df, -abs(mean) / standard_error))
