"""Two arms over seeds and items at once, from one score for each seed and item.

Another seed gives other weights, another test set other items: a difference that should hold for
both varies with both. Every seed answers every item, so seeds and items are crossed, as readers and
cases are in radiology, whose analysis this is (multi-reader multi-case; Dorfman, Berbaum and Metz
1992, Investigative Radiology 27:723-731).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from schemabank.stats import checks
from schemabank.stats.arms import student_interval
from schemabank.stats.checks import Array, Interval
from schemabank.stats.clusters import (
    OfClusters,
    are_clusters,
    are_enough,
    cluster_sums,
    degrees_of_freedom,
    show_error,
    squared_error,
    why_not_enough,
)
from schemabank.stats.contrasts import Difference

RESAMPLES_AT_ONCE = 256  # of any number of items fit into memory
SMALLEST_P = 1e-30  # in one tail; smaller ones mean nothing
LOG_ROUNDING = 1e-9  # what there and back loses
LEAST_DF = 0.02  # Student's quantile is then 8e63 at a tail of 2.5 %


@dataclass(frozen=True)
class CrossedDifference(Difference):
    """A difference that counts the variation of seeds and of items.

    Its degrees of freedom are those with which Student's quantile is the interval's.

    Attributes:
        num_clusters: of items; the number of items where each is drawn by itself.
        seed_part: what seeds, and noise of single answers, add to the squared standard error;
            ``None`` for one seed or item, and for two clusters.
        item_part: what items add; ``None`` likewise.
        of_clusters: what clusters show by themselves; ``None`` where items are drawn alone, and
            for a single cluster.
    """

    num_clusters: int
    seed_part: float | None
    item_part: float | None
    of_clusters: OfClusters | None = field(default=None, kw_only=True)

    @property
    def is_enough(self) -> bool:
        """Whether a verdict may rest on it."""
        return super().is_enough and are_enough(self._fewest_clusters)

    @property
    def why_no_verdict(self) -> str:
        """Why none may, or why none can: one item or few clusters do not show what items add."""
        if super().is_enough and self.num_clusters == 1:
            return "a single item or cluster does not show what other items would add"
        fewest = self._fewest_clusters
        if super().is_enough and fewest is not None and not are_enough(fewest):
            return why_not_enough(fewest)
        return super().why_no_verdict

    @property
    def _fewest_clusters(self) -> int | None:
        return None if self.of_clusters is None else self.of_clusters.fewest

    def upper_tail(self, statistic: float) -> float:
        """Return the probability of a larger value, in standard errors, if there is no difference.

        The difference must have a standard error above 0.
        """
        beyond = self._student().two_sided_p(abs(statistic)) / 2
        return beyond if statistic >= 0 else 1 - beyond

    def quantile(self, tail: float) -> float:
        """Return the value, in standard errors, that is exceeded with this probability."""
        return self._student().quantile(tail)

    def _student(self) -> "Cochran":
        assert self.seed_part is not None
        assert self.item_part is not None
        parts, of_clusters = (self.seed_part, self.item_part), self.of_clusters
        item_df = self.num_clusters - 1 if of_clusters is None else of_clusters.df
        return Cochran(parts, (self.num_seeds - 1, item_df), of_clusters)


def crossed_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> CrossedDifference:
    """Compare two arms over seeds and items by the moments of a two-way layout.

    The squared standard error is ``V_seed + max(V_item − V_cell, 0)``. The first term is the
    variance of the mean as seen between seeds. The second is that as seen between items, without
    the noise of single answers, which the first term contains already. It is the denominator of
    Hillis, Berbaum and Metz 2008 (Academic Radiology 15:647-661) for two arms' differences. Its
    quantile is that of Cochran 1964 (Biometrics 20:191-195): Student's quantiles for both terms'
    degrees of freedom, weighted by the terms. Hillis takes Satterthwaite's degrees of freedom.
    They are too many where the seeds happen to agree, and then the smallest p-values, which decide
    a family of comparisons, are too small.

    With clusters, sums over a cluster's items take the items' place, with the jackknife's error and
    degrees of freedom (`schemabank.stats.clusters`). Few clusters may agree by luck, and then
    V_item − V_cell is near 0 whatever clusters add. So no interval and no p-value is below that of
    clusters alone: Student's, with V_item for the squared standard error.

    Simulated coverage at a stated 95 % is 94.8 % to 96.8 % for 4 and 8 seeds and 300 items,
    whether seeds, items, clusters of items or single answers vary most.

    Args:
        a: (seed, item) scores of one arm.
        b: (seed, item) scores of the other, same seeds and items in the same order. An arm without
            seeds, such as the untouched model, is repeated for every seed.
        clusters: what each item was drawn with; ``None`` where each is drawn by itself.
        confidence: probability that the interval holds the mean difference over all seeds and
            items.
    """
    checks.check_confidence(confidence)
    sums, sizes = cluster_sums(a, b, clusters)
    num_seeds, num_clusters = sums.shape
    mean = float(sums.sum() / (num_seeds * sizes.sum()))
    found = mean_variances(sums, sizes) if min(sums.shape) > 1 else None
    parts = found.error_parts if found and show_error(sizes) else None
    error = None if parts is None else sum(parts) ** 0.5
    of_clusters = None if found is None else found.of_clusters
    freedom = num_seeds - 1, 1.0 if found is None else found.item_df
    student = Cochran(parts, freedom, of_clusters) if parts and error else None
    df, p = tested(mean, error, student, confidence)
    return CrossedDifference(
        mean=mean,
        standard_error=error,
        df=df,
        interval=student_interval(mean, error, df, confidence),
        p=p,
        confidence=confidence,
        num_seeds=num_seeds,
        num_clusters=num_clusters,
        seed_part=None if parts is None else parts[0],
        item_part=None if parts is None else parts[1],
        of_clusters=of_clusters,
    )


def pigeonhole_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Return the percentile interval of a difference, resampling seeds and items independently.

    The pigeonhole bootstrap of Owen 2007 (Annals of Applied Statistics 1:386-411, arXiv
    math/0504389): it counts the noise of single answers up to three times, which makes it wide, and
    reads few seeds as if they were all, which makes it narrow. Simulated coverage at a stated 95 %
    with 8 seeds: 99.8 % where single answers vary most and 93.8 % where seeds do; with 4
    seeds 90.8 % there. Hence `crossed_difference` comes first.

    Args:
        a: (seed, item) scores of one arm.
        b: (seed, item) scores of the other, same seeds and items in the same order.
        clusters: what each item was drawn with; clusters are then resampled whole.
        confidence: share of resamples between the two ends.
        num_resamples: how often is drawn.
        seed: of the draws.

    Returns:
        Both ends; ``None`` for one seed or one cluster, and where nothing varies.
    """
    checks.check_confidence(confidence)
    checks.check_num_resamples(num_resamples)
    sums, sizes = cluster_sums(a, b, clusters)
    if min(sums.shape) < 2 or np.ptp(sums / sizes) <= checks.rounding(sums):
        return None
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, num_resamples - start)
        of_seeds, of_items = (_draw_counts(rng, size, num) for num in sums.shape)
        totals = ((of_items @ sums.T) * of_seeds).sum(axis=1)
        means[start : start + size] = totals / (len(sums) * (of_items @ sizes))
    return checks.percentile_interval(means, confidence)


