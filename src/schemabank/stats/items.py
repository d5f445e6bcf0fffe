"""Figures of one evaluation: intervals of means over items, and items that two arms disagree on."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from scipy.stats import t as student

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.checks import Interval
from schemabank.stats.clusters import degrees_of_freedom, show_error, squared_error

RESAMPLES_AT_ONCE = 256  # of any number of clusters fit into memory


@dataclass(frozen=True)
class McNemar:
    """How two arms answer the same items.

    Attributes:
        only_a: items that only the first arm has right.
        only_b: items that only the second arm has right.
        both: items that both have right.
        neither: items that both have wrong.
        p: two-sided probability of flips as one-sided as these; 1 where nothing flips.
    """

    only_a: int
    only_b: int
    both: int
    neither: int
    p: float


def wilson_interval(num_correct: int, num_items: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927, JASA 22:209-212)."""
    if num_items < 1 or not 0 <= num_correct <= num_items:
        raise InputError(
            f"{num_correct} correct of {num_items} items is not a share: "
            "give at least 1 item and a count between 0 and the number of items"
        )
    checks.check_confidence(confidence)
    share = binomtest(num_correct, num_items)
    interval = share.proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval | None:
    """Return Student's interval of a mean over items that were drawn in clusters.

    The standard error sums the residuals within a cluster before squaring (Liang and Zeger 1986,
    Biometrika 73:13-22; for evaluations Miller, arXiv 2411.00640, section 2.2). It and its degrees
    of freedom are the jackknife's (`schemabank.stats.clusters`). Where every item is a cluster of
    its own, this is the usual interval of a mean.

    Args:
        values: one an item.
        clusters: what each item was drawn with.
        confidence: probability that the interval holds the mean of all items that might be drawn.

    Returns:
        Both ends; ``None`` for a single item or fewer than three clusters of items, which say too
        little about the spread.
    """
    checks.check_confidence(confidence)
    if len(values) != len(clusters) or not len(values):
        raise InputError(
            f"{len(values)} values and {len(clusters)} clusters: give one of each an item, and at "
            "least one item"
        )
    scores = checks.as_scores(values)
    numbers = checks.cluster_numbers(clusters)
    sums = np.bincount(numbers, weights=scores - scores.mean()).astype(np.float64)
    sizes = np.bincount(numbers).astype(np.float64)
    if not show_error(sizes):
        return None
    error = float(np.sqrt(squared_error(sums, sizes))) / len(scores)
    reach = float(student.ppf((1 + confidence) / 2, degrees_of_freedom(sizes))) * error
    return float(scores.mean()) - reach, float(scores.mean()) + reach


def resampled_ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Return the percentile interval of a ratio of sums, from resampling clusters.

    The bootstrap of Efron 1979 (Annals of Statistics 7:1-26): clusters are drawn with replacement,
    as many as there are, and the quotient of the drawn sums is taken each time. Simulated coverage
    at a stated 95 % with 30 clusters: 92.5 %.

    Args:
        numerators: one a cluster.
        denominators: one a cluster, positive.
        confidence: share of the resamples between the two ends.
        num_resamples: how often is drawn.
        seed: of the draws.

    Returns:
        Both ends; ``None`` for fewer than two clusters, which say nothing about the spread, and
        for numerators that are not finite, as the losses of a run that diverged.
    """
    checks.check_confidence(confidence)
    checks.check_num_resamples(num_resamples)
    if len(numerators) != len(denominators) or not all(0 < d < np.inf for d in denominators):
        raise InputError(
            f"{len(numerators)} numerators and {len(denominators)} denominators: give one of each "
            "a cluster, and denominators above 0"
        )
    num = len(numerators)
    if num < 2 or not np.isfinite(numerators).all():
        return None
    rng = np.random.default_rng(seed)
    sums = np.asarray([numerators, denominators], dtype=np.float64).T
    ratios = np.empty(num_resamples)
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, num_resamples - start)
        counts = rng.multinomial(num, [1 / num] * num, size=size).astype(np.float64)
        above, below = (counts @ sums).T
        ratios[start : start + size] = above / below
    return checks.percentile_interval(ratios, confidence)


def mcnemar(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> list[McNemar]:
    """Test for every seed whether items flip more often one way than the other.

    The exact form of McNemar 1947 (Psychometrika 12:153-157): under the null hypothesis the items
    that only one arm has right are its own or the other's by the toss of a coin, so that their
    number is binomial (Agresti 2013, Categorical Data Analysis, section 11.1). It speaks of two
    sets of weights, not of two methods: another seed may flip other items.

    Args:
        correct_a: (seed, item), 1 for right and 0 for wrong.
        correct_b: (seed, item), the other arm's.

    Returns:
        One a seed.
    """
    first, second = checks.as_pairs(correct_a, correct_b, dims=2)
    for scores in (first, second):
        if odd := set(np.unique(scores).tolist()) - {0.0, 1.0}:
            raise InputError(f"score {min(odd)} is neither right nor wrong: give only 1 and 0")
    return [_count_flips(a == 1, b == 1) for a, b in zip(first, second, strict=True)]


def _count_flips(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> McNemar:
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, int((a & b).sum()), int((~a & ~b).sum()), p)
