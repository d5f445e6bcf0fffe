import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import f, ttest_1samp, variation

from properties import examples
from schemabank.stats import sd_ratio, summarise_arm

prop = examples(50)
accuracies = st.lists(st.integers(0, 500).map(lambda k: k / 500), min_size=2, max_size=12)
# Epoch 6 of the published tables, in percent.
BASELINE, SCHEMABANK = [3.4, 5.6, 2.0, 4.0], [10.8, 13.2, 12.6, 10.6]


class TestSummariseArm:
    @prop
    @given(accuracies, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
    def test_agrees_with_scipy(self, scores: list[float], confidence: float) -> None:
        found = summarise_arm(scores, confidence=confidence)
        assert found.num_seeds == len(scores)
        assert found.mean == pytest.approx(np.mean(scores))
        if len(set(scores)) == 1:
            assert (found.sd, found.interval) == (0, None)
            return
        assert found.sd == pytest.approx(np.std(scores, ddof=1))
        assert found.cv == pytest.approx(variation(scores, ddof=1))
        expected = ttest_1samp(scores, 0).confidence_interval(confidence)
        assert found.interval == pytest.approx((expected.low, expected.high))

    def test_the_published_rows(self) -> None:
        """The document prints a spread of 1.5 and a coefficient of 40 %; both hold here."""
        found = summarise_arm(BASELINE)
        assert (found.mean, found.sd, found.cv) == pytest.approx((3.75, 1.49108, 0.39762), abs=1e-5)
        assert found.interval == pytest.approx((1.37735, 6.12265), abs=1e-5)

    def test_one_seed_has_no_spread(self) -> None:
        found = summarise_arm([0.25])
        assert (found.mean, found.sd, found.cv, found.interval) == (0.25, None, None, None)

    def test_equal_scores_have_no_interval(self) -> None:
        found = summarise_arm([0.1 + 0.2, 0.3, 0.3])
        assert (found.sd, found.cv, found.interval) == (0, 0, None)

    def test_a_mean_of_0_has_no_coefficient_of_variation(self) -> None:
        assert summarise_arm([-1, 1]).cv is None
        assert summarise_arm([0, 0]).cv is None
        assert summarise_arm([-1, -2]).cv == pytest.approx(0.5**0.5 / 1.5)


class TestSdRatio:
    @prop
    @given(accuracies, accuracies)
    def test_inverts_the_f_test(self, a: list[float], b: list[float]) -> None:
        assume(len(set(a)) > 1 and len(set(b)) > 1)
        found = sd_ratio(a, b)
        assert found.ratio == pytest.approx(np.std(a, ddof=1) / np.std(b, ddof=1))
        assert found.interval is not None
        for end, tail in zip(found.interval, (0.975, 0.025), strict=True):
            assert f.cdf((found.ratio / end) ** 2, len(a) - 1, len(b) - 1) == pytest.approx(tail)
        assert found.p is not None
        low, high = found.interval
        assert (found.p > 0.05) == (low < 1 < high)

    def test_the_published_claim_of_lower_variance(self) -> None:
        found = sd_ratio(SCHEMABANK, BASELINE)
        assert found.ratio == pytest.approx(0.869, abs=1e-3)
        assert found.p == pytest.approx(0.823, abs=1e-3)
        assert found.interval == pytest.approx((0.221, 3.416), abs=1e-3)

    @pytest.mark.parametrize("bad", [[0.5], [0.5, 0.5]])
    def test_without_spread_there_is_no_ratio(self, bad: list[float]) -> None:
        for pair in ((bad, [1, 2]), ([1, 2], bad)):
            found = sd_ratio(*pair)
            assert (found.ratio, found.interval, found.p) == (None, None, None)