@dataclass(frozen=True)
class Cochran:
    """Student's distribution for a variance estimated in two parts (Cochran 1964).

    Attributes:
        parts: of the variance, not both 0.
        freedom: their degrees of freedom.
        floor: of clusters alone, whose quantiles and p-values are the least there are.
    """

    parts: tuple[float, float]
    freedom: tuple[float, float]
    floor: OfClusters | None = None

    def quantile(self, tail: float) -> float:
        """Return what the statistic exceeds with this probability."""
        weighted = float(np.average(-stdtrit(self.freedom, tail), weights=self.parts))
        if self.floor is None:
            return weighted
        return max(weighted, self._floor_ratio * -float(stdtrit(self.floor.df, tail)))

    def df(self, tail: float) -> float:
        """Return the degrees of freedom with which Student's quantile is the same."""
        aim, (least, most) = self.quantile(tail), sorted(self.freedom)
        if aim >= -stdtrit(least, tail):
            if self.floor is None:
                return least
            least = LEAST_DF
        if aim <= -stdtrit(most, tail):
            return most
        return float(brentq(lambda df: -stdtrit(df, tail) - aim, least, most))

    def two_sided_p(self, statistic: float) -> float:
        """Return the p-value of a statistic of at least 0."""
        p = self._weighted_p(statistic)
        if self.floor is None or not self._floor_ratio:
            return p
        return max(p, 2 * float(stdtr(self.floor.df, -statistic / self._floor_ratio)))

    @property
    def _floor_ratio(self) -> float:
        """The standard error of clusters alone in units of that of both parts."""
        return 0.0 if self.floor is None else (self.floor.squared_error / sum(self.parts)) ** 0.5

    def _weighted_p(self, statistic: float) -> float:
        """The p-value without a floor, which lies between both Student's."""
        tails = stdtr(self.freedom, -statistic)
        least, most = (max(float(tail), SMALLEST_P) for tail in (tails.min(), tails.max()))
        if self.quantile(least) <= statistic:
            return 2 * least
        if self.quantile(most) >= statistic:
            return 2 * most
        ends = math.log(least) - LOG_ROUNDING, math.log(most) + LOG_ROUNDING
        return 2 * math.exp(brentq(lambda log: self.quantile(math.exp(log)) - statistic, *ends))


