"""How many seeds and items a comparison takes, planned from a pilot with few of both.

The pilot's difference of two arms varies with the seed, with the item, and from answer to answer.
Once these three variances are known, the standard error follows for any number of seeds and items.
In radiology, readers and cases are planned in this way (Hillis, Obuchowski and Berbaum 2011,
Academic Radiology 18:129-142).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy.typing as npt
from scipy.stats import chi2

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.checks import Interval
from schemabank.stats.clusters import (
    FEWEST_FOR_ERROR,
    OfClusters,
    are_clusters,
    cluster_sums,
    show_error,
)
from schemabank.stats.contrasts import FEWEST_SEEDS
from schemabank.stats.crossed import Cochran, mean_variances
from schemabank.stats.power import check_alpha, detectable_from_error

MOST_SEEDS = 10_000  # that a plan may ask for


@dataclass(frozen=True)
class VarianceComponents:
    """What the difference of two arms varies with, as variances in squared units of the score.

    Attributes:
        seed: between seeds, each with all items.
        item: between items, each with all seeds. Of items in clusters it is the variance that items
            would have that are drawn alone and add as much to the error.
        cell: of single answers, beyond what their seed and their item explain.
        num_seeds: of the pilot; 0 where the variances were stated instead.
        num_items: of the pilot; likewise.
        num_clusters: of the pilot; the number of items where each is drawn by itself.
        df_ratio: degrees of freedom of a cluster, all but one of the pilot's being counted; 1 where
            clusters are of the same size, and below where they are not.
    """

    seed: float
    item: float
    cell: float
    num_seeds: int
    num_items: int
    num_clusters: int
    df_ratio: float = 1.0

    @property
    def clusters_an_item(self) -> float:
        """How many clusters an item makes: 1 where each is drawn by itself."""
        return self.num_clusters / self.num_items if self.num_items else 1.0

    @property
    def has_clusters(self) -> bool:
        """Whether the pilot's items were drawn in clusters."""
        return self.num_clusters < self.num_items

    def error_parts(self, num_seeds: int, num_items: int) -> tuple[float, float, float]:
        """Return what seeds, items and single answers add to the squared standard error."""
        cells = num_seeds * num_items
        return self.seed / num_seeds, self.item / num_items, self.cell / cells

    def seed_error_factors(self, confidence: float = 0.95) -> Interval:
        """Return how far the true error of seeds and answers may be from the pilot's.

        The interval is that of a standard deviation of normal values, by the chi-squared
        distribution.

        Args:
            confidence: probability that the interval holds the true error, in units of the pilot's.
        """
        checks.check_confidence(confidence)
        df, tail = self.num_seeds - 1, (1 - confidence) / 2
        low, high = ((df / chi2.isf(t, df)) ** 0.5 for t in (tail, 1 - tail))
        return float(low), float(high)


@dataclass(frozen=True)
class PlannedDifference:
    """What a comparison with so many seeds and items will find.

    Attributes:
        num_seeds: that both arms share.
        num_items: that every run answers.
        num_clusters: of the items, as many an item as in the pilot.
        standard_error: of the difference, in units of the score.
        df: its degrees of freedom; ``None`` where nothing varies.
        detectable: smallest true difference that is found with the wanted power, in units of the
            score; ``None`` where nothing varies.
    """

    num_seeds: int
    num_items: int
    num_clusters: int
    standard_error: float
    df: float | None
    detectable: float | None


