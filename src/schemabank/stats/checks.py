"""What every function here asks of its input, and when two floating-point scores are the same.

Accuracies are multiples of one over the number of items, so differences are often equal or zero on
paper but not in binary: 0.052 − 0.05 and 0.102 − 0.1. Differences are therefore rounded to 12
digits of the largest score, and a spread below that counts as none.
"""

import reprlib
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError

DIGITS = 12
MOST_DECIMALS = 300  # 10 to a higher power overflows
SHAPES = {1: "one score a seed or item", 2: "one row a seed with one score an item"}

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


def as_scores(values: npt.ArrayLike, *, dims: int = 1) -> Array:
    """Return finite scores as an array with ``dims`` axes; refuse anything else."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{reprlib.repr(values)} are not scores: give numbers, {SHAPES[dims]}"
        ) from error
    if found.ndim != dims or not found.size:
        raise InputError(f"scores of shape {found.shape}: give {SHAPES[dims]}, and at least one")
    if not np.isfinite(found).all():
        where = tuple(int(index) for index in np.argwhere(~np.isfinite(found))[0])
        raise InputError(
            f"score {found[where]} at position {where} is not finite: leave out what has no score"
        )
    return found


def as_pairs(a: npt.ArrayLike, b: npt.ArrayLike, *, dims: int = 1) -> tuple[Array, Array]:
    """Return the scores of two arms that were trained with the same seeds."""
    first, second = as_scores(a, dims=dims), as_scores(b, dims=dims)
    if first.shape != second.shape:
        raise InputError(
            f"scores of shapes {first.shape} and {second.shape} do not make pairs: give both arms' "
            f"scores in the same order, {SHAPES[dims]}, and only what both arms have"
        )
    return first, second


def differences(a: npt.ArrayLike, b: npt.ArrayLike, *, dims: int = 1) -> Array:
    """Return ``a − b`` of pairs, rounded so that differences equal on paper are equal."""
    first, second = as_pairs(a, b, dims=dims)
    return np.round(first - second, decimals(first, second))


def decimals(*arrays: Array) -> int:
    """Return how many decimals the 12 leading digits of the largest score have."""
    largest = max(float(np.abs(array).max()) for array in arrays)
    if largest == 0:
        return DIGITS
    return min(DIGITS - 1 - int(np.floor(np.log10(largest))), MOST_DECIMALS)


def rounding(*arrays: Array) -> float:
    """Return what floating-point scores of this size may differ by though they are the same."""
    return float(10.0**-DIGITS * max(np.abs(array).max() for array in arrays))


def sample_sd(values: Array) -> float | None:
    """Return the standard deviation with ``n - 1``; ``None`` for one value, 0 below rounding."""
    if len(values) < 2:
        return None
    sd = float(np.std(values, ddof=1))
    return sd if sd > rounding(values) else 0.0


def cluster_numbers(clusters: Sequence[Hashable]) -> npt.NDArray[np.intp]:
    """Return the number of each item's cluster, from 0."""
    return np.unique(np.asarray([repr(c) for c in clusters]), return_inverse=True)[1]


def percentile_interval(figures: Array, confidence: float) -> Interval:
    """Return the interval that holds the share ``confidence`` in the middle of the figures."""
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is no probability."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} is not between 0 and 1: give one such as 0.95")


def check_num_resamples(num_resamples: int) -> None:
    """Refuse to resample less than once."""
    if num_resamples < 1:
        raise InputError(f"{num_resamples} resamples are too few: give at least 1, better 10,000")
