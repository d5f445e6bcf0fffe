"""Bootstrap intervals of a mean over a handful of seeds.

A resample's mean lies between the smallest and the largest value, so no interval read off the
resampled means can cover more often than those two enclose the true mean: ``1 − 2^(1−n)`` for
symmetric values, 87.5 % of the time with 4 seeds. The studentised bootstrap has no such ceiling:
it resamples how many standard errors the mean is off.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.checks import Array, Interval

BootstrapMethod = Literal["studentised", "percentile", "bca"]
BOOTSTRAP_METHODS: tuple[BootstrapMethod, ...] = ("studentised", "percentile", "bca")
FEWEST = 4  # values; of fewer, too few resamples have a spread of their own


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    method: BootstrapMethod = "studentised",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Return a bootstrap interval of the mean of a few values, such as paired differences.

    ``studentised`` is the bootstrap-t of Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, section 12.5; resamples without spread are left out. ``percentile`` (section 13.3)
    and ``bca`` (section 14.3; both by `scipy.stats.bootstrap`) are there to compare with others'
    figures. Simulated coverage at a stated 95 %, and of Student's interval beside them:

    | values | studentised | percentile | BCa | Student's |
    |---|---|---|---|---|
    | 4, normal | 95.2 % | 79.9 % | 80.1 % | 94.9 % |
    | 6, normal | 94.4 % | 85.8 % | 86.0 % | 95.0 % |
    | 8, normal | 95.5 % | 88.4 % | 88.8 % | 95.4 % |
    | 8, exponential | 93.8 % | 84.3 % | 85.7 % | 89.8 % |

    So Student's interval comes first, and the studentised bootstrap tells where skewness matters.

    Args:
        values: (seed), at least 4.
        method: how resamples become an interval.
        confidence: share of resamples between the two ends.
        num_resamples: how often is drawn.
        seed: of the draws.

    Returns:
        Both ends; ``None`` for fewer than 4 values and for values without spread.
    """
    checks.check_confidence(confidence)
    checks.check_num_resamples(num_resamples)
    if method not in BOOTSTRAP_METHODS:
        raise InputError(
            f"method {method!r} is unknown: give one of {', '.join(BOOTSTRAP_METHODS)}"
        )
    scores, rng = checks.as_scores(values), np.random.default_rng(seed)
    if len(scores) < FEWEST or not checks.sample_sd(scores):
        return None
    if method == "studentised":
        return _studentised(scores, confidence, num_resamples, rng)
    found = stats.bootstrap(
        (scores,),
        np.mean,
        method=method,
        confidence_level=confidence,
        n_resamples=num_resamples,
        rng=rng,
    ).confidence_interval
    return float(found.low), float(found.high)


def _studentised(
    scores: Array, confidence: float, num_resamples: int, rng: np.random.Generator
) -> Interval | None:
    num, mean = len(scores), float(scores.mean())
    drawn = scores[rng.integers(0, num, (num_resamples, num))]
    errors = drawn.std(axis=1, ddof=1) / num**0.5
    spread = errors > checks.rounding(scores)
    if not spread.any():
        return None
    distances = (drawn.mean(axis=1)[spread] - mean) / errors[spread]
    low, high = checks.percentile_interval(distances, confidence)
    error = float(scores.std(ddof=1)) / num**0.5
    return mean - high * error, mean - low * error