def variance_components(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Hashable] | None = None
) -> VarianceComponents:
    """Estimate what the difference of two arms varies with.

    The estimates are those of the analysis of variance, from the mean squares of a two-way random
    layout with one value a cell (Searle, Casella and McCulloch 1992, Variance Components, chapter
    4). They are unbiased, but may be negative, and then count as 0. For clusters of unlike sizes
    they are no smaller (`schemabank.stats.clusters`).

    Args:
        a: (seed, item) scores of one arm.
        b: (seed, item) scores of the other, same seeds and items in the same order.
        clusters: what each item was drawn with; ``None`` where each is drawn by itself.

    Raises:
        InputError: there are fewer than two seeds or clusters, or these are no pairs of scores.
    """
    sums, sizes = cluster_sums(a, b, clusters)
    num_seeds, num_clusters = sums.shape
    if num_seeds < 2 or not show_error(sizes):
        what, fewest = ("clusters", FEWEST_FOR_ERROR) if are_clusters(sizes) else ("items", 2)
        raise InputError(
            f"scores of {num_seeds} seeds and {num_clusters} {what} do not show what varies: give "
            f"at least 2 seeds and {fewest} {what}"
        )
    num_items = int(sizes.sum())
    found = mean_variances(sums, sizes)
    cell = found.by_cell if found.by_cell > found.rounding else 0.0
    return VarianceComponents(
        seed=num_seeds * found.beyond_noise(found.by_seed),
        item=num_items * found.beyond_noise(found.by_item),
        cell=num_seeds * num_items * cell,
        num_seeds=num_seeds,
        num_items=num_items,
        num_clusters=num_clusters,
        df_ratio=found.item_df / (num_clusters - 1) if are_clusters(sizes) else 1.0,
    )


def planned(
    components: VarianceComponents,
    num_seeds: int,
    num_items: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> PlannedDifference:
    """Predict what `crossed_difference` will find with so many seeds and items.

    The squared standard error is ``seed/n + item/m + cell/(n m)`` for n seeds and m items, and the
    degrees of freedom are Cochran's for these parts. With the pilot's own numbers that is what
    `crossed_difference` says of the pilot, unless a component was estimated below 0. Then the
    prediction is no smaller.

    Args:
        components: from `variance_components`.
        num_seeds: to plan for, at least 2.
        num_items: to plan for, in clusters of the pilot's sizes, at least 3 clusters.
        alpha: p-value at which the test rejects.
        power: probability of finding the difference.

    Raises:
        InputError: numbers, alpha or power are not allowed.
    """
    check_alpha(alpha)
    num_clusters = round(num_items * components.clusters_an_item)
    fewest = FEWEST_FOR_ERROR if components.has_clusters else 2
    if num_seeds < 2 or num_clusters < fewest:
        raise InputError(
            f"{num_seeds} seeds and {num_items} items in {num_clusters} clusters allow no test: "
            f"plan for at least 2 seeds and {fewest} clusters of items"
        )
    seed, item, cell = components.error_parts(num_seeds, num_items)
    parts = seed + cell, item
    error = sum(parts) ** 0.5
    df = detectable = None
    if error:
        item_df = components.df_ratio * (num_clusters - 1)
        floor = OfClusters(num_clusters, item + cell, item_df) if components.has_clusters else None
        df = float(Cochran(parts, (num_seeds - 1, item_df), floor).df(alpha / 2))
        detectable = detectable_from_error(error, df, alpha=alpha, power=power)
    return PlannedDifference(num_seeds, num_items, num_clusters, error, df, detectable)


def seeds_needed(
    components: VarianceComponents,
    num_items: int,
    difference: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """Return the fewest seeds that find a true difference with so many items.

    Args:
        components: from `variance_components`, or stated.
        num_items: that every run answers.
        difference: to find, in units of the score, above 0.
        alpha: p-value at which the test rejects.
        power: probability of finding it.

    Returns:
        From `FEWEST_SEEDS` up; ``None`` where not even `MOST_SEEDS` do, as where items alone vary
        too much.
    """
    if not 0 < difference < float("inf"):
        raise InputError(f"difference {difference} is not above 0: give the one to find")

    def is_found(num_seeds: int) -> bool:
        found = planned(components, num_seeds, num_items, alpha=alpha, power=power).detectable
        return found is None or found <= difference

    low, high = FEWEST_SEEDS, MOST_SEEDS + 1
    while low < high:  # more seeds never find less
        middle = (low + high) // 2
        low, high = (low, middle) if is_found(middle) else (middle + 1, high)
    return low if low <= MOST_SEEDS else None
