import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t as student

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import crossed_difference, paired_difference, pigeonhole_interval

prop = examples(40)
shapes = st.tuples(st.integers(2, 6), st.integers(2, 9))
answers = shapes.flatmap(lambda shape: arrays(float, (2, *shape), elements=st.sampled_from([0, 1])))


def realistic(seed: int, *, num_seeds: int = 8, gain: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.1, 0.6, 300)
    shift = rng.normal(0, 0.02, (2, num_seeds, 1)) + np.array([gain, 0])[:, None, None]
    return (rng.random((2, num_seeds, 300)) < hard + shift).astype(float)


class TestCrossedDifference:
    @prop
    @given(answers)
    def test_mean_squares_of_the_two_way_layout(self, scores: np.ndarray) -> None:
        """Written out with loops: MS(seed), MS(item) and MS(residual) over the size."""
        d = scores[0] - scores[1]
        n, c = d.shape
        rows, columns, m = d.mean(axis=1), d.mean(axis=0), d.mean()
        ms_seed = c * sum((x - m) ** 2 for x in rows) / (n - 1)
        ms_item = n * sum((x - m) ** 2 for x in columns) / (c - 1)
        ms_rest = sum(
            (d[i, j] - rows[i] - columns[j] + m) ** 2 for i in range(n) for j in range(c)
        ) / ((n - 1) * (c - 1))
        found = crossed_difference(*scores)
        assert found.mean == pytest.approx(m)
        assert found.seed_part == pytest.approx(ms_seed / d.size)
        assert found.item_part == pytest.approx(max(ms_item - ms_rest, 0) / d.size)
        assert (found.num_seeds, found.num_clusters) == (n, c)

    @prop
    @given(answers)
    def test_without_variation_of_items_it_is_the_paired_test(self, scores: np.ndarray) -> None:
        found = crossed_difference(*scores)
        over_seeds = paired_difference(*scores.mean(axis=2))
        if found.item_part == 0 and found.seed_part:
            assert found.df == pytest.approx(over_seeds.df)
            assert found.interval == pytest.approx(over_seeds.interval)
            assert found.p == pytest.approx(over_seeds.p)
        elif found.seed_part:
            assert found.standard_error > over_seeds.standard_error

    @prop
    @given(answers, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
    def test_cochrans_weighted_quantile(self, scores: np.ndarray, confidence: float) -> None:
        found = crossed_difference(*scores, confidence=confidence)
        assume(found.interval is not None)
        freedom = np.array(scores.shape[1:]) - 1
        parts = [found.seed_part, found.item_part]
        tail = (1 - confidence) / 2
        reach = np.average(student.isf(tail, freedom), weights=parts) * found.standard_error
        assert found.interval == pytest.approx((found.mean - reach, found.mean + reach), rel=1e-6)
        assert found.df == pytest.approx(np.clip(found.df, *sorted(freedom)))
        at_p = np.average(student.isf(found.p / 2, freedom), weights=parts)
        assert at_p * found.standard_error == pytest.approx(abs(found.mean), rel=1e-6, abs=1e-9)
        assume(found.p != pytest.approx(1 - confidence))
        assert (found.p > 1 - confidence) == (found.interval[0] < 0 < found.interval[1])

    def test_hugely_apart(self) -> None:
        a, b = realistic(0)
        found = crossed_difference(a + 100, b)
        assert 2e-30 < found.p < 1e-20
        without_seeds = crossed_difference(a[:1].repeat(3, axis=0) + 1e6, b[:1].repeat(3, axis=0))
        assert without_seeds.p == 2e-30

    @prop
    @given(answers)
    def test_items_on_their_own_are_clusters_of_one(self, scores: np.ndarray) -> None:
        names = [f"item {i}" for i in range(scores.shape[2])]
        alone, clustered = crossed_difference(*scores), crossed_difference(*scores, clusters=names)
        assert clustered.seed_part == pytest.approx(alone.seed_part)
        assert clustered.item_part == pytest.approx(alone.item_part)

    @prop
    @given(answers, st.integers(2, 4))
    def test_copies_of_an_item_add_no_evidence(self, scores: np.ndarray, copies: int) -> None:
        assume(scores.shape[2] >= 3)  # of which an error takes three where they are clusters
        clusters = [*range(scores.shape[2])] * copies
        once = crossed_difference(*scores)
        found = crossed_difference(*np.tile(scores, (1, 1, copies)), clusters=clusters)
        assert found.num_clusters == once.num_clusters
        assert found.mean == pytest.approx(once.mean)
        assert found.seed_part == pytest.approx(once.seed_part)
        assert found.item_part == pytest.approx(once.item_part)

    def test_unequal_clusters_weigh_by_their_items(self) -> None:
        a = [[1, 1, 1, 0], [1, 0, 1, 1]]
        found = crossed_difference(a, np.zeros((2, 4)), clusters=["a", "a", "a", "b"])
        assert found.mean == 0.75
        assert found.num_clusters == 2

    @pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
    def test_one_seed_or_one_item_tells_the_mean_only(self, shape: tuple[int, int]) -> None:
        scores = np.arange(5.0).reshape(shape)
        found = crossed_difference(scores, np.zeros(shape))
        assert found.mean == 2
        assert (found.standard_error, found.df, found.seed_part) == (None, None, None)
        assert (found.interval, found.p, found.item_part) == (None, None, None)
        assert pigeonhole_interval(scores, np.zeros(shape)) is None

    def test_arms_that_do_not_vary(self) -> None:
        for gap in (0.0, 0.1):
            found = crossed_difference(np.full((4, 9), 0.2 + gap), np.full((4, 9), 0.2))
            assert (found.standard_error, found.interval, found.p) == (0, None, None)
            assert found.mean == pytest.approx(gap)
            assert pigeonhole_interval(np.full((4, 9), gap), np.zeros((4, 9))) is None

    def test_arms_without_seeds_vary_over_items_only(self) -> None:
        a, b = realistic(1)[:, :1].repeat(8, axis=1)
        found = crossed_difference(a, b)
        assert found.seed_part == 0
        assert found.df == pytest.approx(299)
        expected = paired_difference(a[0], b[0])
        assert found.interval == pytest.approx(expected.interval)

    def test_items_that_all_arms_answer_alike_count_for_nothing_but_their_number(self) -> None:
        a, b = realistic(2)
        padded = [np.hstack([scores, np.ones((8, 300))]) for scores in (a, b)]
        found, half = crossed_difference(a, b), crossed_difference(*padded)
        assert half.mean == pytest.approx(found.mean / 2)
        assert half.seed_part == pytest.approx(found.seed_part / 4)

    def test_clusters_must_match(self) -> None:
        with pytest.raises(InputError, match="2 clusters for 3 items: give one an item"):
            crossed_difference(np.zeros((2, 3)), np.ones((2, 3)), clusters=[1, 2])


class TestPigeonhole:
    def test_against_every_resample(self) -> None:
        """3 seeds and 4 items: 3^3 times 4^4 equally likely resamples."""
        d = np.random.default_rng(0).random((3, 4))
        seeds, items = np.indices((3, 3, 3)).reshape(3, -1), np.indices((4,) * 4).reshape(4, -1)
        every = d[seeds[:, None, :, None], items[None, :, None, :]].mean(axis=(0, 1))
        for confidence in (0.5, 0.8, 0.95):
            found = pigeonhole_interval(
                d, np.zeros((3, 4)), confidence=confidence, num_resamples=50_000
            )
            for end, share in zip(found, [(1 - confidence) / 2, (1 + confidence) / 2], strict=True):
                least, most = np.quantile(every, [share - 0.005, share + 0.005])
                assert least - 1e-9 <= end <= most + 1e-9

    def test_owens_variance(self) -> None:
        """Given the data: of seeds, of items, and of the rest, all three without n - 1."""
        a, b = realistic(3)
        d = a - b
        n, c = d.shape
        row, column = d.mean(axis=1).var(), d.mean(axis=0).var()
        rest = d.var() - row - column
        expected = row / n + column / c + rest / (n * c)
        means = [pigeonhole_interval(a, b, num_resamples=1, seed=seed) for seed in range(2000)]
        assert np.var([low for low, _ in means]) == pytest.approx(expected, rel=0.1)

    def test_same_seed_same_numbers(self) -> None:
        a, b = realistic(4)
        found = pigeonhole_interval(a, b, num_resamples=500)
        assert found == pigeonhole_interval(a, b, num_resamples=500)
        assert found != pigeonhole_interval(a, b, num_resamples=500, seed=1)

    def test_clusters_are_drawn_whole(self) -> None:
        """Items of a cluster that agree are as good as one; of unequal size they weigh more."""
        rng = np.random.default_rng(5)
        scores, b = rng.random((4, 6)), np.zeros((4, 6))
        once = pigeonhole_interval(scores, b, num_resamples=4000)
        repeated = np.repeat(scores, 3, axis=1)
        names = np.repeat(np.arange(6), 3).tolist()
        found = pigeonhole_interval(repeated, np.zeros((4, 18)), clusters=names, num_resamples=4000)
        assert found == pytest.approx(once)
        alone = pigeonhole_interval(repeated, np.zeros((4, 18)), num_resamples=4000)
        assert alone[1] - alone[0] < found[1] - found[0]
