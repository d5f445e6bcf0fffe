import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binomtest, chi2, mannwhitneyu, norm

from properties import examples
from schemabank.stats import (
    hedges_g,
    paired_d_z,
    paired_outperformance,
    unpaired_outperformance,
)

prop = examples(40)
accuracy = st.integers(0, 50).map(lambda k: k / 50)
accuracies = st.lists(accuracy, min_size=2, max_size=8)
# Miles per gallon by transmission (R's `mtcars`), and hours of sleep (R's `sleep`).
AUTOMATIC = [21.4, 18.7, 18.1, 14.3, 24.4, 22.8, 19.2, 17.8, 16.4, 17.3]
AUTOMATIC += [15.2, 10.4, 10.4, 14.7, 21.5, 15.5, 15.2, 13.3, 19.2]
MANUAL = [21, 21, 22.8, 32.4, 30.4, 33.9, 27.3, 26, 30.4, 15.8, 19.7, 15, 21.4]
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def probability_below(t: float, df: int, shift: float) -> float:
    """The noncentral t distribution by its definition: a normal over a root of a chi-square."""
    pieces = pairwise(chi2.ppf([1e-13, 0.01, 0.2, 0.8, 0.99, 1 - 1e-13], df))

    def density(u: float) -> float:
        return float(norm.cdf(t * math.sqrt(u / df) - shift) * chi2.pdf(u, df))

    return sum(quad(density, low, high, epsabs=1e-10)[0] for low, high in pieces)


class TestHedgesG:
    def test_transmissions(self) -> None:
        """R's package effectsize prints d = -1.48, 95 % interval -2.27 to -0.67."""
        found = hedges_g(AUTOMATIC, MANUAL)
        assert found.raw == pytest.approx(-1.48, abs=5e-3)
        assert found.interval == pytest.approx((-2.27, -0.67), abs=5e-3)

    def test_the_published_effect(self) -> None:
        """The document's "d about 5" is Hedges' g of its best epoch, and anything from 2 to 9."""
        found = hedges_g([10.8, 13.2, 12.6, 10.6], [3.4, 5.6, 2.0, 4.0])
        assert found.raw == pytest.approx(5.762, abs=1e-3)
        assert found.corrected == pytest.approx(5.005, abs=1e-3)
        assert found.interval == pytest.approx((2.279, 9.198), abs=1e-3)

    @pytest.mark.parametrize(("num", "correction"), [(2, math.sqrt(1 / math.pi)), (3, 0.797885)])
    def test_the_exact_correction(self, num: int, correction: float) -> None:
        """Hedges 1981, equation 6e; by hand for 2 degrees of freedom, table 1 for 4."""
        found = hedges_g(range(num), range(1, num + 1))
        assert found.corrected == pytest.approx(found.raw * correction, rel=1e-5)

    @prop
    @given(accuracies, accuracies)
    def test_ends_are_where_the_estimate_would_be_extreme(
        self, a: list[float], b: list[float]
    ) -> None:
        found = hedges_g(a, b)
        assume(found.raw is not None)
        size, df = len(a) * len(b) / (len(a) + len(b)), len(a) + len(b) - 2
        t = found.raw * math.sqrt(size)
        for end, tail in zip(found.interval, (0.975, 0.025), strict=True):
            shift = end * math.sqrt(size)
            assert probability_below(t, df, shift) == pytest.approx(tail, abs=1e-4)

    @prop
    @given(accuracies, accuracies)
    def test_swapped_arms_mirror_it(self, a: list[float], b: list[float]) -> None:
        one, other = hedges_g(a, b), hedges_g(b, a)
        assume(one.raw is not None)
        assert (one.raw, one.corrected) == pytest.approx((-other.raw, -other.corrected))
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-6)

    @pytest.mark.parametrize(
        ("a", "b"), [([1], [2]), ([1], [2, 3]), ([0.3, 0.1 + 0.2], [0.5, 0.5]), ([0, 0], [0, 0])]
    )
    def test_too_few_seeds_or_no_spread(self, a: list[float], b: list[float]) -> None:
        found = hedges_g(a, b)
        assert (found.raw, found.corrected, found.interval) == (None, None, None)

    def test_one_arm_without_spread_leaves_the_others(self) -> None:
        assert hedges_g([1], [2, 3, 5]).raw is not None
        assert hedges_g([1, 1], [2, 3]).raw is not None