@dataclass(frozen=True)
class MeanVariances:
    """The variance of a mean difference, estimated from the spread of seeds, of items and of cells.

    Attributes:
        by_seed: from the means of seeds; it counts seeds and the noise of single answers.
        by_item: from the means of items or clusters; it counts these and the same noise.
        by_cell: from what is left of every seed and item; it counts the noise alone.
        rounding: a variance up to this is none.
        item_df: degrees of freedom of what is seen between items or clusters.
        of_clusters: what clusters show by themselves; ``None`` where items are drawn alone.
    """

    by_seed: float
    by_item: float
    by_cell: float
    rounding: float
    item_df: float
    of_clusters: OfClusters | None

    @property
    def error_parts(self) -> tuple[float, float]:
        """What seeds and items add to the squared standard error; 0 below rounding."""
        by_seed = self.by_seed if self.by_seed > self.rounding else 0.0
        return by_seed, self.beyond_noise(self.by_item)

    def beyond_noise(self, variance: float) -> float:
        """Return what a variance has beyond the noise of single answers; 0 below rounding."""
        least = (1 + 10.0**-checks.DIGITS) * self.by_cell + self.rounding
        return variance - self.by_cell if variance > least else 0.0


def mean_variances(sums: Array, sizes: Array) -> MeanVariances:
    """Estimate the variance of the overall mean by seeds, by clusters and by cells.

    Each comes from the residuals of the means, weighted by the items in them.

    Args:
        sums: (seed, cluster) sums of differences, of two seeds and clusters at least.
        sizes: (cluster) items in each.
    """
    num_seeds, num_clusters = sums.shape
    of_seed = sums.sum(axis=1, keepdims=True) / sizes.sum()
    of_item = (sums.mean(axis=0) - sizes * of_seed.mean()) / sizes.sum()
    of_cell = (sums - sizes * of_seed) / sizes.sum() - of_item
    by_item, df = squared_error(of_item, sizes), degrees_of_freedom(sizes)
    clusters = OfClusters(num_clusters, by_item, df) if are_clusters(sizes) else None
    return MeanVariances(
        by_seed=float(of_seed.var(ddof=1)) / num_seeds,
        by_item=by_item,
        by_cell=squared_error(of_cell, sizes) / (num_seeds * (num_seeds - 1)),
        rounding=checks.rounding(sums) ** 2,
        item_df=df,
        of_clusters=clusters,
    )


def _draw_counts(rng: np.random.Generator, size: int, num: int) -> Array:
    """How often each of ``num`` was drawn in ``num`` draws: (size, num)."""
    drawn = rng.integers(0, num, (size, num)) + num * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num).astype(np.float64)


def tested(
    mean: float, error: float | None, student: Cochran | None, confidence: float
) -> tuple[float | None, float | None]:
    """Return the degrees of freedom of an interval, and the two-sided p-value of no difference.

    Both are ``None`` without a standard error above 0.
    """
    if student is None or not error:
        return None, None
    return student.df((1 - confidence) / 2), student.two_sided_p(abs(mean) / error)
