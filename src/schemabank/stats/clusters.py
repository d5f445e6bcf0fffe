"""How far a mean over items in clusters may be off, from leaving out one cluster at a time.

A cluster with many items pulls the mean towards itself, so what it is away from the mean is less
than what it is away from other clusters. The mean without that cluster shows the whole distance.
This is the jackknife CR3 of Bell and McCaffrey 2002 (Survey Methodology 28:169-181), with their
degrees of freedom, Satterthwaite's for independent items that vary alike. Clusters of the same size
give the usual error of a mean with G − 1 degrees of freedom for G clusters.

How often tests of equal arms err is simulated by ``benchmarks/clusters.py`` and recorded in
``results/clusters.json``. No test sees a kind of cluster that is rare and happens to be missing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.checks import Array

FEWEST_CLUSTERS = 5  # that a verdict takes: see benchmarks/clusters.py
FEWEST_FOR_ERROR = 3  # two clusters show one distance, which may be small by luck


@dataclass(frozen=True)
class OfClusters:
    """What clusters of items show by themselves; no interval and no p-value is below it.

    Attributes:
        fewest: clusters of the task that has fewest.
        squared_error: of the mean difference as clusters alone show it, without a part for seeds.
        df: its degrees of freedom.
    """

    fewest: int
    squared_error: float
    df: float


def are_enough(num_clusters: int | None) -> bool:
    """Whether a verdict may rest on so many; ``None`` are items that are drawn alone."""
    return num_clusters is None or num_clusters >= FEWEST_CLUSTERS


def why_not_enough(num_clusters: int) -> str:
    """Return why no verdict may rest on so many."""
    if num_clusters >= FEWEST_FOR_ERROR:
        return f"{num_clusters} clusters of items are too few, a verdict takes {FEWEST_CLUSTERS}"
    do = "cluster of items does" if num_clusters == 1 else "clusters of items do"
    return (
        f"{num_clusters} {do} not show what others would add: an interval takes "
        f"{FEWEST_FOR_ERROR} clusters, a verdict {FEWEST_CLUSTERS}"
    )


def cluster_sums(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Hashable] | None
) -> tuple[Array, Array]:
    """Return sums of differences (seed, cluster) and the clusters' sizes (cluster)."""
    values = checks.differences(a, b, dims=2)
    if clusters is None:
        return values, np.ones(values.shape[1])
    if len(clusters) != values.shape[1]:
        raise InputError(
            f"{len(clusters)} clusters for {values.shape[1]} items: give one an item, in the "
            "order of the scores' second axis"
        )
    numbers = checks.cluster_numbers(clusters)
    sums = np.stack([np.bincount(numbers, weights=row) for row in values])
    return sums.astype(np.float64), np.bincount(numbers).astype(np.float64)


def are_clusters(sizes: Array) -> bool:
    """Whether items were drawn in clusters: whether any has a second item."""
    return bool(sizes.max() > 1)


def show_error(sizes: Array) -> bool:
    """Whether so many items or clusters tell how far their mean may be off."""
    return len(sizes) >= (FEWEST_FOR_ERROR if are_clusters(sizes) else 2)


def squared_error(pulls: Array, sizes: Array) -> float:
    """Return the squared standard error of a mean over items in clusters.

    Leaving out a cluster with the share w of all items moves the mean by its pull over 1 − w.

    Args:
        pulls: (…, cluster) what a cluster's items are away from the mean, summed over its items and
            divided by the number of all items; further axes are summed over.
        sizes: (cluster) items in each of two clusters at least.
    """
    num = len(sizes)
    if _are_alike(sizes):
        return num / (num - 1) * float(np.square(pulls).sum())
    moves = pulls / (1 - sizes / sizes.sum())
    return (num - 1) / num * float(np.square(moves).sum())


def degrees_of_freedom(sizes: Array) -> float:
    """Return the degrees of freedom of `squared_error` (Bell and McCaffrey 2002).

    Moves of the mean are correlated. Of independent items that vary alike, a cluster with the share
    w moves it with a variance in proportion to r = w / (1 − w), and two clusters with a covariance
    in proportion to the negative product of theirs. Satterthwaite's ratio of the trace's square to
    the sum of all squares follows.

    Args:
        sizes: (cluster) items in each of two clusters at least.
    """
    if _are_alike(sizes):
        return len(sizes) - 1
    shares = sizes / sizes.sum()
    r = shares / (1 - shares)
    squares = np.square(r).sum()
    return float(r.sum() ** 2 / (squares + squares**2 - (r**4).sum()))


def _are_alike(sizes: Array) -> bool:
    return bool((sizes == sizes[0]).all())
