import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ttest_1samp

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import (
    McNemar,
    clustered_interval,
    mcnemar,
    resampled_ratio_interval,
    wilson_interval,
)

prop = examples(60)


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

    @pytest.mark.parametrize(
        ("num_correct", "num_items", "printed"),
        [
            (81, 263, (0.2553, 0.3662)),
            (15, 148, (0.0624, 0.1605)),
            (0, 20, (0, 0.1611)),
            (1, 29, (0.0061, 0.1718)),
        ],
    )
    def test_newcombes_examples(
        self, num_correct: int, num_items: int, printed: tuple[float, float]
    ) -> None:
        """Newcombe 1998 (Statistics in Medicine 17:857-872), table I, method 3."""
        assert wilson_interval(num_correct, num_items) == pytest.approx(printed, abs=5e-5)

    def test_confidence_widens_it(self) -> None:
        low, high = wilson_interval(30, 100)
        lower, higher = wilson_interval(30, 100, confidence=0.99)
        assert lower < low < 0.3 < high < higher

    @pytest.mark.parametrize(("num_correct", "num_items"), [(0, 0), (-1, 5), (6, 5)])
    def test_impossible_counts(self, num_correct: int, num_items: int) -> None:
        with pytest.raises(InputError, match="is not a share"):
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
    @given(st.lists(st.floats(0, 1), min_size=3, max_size=12), st.integers(2, 5))
    def test_copies_of_an_item_add_no_evidence(self, values: list[float], copies: int) -> None:
        clusters = range(len(values))
        once = clustered_interval(values, clusters)
        assert once is not None
        assert clustered_interval(values * copies, [*clusters] * copies) == pytest.approx(once)

    def test_two_clusters_of_items_have_no_interval(self) -> None:
        assert clustered_interval([0.0, 1.0], [0, 1]) is not None
        assert clustered_interval([0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1]) is None

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

    def test_values_are_finite(self) -> None:
        with pytest.raises(InputError, match="is not finite"):
            clustered_interval([1.0, math.nan], [1, 2])

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
        for sums, counts in (([1.0], []), ([1.0, 2.0], [1, 0]), ([1.0, 2.0], [1, math.nan])):
            with pytest.raises(InputError, match="one of each a cluster"):
                resampled_ratio_interval(sums, counts)

    def test_losses_of_a_run_that_diverged_have_no_interval(self) -> None:
        assert resampled_ratio_interval([1.0, math.nan], [1, 2]) is None
        assert resampled_ratio_interval([1.0, math.inf], [1, 2]) is None


class TestMcNemar:
    @prop
    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
    def test_counts_and_binomial_tails(self, answers: list[tuple[bool, bool]]) -> None:
        a, b = zip(*answers, strict=True)
        (found,) = mcnemar([a], [b])
        assert found.only_a == sum(x and not y for x, y in answers)
        assert found.only_b == sum(y and not x for x, y in answers)
        assert found.both == sum(x and y for x, y in answers)
        assert found.only_a + found.only_b + found.both + found.neither == len(answers)
        flips, fewer = found.only_a + found.only_b, min(found.only_a, found.only_b)
        assert found.p == pytest.approx(min(1, 2 * binom.cdf(fewer, flips, 0.5)))

    def test_approval_of_a_prime_minister(self) -> None:
        """Agresti 2013, table 11.1: 794, 150, 86, 570; its z is 4.17, p 0.00003."""
        a = [1] * 794 + [1] * 150 + [0] * 86 + [0] * 570
        b = [1] * 794 + [0] * 150 + [1] * 86 + [0] * 570
        (found,) = mcnemar([a], [b])
        assert (found.both, found.only_a, found.only_b, found.neither) == (794, 150, 86, 570)
        assert found.p == pytest.approx(3.7e-5, rel=0.02)

    def test_each_seed_by_itself(self) -> None:
        found = mcnemar([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1]], [[0] * 6, [0, 0, 1, 1, 0, 1]])
        assert found == [McNemar(6, 0, 0, 0, 0.03125), McNemar(0, 0, 3, 3, 1.0)]

    def test_graded_scores_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"score 0\.5 is neither right nor wrong"):
            mcnemar([[1, 0.5]], [[1, 0]])
