import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from properties import examples
from schemabank.stats import ratio_of_means

prop = examples(50)
score = st.integers(-50, 50).map(lambda k: k / 50)
BASELINE, SCHEMABANK = [3.4, 5.6, 2.0, 4.0], [10.8, 13.2, 12.6, 10.6]


@prop
@given(st.lists(st.tuples(score, score), min_size=3, max_size=8), st.floats(-20, 20))
def test_pairs_hold_just_the_ratios_that_a_t_test_does_not_reject(
    pairs: list[tuple[float, float]], ratio: float
) -> None:
    a, b = np.array(pairs).T
    found = ratio_of_means(a, b)
    assume(found.bounded is not None)
    rest = a - ratio * b
    assume(np.std(rest) > 1e-6)
    p = ttest_1samp(rest, 0).pvalue
    assume(abs(p - 0.05) > 1e-6)
    if found.interval is not None:
        assert (p > 0.05) == (found.interval[0] < ratio < found.interval[1])
    else:
        ruled_out = found.excluded is not None and found.excluded[0] < ratio < found.excluded[1]
        assert (p > 0.05) == (not ruled_out)


@prop
@given(st.lists(st.tuples(score, score), min_size=3, max_size=8), st.booleans())
def test_unbounded_just_where_the_denominator_might_be_0(
    pairs: list[tuple[float, float]], paired: bool
) -> None:
    a, b = np.array(pairs).T
    found = ratio_of_means(a, b, paired=paired)
    assume(found.bounded is not None and np.std(b) > 1e-6)
    assert (found.interval is None) == (not found.bounded)
    if paired:
        p = ttest_1samp(b, 0).pvalue
        assume(abs(p - 0.05) > 1e-6)
        assert found.bounded == (p < 0.05)


def test_the_published_factor() -> None:
    """The document's 3.1, of epoch 6: 1.9 to 8.3 times."""
    found = ratio_of_means(SCHEMABANK, BASELINE)
    assert found.ratio == pytest.approx(3.1467, abs=1e-4)
    assert found.interval == pytest.approx((1.923, 8.323), abs=1e-3)
    assert (found.bounded, found.excluded) == (True, None)


def test_unpaired_ends_are_where_welchs_statistic_is_critical() -> None:
    a, b = np.array(SCHEMABANK), np.array(BASELINE)
    found = ratio_of_means(a, b, paired=False)
    parts = a.var(ddof=1) / 4, found.ratio**2 * b.var(ddof=1) / 4
    df = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 3)
    for end in found.interval:
        error = np.sqrt(a.var(ddof=1) / 4 + end**2 * b.var(ddof=1) / 4)
        assert abs(a.mean() - end * b.mean()) / error == pytest.approx(student.ppf(0.975, df))


def test_the_three_shapes() -> None:
    """Franz 2007, figure 2: an interval, all but an interval, everything."""
    assert ratio_of_means([4, 5, 6], [1.9, 2, 2.2]).bounded
    outside = ratio_of_means([4, 5, 6], [-1, 0.5, 2])
    assert (outside.interval, outside.bounded) == (None, False)
    assert outside.excluded is not None
    assert outside.excluded[0] < 0 < outside.excluded[1] < outside.ratio
    everything = ratio_of_means([-1, 0, 1.5], [1, -1, 0.5])
    assert (everything.interval, everything.bounded, everything.excluded) == (None, False, None)


def test_a_denominator_of_0_has_no_ratio() -> None:
    for paired in (True, False):
        found = ratio_of_means([1, 2, 4], [0.1, 0.2, -0.3], paired=paired)
        assert (found.ratio, found.interval, found.bounded) == (None, None, False)


def test_one_seed_and_no_spread_tell_the_ratio_only() -> None:
    for a, b in (
        ([1], [2]),
        ([1, 1], [2, 2]),
        ([1, 2], [2, 4]),
        ([0.1, 0.2, 0.3], [0.3, 0.6, 0.9]),
    ):
        found = ratio_of_means(a, b)
        assert found.ratio == pytest.approx(a[0] / b[0])
        assert (found.interval, found.bounded, found.excluded) == (None, None, None)
    assert ratio_of_means([1], [2, 3], paired=False).bounded is None


def test_a_constant_denominator_leaves_students_interval() -> None:
    found = ratio_of_means([1, 2, 4], [2, 2, 2])
    expected = ttest_1samp([0.5, 1, 2], 0).confidence_interval()
    assert found.interval == pytest.approx((expected.low, expected.high))
