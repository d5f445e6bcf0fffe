"""Two arms over several tasks, and two single runs over items alone.

A mean over tasks is a mean of strata: each task counts alike, however many items it has, and its
items are drawn from it alone. So its interval speaks of other seeds and other items of these very
tasks, not of other tasks (Cochran 1977, Sampling Techniques, chapter 5).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.arms import student_interval
from schemabank.stats.checks import Array
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
from schemabank.stats.contrasts import Difference, satterthwaite, two_sided_p
from schemabank.stats.crossed import (
    Cochran,
    CrossedDifference,
    MeanVariances,
    mean_variances,
    tested,
)

FEWEST_DIFFERING = 6  # items: McNemar's exact test of fewer cannot reach p = 0.05


@dataclass(frozen=True)
class Stratum:
    """A task's scores.

    Attributes:
        a: (seed, item) scores of one arm.
        b: (seed, item) scores of the other, same seeds and items in the same order.
        clusters: what each item was drawn with; ``None`` where each is drawn by itself.
    """

    a: npt.ArrayLike
    b: npt.ArrayLike
    clusters: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class StratifiedDifference(CrossedDifference):
    """A mean of several tasks' differences that counts the variation of seeds and of items.

    Attributes:
        num_strata: tasks.
        item_df: degrees of freedom of what items add; ``None`` without a standard error.
    """

    num_strata: int
    item_df: float | None

    def _student(self) -> Cochran:
        assert self.seed_part is not None
        assert self.item_part is not None
        assert self.item_df is not None
        parts, freedom = (self.seed_part, self.item_part), (self.num_seeds - 1, self.item_df)
        return Cochran(parts, freedom, self.of_clusters)


@dataclass(frozen=True)
class OverItems(Difference):
    """A difference of two single runs that counts the variation of items alone.

    Attributes:
        num_clusters: of items; the number of items where each is drawn by itself.
        num_differing: of them, those on which the runs have other scores.
        num_strata: tasks.
        fewest_clusters: of a task; ``None`` where all items are drawn alone.
    """

    num_clusters: int
    num_differing: int
    num_strata: int
    fewest_clusters: int | None = None

    @property
    def is_enough(self) -> bool:
        """Whether a verdict may rest on it."""
        return self.num_differing >= FEWEST_DIFFERING and are_enough(self.fewest_clusters)

    @property
    def may_be_enough(self) -> bool:
        """Whether as many items may lead to a verdict, whatever their scores are."""
        may = self.num_clusters >= FEWEST_DIFFERING and are_enough(self.fewest_clusters)
        return may and self.standard_error is not None

    @property
    def why_no_verdict(self) -> str:
        """Why none may, or why none can: items do not tell how much they vary."""
        if self.fewest_clusters is not None and not are_enough(self.fewest_clusters):
            return why_not_enough(self.fewest_clusters)
        if self.standard_error is None:
            return "a task with a single item or cluster does not show what other items would add"
        if self.is_enough:
            return "items that all differ by the same amount cannot tell it from chance"
        return (
            f"the runs differ on {self.num_differing} items or clusters, too few: a verdict over "
            f"items takes {FEWEST_DIFFERING}"
        )


def stratified_difference(
    strata: Sequence[Stratum], *, confidence: float = 0.95
) -> StratifiedDifference:
    """Compare two arms over seeds, items and tasks, each task with the same weight.

    Seeds vary in their means over all tasks, as they are shared by these. What items add is that
    of `crossed_difference` for each task, and tasks draw their items independently. The quantile
    is Cochran's (1964), with the degrees of freedom of Satterthwaite 1946 for the tasks' items.

    Args:
        strata: one a task, all with the same seeds, at least two of these.
        confidence: probability that the interval holds the mean difference over all seeds and
            items of these tasks.
    """
    checks.check_confidence(confidence)
    sums = _checked(strata)
    num_seeds, num = len(sums[0][0]), len(sums)
    if num_seeds < 2 or min(own.shape[1] for own, _ in sums) < 2:
        raise InputError(
            f"{num_seeds} seeds, and a task of {min(own.shape[1] for own, _ in sums)} items or "
            "clusters, do not show what varies: give at least 2 of each"
        )
    by_seed = np.mean([own.sum(axis=1) / sizes.sum() for own, sizes in sums], axis=0)
    found = [mean_variances(own, sizes) for own, sizes in sums]
    seed_part = float(by_seed.var(ddof=1)) / num_seeds
    rounding = max(one.rounding for one in found)
    seed_part = seed_part if seed_part > rounding else 0.0
    item_parts = [one.error_parts[1] / num**2 for one in found]
    item_df = satterthwaite(item_parts, [one.item_df for one in found])
    mean, parts = float(by_seed.mean()), (seed_part, sum(item_parts))
    known, of_clusters = all(show_error(sizes) for _, sizes in sums), _of_clusters(found)
    error = sum(parts) ** 0.5 if known else None
    student = Cochran(parts, (num_seeds - 1, item_df), of_clusters) if error else None
    df, p = tested(mean, error, student, confidence)
    return StratifiedDifference(
        mean=mean,
        standard_error=error,
        df=df,
        interval=student_interval(mean, error, df, confidence),
        p=p,
        confidence=confidence,
        num_seeds=num_seeds,
        num_clusters=sum(own.shape[1] for own, _ in sums),
        seed_part=parts[0] if known else None,
        item_part=parts[1] if known else None,
        of_clusters=of_clusters,
        num_strata=num,
        item_df=item_df if known else None,
    )


def difference_over_items(strata: Sequence[Stratum], *, confidence: float = 0.95) -> OverItems:
    """Compare two single runs over the items of one or more tasks: Student's paired test.

    It speaks of other items, and of these very weights: nothing tells what other seeds would do.
    Sums over a cluster's items take the items' place, with the jackknife's error and degrees of
    freedom (`schemabank.stats.clusters`).

    Args:
        strata: one a task, each with one seed.
        confidence: probability that the interval holds the mean difference over all items.
    """
    checks.check_confidence(confidence)
    sums = _checked(strata)
    if len(sums[0][0]) != 1:
        raise InputError(
            f"{len(sums[0][0])} seeds: a difference over items alone is of one run of each arm; "
            "take crossed_difference"
        )
    means, parts, freedom = [], [], []
    for own, sizes in sums:
        mean = float(own.sum() / sizes.sum())
        pulls = (own[0] - sizes * mean) / sizes.sum()
        spread = squared_error(pulls, sizes) if show_error(sizes) else np.inf
        means.append(mean)
        parts.append(spread if spread > checks.rounding(own) ** 2 else 0.0)
        freedom.append(degrees_of_freedom(sizes))
    mean, known = float(np.mean(means)), bool(np.isfinite(parts).all())
    error = sum(parts) ** 0.5 / len(sums) if known else None
    df = satterthwaite(parts, freedom) if error else None
    return OverItems(
        mean=mean,
        standard_error=error,
        df=df,
        interval=student_interval(mean, error, df, confidence),
        p=two_sided_p(mean, error, df),
        confidence=confidence,
        num_seeds=1,
        num_clusters=sum(own.shape[1] for own, _ in sums),
        num_differing=sum(int(np.count_nonzero(own)) for own, _ in sums),
        num_strata=len(sums),
        fewest_clusters=min((len(n) for _, n in sums if are_clusters(n)), default=None),
    )


def _of_clusters(found: Sequence[MeanVariances]) -> OfClusters | None:
    """What all tasks' items and clusters show by themselves; ``None`` without any clusters."""
    own = [one.of_clusters for one in found if one.of_clusters is not None]
    if not own:
        return None
    parts = [one.by_item / len(found) ** 2 for one in found]
    df = satterthwaite(parts, [one.item_df for one in found])
    return OfClusters(min(one.fewest for one in own), sum(parts), df)


def _checked(strata: Sequence[Stratum]) -> list[tuple[Array, Array]]:
    """Sums and sizes of every task's clusters; refused where tasks have other seeds."""
    sums = [cluster_sums(one.a, one.b, one.clusters) for one in strata]
    seeds = {len(own) for own, _ in sums}
    if len(seeds) != 1:
        raise InputError(
            f"tasks with {sorted(seeds)} seeds have no common mean: give all tasks the same seeds"
        )
    return sums
