"""Intervals: against their equations, and their coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from schemabank.errors import InputError
from schemabank.stats import clustered_interval, resampled_ratio_interval, wilson_interval

prop = settings(deadline=None, max_examples=150)


class TestWilsonInterval:
    @prop
    @given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_ends_solve_the_score_equation(self, counts: tuple[int, int]) -> None:
        num_correct, num_items = counts
        share = num_correct / num_items
        z = 1.959963984540054  # the normal quantile of 97.5 %
        for end in wilson_interval(num_correct, num_items):
            assert 0 <= end <= 1
            distance = math.sqrt(num_items) * abs(share - end)
            assert distance == pytest.approx(z * math.sqrt(end * (1 - end)), abs=1e-6)

    def test_confidence_widens_it(self) -> None:
        low, high = wilson_interval(30, 100)
        lower, higher = wilson_interval(30, 100, confidence=0.99)
        assert lower < low < 0.3 < high < higher

    @pytest.mark.parametrize(("num_correct", "num_items"), [(0, 0), (-1, 5), (6, 5)])
    def test_impossible_counts(self, num_correct: int, num_items: int) -> None:
        with pytest.raises(InputError, match="is no share"):
            wilson_interval(num_correct, num_items)

    def test_impossible_confidence(self) -> None:
        with pytest.raises(InputError, match="between 0 and 1"):
            wilson_interval(1, 2, confidence=95)


class TestClusteredInterval:
    @prop
    @given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
    def test_items_on_their_own_give_students_interval(self, values: list[float]) -> None:
        found = clustered_interval(values, range(len(values)))
        assert found is not None
        if len(set(values)) > 1:
            expected = ttest_1samp(values, 0).confidence_interval()
            assert found == pytest.approx((expected.low, expected.high), abs=1e-9)

    @prop
    @given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(2, 5))
    def test_copies_of_an_item_add_no_evidence(self, values: list[float], copies: int) -> None:
        clusters = range(len(values))
        once = clustered_interval(values, clusters)
        assert once is not None
        assert clustered_interval(values * copies, [*clusters] * copies) == pytest.approx(once)

    def test_the_interval_covers_the_mean_as_often_as_it_says(self) -> None:
        """Scores of 20 documents of 1 to 10 questions, half of whose variance is the document's."""
        rng = np.random.default_rng(0)
        covered, ignoring, rounds = 0, 0, 2000
        for _ in range(rounds):
            sizes = rng.integers(1, 11, 20)
            clusters = np.repeat(np.arange(20), sizes)
            values = rng.normal(size=20)[clusters] + rng.normal(size=len(clusters))
            low, high = clustered_interval(values.tolist(), clusters.tolist())
            covered += low <= 0 <= high
            low, high = clustered_interval(values.tolist(), range(len(values)))
            ignoring += low <= 0 <= high
        assert 0.92 <= covered / rounds <= 0.97
        assert ignoring / rounds < 0.85

    def test_one_cluster_says_nothing_about_the_spread(self) -> None:
        assert clustered_interval([0.0, 1.0], ["book", "book"]) is None

    @pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], []), ([1.0, 0.0], [1])])
    def test_values_and_clusters_must_match(self, values: list[float], clusters: list[int]) -> None:
        with pytest.raises(InputError, match="one of each an item"):
            clustered_interval(values, clusters)


class TestResampledRatioInterval:
    def test_the_interval_covers_the_ratio_about_as_often_as_it_says(self) -> None:
        """Losses of 30 books of 1 to 10 windows around a book's own mean."""
        rng = np.random.default_rng(1)
        covered, rounds = 0, 500
        for number in range(rounds):
            sizes = rng.integers(1, 11, 30)
            sums = sizes * (3 + rng.normal(size=30))
            low, high = resampled_ratio_interval(
                sums.tolist(), sizes.tolist(), num_resamples=500, seed=number
            )
            covered += low <= 3 <= high
        assert 0.90 <= covered / rounds <= 0.97

    def test_equal_clusters_have_no_spread_and_the_same_seed_the_same_ends(self) -> None:
        assert resampled_ratio_interval([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 2))
        sums, counts = [i**1.5 for i in range(1, 30)], [1.0] * 29
        found = resampled_ratio_interval(sums, counts)
        assert found == resampled_ratio_interval(sums, counts)
        assert found != resampled_ratio_interval(sums, counts, seed=1)

    def test_one_cluster_says_nothing_and_bad_sums_are_refused(self) -> None:
        assert resampled_ratio_interval([1], [1]) is None
        for sums, counts in (([1.0], []), ([1.0, 2.0], [1, 0])):
            with pytest.raises(InputError, match="one of each a cluster"):
                resampled_ratio_interval(sums, counts)