class TestPairedDz:
    def test_sleep(self) -> None:
        """R's package effectsize prints d = -1.28, 95 % interval -2.12 to -0.41."""
        found = paired_d_z(FIRST, SECOND)
        assert found.raw == pytest.approx(-1.28, abs=5e-3)
        assert found.interval == pytest.approx((-2.12, -0.41), abs=5e-3)

    @pytest.mark.parametrize(("num", "excess"), [(4, 0.38), (8, 0.13)])
    def test_how_much_the_raw_effect_overstates(self, num: int, excess: float) -> None:
        found = paired_d_z(np.arange(num) + 1, np.zeros(num))
        assert found.raw / found.corrected - 1 == pytest.approx(excess, abs=5e-3)

    @pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 1e-9])
    def test_hardly_any_spread(self, spread: float) -> None:
        """Beyond what the noncentral t distribution of scipy can do; it joins without a step."""
        found = paired_d_z(1 + spread * np.arange(4), np.zeros(4))
        ratios = [end / found.raw for end in found.interval]
        expected = np.sqrt(chi2.ppf([0.025, 0.975], 3) / 3)
        assert ratios == pytest.approx(expected, rel=3 * spread + 1e-6)

    @pytest.mark.parametrize("num", [1, 2])
    def test_too_few_seeds(self, num: int) -> None:
        assert paired_d_z(range(num), [5] * num).raw is None

    def test_equal_differences(self) -> None:
        found = paired_d_z([0.052, 0.102, 0.3], [0.05, 0.1, 0.298])
        assert (found.raw, found.corrected, found.interval) == (None, None, None)


class TestPairedOutperformance:
    @prop
    @given(st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=12))
    def test_without_ties_it_is_clopper_and_pearsons(
        self, pairs: list[tuple[float, float]]
    ) -> None:
        a, b = zip(*pairs, strict=True)
        found = paired_outperformance(a, b)
        ties = sum(x == y for x, y in pairs)
        wins = sum(x > y for x, y in pairs)
        assert found.probability == pytest.approx((wins + ties / 2) / len(pairs))
        low, high = found.interval
        assert 0 <= low < found.probability < high <= 1 or found.probability in (0, 1)
        if not ties:
            expected = binomtest(wins, len(pairs)).proportion_ci()
            assert found.interval == pytest.approx((expected.low, expected.high))

    def test_it_excludes_one_half_only_where_the_sign_test_can(self) -> None:
        assert paired_outperformance([1] * 5, [0] * 5).interval[0] < 0.5
        assert paired_outperformance([1] * 6, [0] * 6).interval[0] > 0.5
        assert paired_outperformance([0] * 6, [1] * 6).interval[1] < 0.5

    def test_ties_count_half(self) -> None:
        found = paired_outperformance([0.3, 0.5, 0.5], [0.1 + 0.2, 0.5, 0.5])
        assert found.probability == 0.5
        assert paired_outperformance([1], [0]).interval == pytest.approx((0.025, 1))


class TestUnpairedOutperformance:
    @prop
    @given(accuracies, accuracies)
    def test_it_is_mann_and_whitneys_u(self, a: list[float], b: list[float]) -> None:
        found = unpaired_outperformance(a, b)
        wins = [(x > y) + (x == y) / 2 for x, y in product(a, b)]
        assert found.probability == pytest.approx(np.mean(wins))
        if len(set(a + b)) > 1:
            u = mannwhitneyu(a, b).statistic
            assert found.probability == pytest.approx(u / (len(a) * len(b)))

    @prop
    @given(accuracies, accuracies)
    def test_ends_solve_newcombes_equation(self, a: list[float], b: list[float]) -> None:
        found = unpaired_outperformance(a, b)
        m, n, share = len(a), len(b), found.probability
        others = (m + n) / 2 - 1
        for end in found.interval:
            spread = 1 + others * (1 - end) / (2 - end) + others * end / (1 + end)
            squared = end * (1 - end) * spread / (m * n)
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * squared, abs=1e-8)
        assert found.interval[0] <= share <= found.interval[1]

    def test_arms_apart_still_have_an_interval(self) -> None:
        low, high = unpaired_outperformance([5, 6, 7, 8], [1, 2, 3, 4]).interval
        assert (low, high) == pytest.approx((0.5823, 1), abs=1e-4)
        mirrored = unpaired_outperformance([1, 2, 3, 4], [5, 6, 7, 8]).interval
        assert mirrored == pytest.approx((1 - high, 1 - low))

    def test_single_runs_and_equal_scores(self) -> None:
        low, high = unpaired_outperformance([1], [0]).interval
        assert 0 < low < 0.5 < high == 1
        found = unpaired_outperformance([0.3, 0.3], [0.1 + 0.2, 0.3])
        assert found.probability == 0.5
