"""Intervals of means over items: arrays in, numbers out."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from schemabank.errors import InputError

RESAMPLES_AT_ONCE = 256  # of any number of clusters fit into memory
Interval = tuple[float, float]


def wilson_interval(num_correct: int, num_items: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927, JASA 22:209-212)."""
    if num_items < 1 or not 0 <= num_correct <= num_items:
        raise InputError(
            f"{num_correct} correct of {num_items} items is no share: "
            "give at least 1 item and a count between 0 and the number of items"
        )
    _check_confidence(confidence)
    share = binomtest(num_correct, num_items)
    interval = share.proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval | None:
    """Return Student's interval of a mean over items that were drawn in clusters.

    The standard error sums the residuals within a cluster before squaring (Liang and Zeger 1986,
    Biometrika 73:13-22; for evaluations Miller, arXiv 2411.00640, section 2.2), with the factor
    ``G / (G - 1)`` and ``G - 1`` degrees of freedom for ``G`` clusters. Where every item is a
    cluster of its own, this is the usual interval of a mean.

    Args:
        values: one an item.
        clusters: what each item was drawn with.
        confidence: probability that the interval holds the mean of all items that might be drawn.

    Returns:
        Both ends; ``None`` for fewer than two clusters, which say nothing about the spread.
    """
    _check_confidence(confidence)
    if len(values) != len(clusters) or not values:
        raise InputError(
            f"{len(values)} values and {len(clusters)} clusters: give one of each an item, and at "
            "least one item"
        )
    scores = np.asarray(values, dtype=np.float64)
    of_item = np.unique(np.asarray([repr(c) for c in clusters]), return_inverse=True)[1]
    sums = np.bincount(of_item, weights=scores - scores.mean())
    num = len(sums)
    if num == 1:
        return None
    error = float(np.sqrt(num / (num - 1) * np.square(sums).sum())) / len(scores)
    reach = float(student.ppf((1 + confidence) / 2, num - 1)) * error
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
    as many as there are, and the quotient of the drawn sums is taken each time.

    Args:
        numerators: one a cluster.
        denominators: one a cluster, positive.
        confidence: share of the resamples between the two ends.
        num_resamples: how often is drawn.
        seed: of the draws.

    Returns:
        Both ends; ``None`` for fewer than two clusters, which say nothing about the spread.
    """
    _check_confidence(confidence)
    if len(numerators) != len(denominators) or any(d <= 0 for d in denominators):
        raise InputError(
            f"{len(numerators)} numerators and {len(denominators)} denominators: give one of each "
            "a cluster, and denominators above 0"
        )
    num = len(numerators)
    if num < 2:
        return None
    rng = np.random.default_rng(seed)
    sums = np.asarray([numerators, denominators], dtype=np.float64).T
    ratios = np.empty(num_resamples)
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, num_resamples - start)
        counts = rng.multinomial(num, [1 / num] * num, size=size).astype(np.float64)
        above, below = (counts @ sums).T
        ratios[start : start + size] = above / below
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} is not between 0 and 1: give one such as 0.95")
