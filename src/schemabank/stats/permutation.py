"""Permutation tests of two arms: exact wherever all arrangements can be tried.

Where a method does nothing, a seed's two scores might as well be swapped. The p-value is the share
of all swaps that give a mean difference at least as far out, so few seeds set a floor under it.
Fisher 1935, The Design of Experiments, section 21; Pitman 1937 (JRSS Supplement 4:119-130).
"""

from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test

from schemabank.common.errors import InputError
from schemabank.stats import checks
from schemabank.stats.checks import Array

MOST_FLIPPED = 16  # pairs whose 65,536 sign flips are all tried
SCORES_AT_ONCE = 2**23  # fit into memory
MOST_LABELLED = 20_000  # label arrangements that are all tried: 8 runs in each of 2 arms


@dataclass(frozen=True)
class PermutationTest:
    """A permutation test of no difference.

    Attributes:
        p: two-sided: twice the smaller tail, at most 1.
        floor: the smallest p that this many seeds can reach, whatever they show.
        num_arrangements: that were tried.
        exact: whether these are all there are.
    """

    p: float
    floor: float
    num_arrangements: int
    exact: bool


def sign_flip_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, num_resamples: int = 10_000, seed: int = 0
) -> PermutationTest:
    """Test a paired difference by swapping the arms within pairs.

    All ``2^n`` sign flips of up to 16 pairs; of more, a seeded draw. Exact where differences are
    symmetric about 0 under the null hypothesis, whatever their distribution.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other, in the same order.
        num_resamples: flips that are drawn for more than 16 pairs.
        seed: of the draw.
    """
    checks.check_num_resamples(num_resamples)
    values = checks.differences(a, b)
    if len(values) == 1:  # which scipy refuses
        return PermutationTest(p=1.0, floor=1.0, num_arrangements=2, exact=True)
    exact = len(values) <= MOST_FLIPPED
    digits = checks.decimals(values)

    def mean(flipped: Array, axis: int) -> Array:
        return np.asarray(flipped.mean(axis=axis)).round(digits)

    found = permutation_test(
        (values,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else num_resamples,
        batch=max(1, SCORES_AT_ONCE // len(values)),
        rng=np.random.default_rng(seed),
    )
    num = 2 ** len(values) if exact else num_resamples
    floor = sign_flip_floor(len(values)) if exact else _drawn_floor(num)
    return PermutationTest(float(found.pvalue), floor, num, exact)


def label_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, num_resamples: int = 10_000, seed: int = 0
) -> PermutationTest:
    """Test an unpaired difference of means by shuffling the runs between the arms.

    All arrangements where there are at most 20,000 (8 runs in each arm have 12,870); else a seeded
    draw. Exact where the arms have the same distribution under the null hypothesis: unequal
    variances alone can make it reject.

    Args:
        a: (seed) of one arm.
        b: (seed) of the other; the numbers of seeds may differ.
        num_resamples: arrangements that are drawn where there are too many.
        seed: of the draw.
    """
    checks.check_num_resamples(num_resamples)
    first, second = checks.as_scores(a), checks.as_scores(b)
    if min(len(first), len(second)) == 1:
        return _single_run(first, second)
    num = comb(len(first) + len(second), len(first))
    exact = num <= MOST_LABELLED
    digits = checks.decimals(first, second)

    def difference(one: Array, other: Array, axis: int) -> Array:
        return np.asarray(one.mean(axis=axis) - other.mean(axis=axis)).round(digits)

    found = permutation_test(
        (first, second),
        difference,
        permutation_type="independent",
        vectorized=True,
        n_resamples=np.inf if exact else num_resamples,
        batch=max(1, SCORES_AT_ONCE // (len(first) + len(second))),
        rng=np.random.default_rng(seed),
    )
    floor = label_floor(len(first), len(second)) if exact else _drawn_floor(num_resamples)
    return PermutationTest(float(found.pvalue), floor, num if exact else num_resamples, exact)


def sign_flip_floor(num_pairs: int) -> float:
    """Return the smallest two-sided p of a sign-flip test: ``2 / 2^n``, 0.125 for 4 seeds.

    Six pairs are the fewest that can reach 0.05, and then only if all differ the same way.
    """
    if num_pairs < 1:
        raise InputError(f"{num_pairs} pairs: a test needs at least 1")
    return 2.0 ** (1 - num_pairs)


def label_floor(num_a: int, num_b: int) -> float:
    """Return the smallest two-sided p of a label permutation: 2 over the number of labellings."""
    if num_a < 1 or num_b < 1:
        raise InputError(f"{num_a} and {num_b} runs: a test needs at least 1 of each arm")
    return min(1.0, 2 / comb(num_a + num_b, num_a))


def _single_run(first: Array, second: Array) -> PermutationTest:
    """One run against several: any of them might have been the one."""
    scores = np.concatenate([first, second]).round(checks.decimals(first, second))
    own = scores[0] if len(first) == 1 else scores[-1]
    p = min(1.0, 2 * float(min((scores >= own).mean(), (scores <= own).mean())))
    return PermutationTest(p, label_floor(len(first), len(second)), len(scores), exact=True)


def _drawn_floor(num_resamples: int) -> float:
    """Phipson and Smyth 2010 (SAGMB 9:39): the observed arrangement counts as drawn."""
    return min(1.0, 2 / (num_resamples + 1))
