import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from properties import examples
from schemabank.stats import paired_difference, welch_difference

prop = examples(50)
accuracy = st.integers(0, 500).map(lambda k: k / 500)
accuracies = st.lists(accuracy, min_size=2, max_size=12)
levels = st.sampled_from([0.5, 0.9, 0.95, 0.99])
# Hours of sleep gained with two drugs (Student 1908, Biometrika 6:20; R's `sleep`).
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


class TestPairedDifference:
    @prop
    @given(st.lists(st.tuples(accuracy, accuracy), min_size=2, max_size=12), levels)
    def test_agrees_with_scipy(self, pairs: list[tuple[float, float]], confidence: float) -> None:
        a, b = zip(*pairs, strict=True)
        found = paired_difference(a, b, confidence=confidence)
        assume(found.sd)
        expected = ttest_rel(a, b)
        ends = expected.confidence_interval(confidence)
        assert found.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
        assert found.p == pytest.approx(expected.pvalue)
        assert (found.df, found.num_seeds) == (len(a) - 1, len(a))
        assert found.interval == pytest.approx((ends.low, ends.high))
        assert found.standard_error == pytest.approx(found.sd / len(a) ** 0.5)

    def test_students_own_example(self) -> None:
        """R prints t = -4.0621, df = 9, p = 0.002833, interval -2.4598858 to -0.7001142."""
        found = paired_difference(FIRST, SECOND)
        assert found.mean == pytest.approx(-1.58)
        assert found.standard_error is not None
        assert found.mean / found.standard_error == pytest.approx(-4.0621, abs=1e-4)
        assert found.p == pytest.approx(0.002833, abs=1e-6)
        assert found.interval == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)

    def test_one_pair_tells_the_mean_only(self) -> None:
        found = paired_difference([0.5], [0.25])
        assert (found.mean, found.num_seeds) == (0.25, 1)
        assert (found.sd, found.standard_error, found.df) == (None, None, None)
        assert (found.interval, found.p) == (None, None)

    @pytest.mark.parametrize(("a", "b"), [([0.052, 0.102], [0.05, 0.1]), ([0.5] * 4, [0.5] * 4)])
    def test_equal_differences_have_no_interval(self, a: list[float], b: list[float]) -> None:
        """In binary those of the first case differ, and t would be 10^14."""
        found = paired_difference(a, b)
        assert (found.sd, found.standard_error) == (0, 0)
        assert (found.interval, found.p) == (None, None)


class TestWelchDifference:
    @prop
    @given(accuracies, accuracies, levels)
    def test_agrees_with_scipy(self, a: list[float], b: list[float], confidence: float) -> None:
        assume(len(set(a)) > 1 and len(set(b)) > 1)
        found = welch_difference(a, b, confidence=confidence)
        expected = ttest_ind(a, b, equal_var=False)
        ends = expected.confidence_interval(confidence)
        assert found.p == pytest.approx(expected.pvalue)
        assert found.df == pytest.approx(expected.df)
        assert found.interval == pytest.approx((ends.low, ends.high))

    def test_students_data_unpaired(self) -> None:
        """R prints t = -1.8608, df = 17.776, p = 0.07939, interval -3.3654832 to 0.2054832."""
        found = welch_difference(FIRST, SECOND)
        assert found.df == pytest.approx(17.776, abs=1e-3)
        assert found.p == pytest.approx(0.07939, abs=1e-5)
        assert found.interval == pytest.approx((-3.3654832, 0.2054832), abs=1e-7)

    def test_one_arm_without_spread_leaves_the_others(self) -> None:
        found = welch_difference([1, 2, 3, 4], [1, 1])
        assert found.df == pytest.approx(3)
        assert found.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)

    def test_no_spread_or_one_seed_of_either(self) -> None:
        found = welch_difference([0.1 + 0.2, 0.3], [0.2, 0.2])
        assert (found.standard_error, found.interval, found.p) == (0, None, None)
        for a, b in (([0.5], [1, 2]), ([1, 2], [0.5])):
            found = welch_difference(a, b)
            assert (found.standard_error, found.df) == (None, None)
            assert (found.interval, found.p) == (None, None)
