from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import label_floor, label_test, sign_flip_floor, sign_flip_test

prop = examples(40)
counts = st.integers(0, 20)  # right answers of 20, so that ties are common and sums exact
# Heights of crossed less self-fertilised plants, eighths of an inch (Darwin; Fisher 1935, s. 17).
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


class TestSignFlip:
    @prop
    @given(st.lists(st.tuples(counts, counts), min_size=1, max_size=8))
    def test_against_every_flip(self, pairs: list[tuple[int, int]]) -> None:
        """In whole answers, where sums are exact, though the scores are fractions."""
        gaps = [a - b for a, b in pairs]
        sums = [sum(s * g for s, g in zip(f, gaps, strict=True)) for f in _flips(len(gaps))]
        beyond = [sum(x >= sum(gaps) for x in sums), sum(x <= sum(gaps) for x in sums)]
        found = sign_flip_test([a / 20 for a, _ in pairs], [b / 20 for _, b in pairs])
        assert found.p == pytest.approx(min(1, 2 * min(beyond) / len(sums)))
        assert found.p >= found.floor == sign_flip_floor(len(pairs))
        assert (found.exact, found.num_arrangements) == (True, len(sums))

    def test_fishers_own_example(self) -> None:
        """Section 21: 863 of 32,768 arrangements are as great, 5.267 % both ways."""
        found = sign_flip_test(DARWIN, [0] * 15)
        assert found.p == 2 * 863 / 32_768

    def test_four_seeds_never_get_below_an_eighth(self) -> None:
        found = sign_flip_test([10.8, 13.2, 12.6, 10.6], [3.4, 5.6, 2.0, 4.0])
        assert found.p == found.floor == sign_flip_floor(4) == 0.125
        assert sign_flip_floor(5) > 0.05 > sign_flip_floor(6)

    def test_one_seed_and_equal_arms(self) -> None:
        assert sign_flip_test([1], [0]).p == sign_flip_floor(1) == 1
        assert sign_flip_test([0.3, 0.5], [0.1 + 0.2, 0.5]).p == 1

    def test_many_seeds_are_drawn(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 17))
        found = sign_flip_test(a, b)
        assert found == sign_flip_test(a, b)
        assert found != sign_flip_test(a, b, seed=1)
        assert (found.exact, found.num_arrangements, found.floor) == (False, 10_000, 2 / 10_001)
        exact = [_tail(a - b, np.array(list(_flips(17))))]
        assert found.p == pytest.approx(exact[0], abs=0.02)
        assert sign_flip_test(a + 10, b).p == pytest.approx(found.floor, rel=0.3)

    def test_no_pairs(self) -> None:
        with pytest.raises(InputError, match="0 pairs: a test needs at least 1"):
            sign_flip_floor(0)


class TestLabels:
    @prop
    @given(st.lists(counts, min_size=1, max_size=5), st.lists(counts, min_size=1, max_size=5))
    def test_against_every_labelling(self, a: list[int], b: list[int]) -> None:
        every, num = a + b, len(a)
        sums = [sum(every[i] for i in chosen) for chosen in combinations(range(len(every)), num)]
        beyond = [sum(x >= sum(a) for x in sums), sum(x <= sum(a) for x in sums)]
        found = label_test([x / 20 for x in a], [x / 20 for x in b])
        assert found.p == pytest.approx(min(1, 2 * min(beyond) / len(sums)))
        assert found.p >= found.floor == label_floor(len(a), len(b))
        assert (found.exact, found.num_arrangements) == (True, len(sums))

    def test_arms_apart_reach_the_floor(self) -> None:
        found = label_test([10.8, 13.2, 12.6, 10.6], [3.4, 5.6, 2.0, 4.0])
        assert found.p == found.floor == 2 / 70
        assert label_test(range(8), range(10, 18)).exact

    def test_many_runs_are_drawn(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2, 9))
        found = label_test(a, b, num_resamples=2000)
        assert found == label_test(a, b, num_resamples=2000)
        assert found != label_test(a, b, num_resamples=2000, seed=1)
        assert (found.exact, found.num_arrangements, found.floor) == (False, 2000, 2 / 2001)
        assert label_test(a + 10, b, num_resamples=2000).p == found.floor

    def test_equal_scores_and_single_runs(self) -> None:
        assert label_test([0.3, 0.3], [0.1 + 0.2, 0.3]).p == 1
        assert label_test([1], [0]).p == label_floor(1, 1) == 1
        with pytest.raises(InputError, match="0 and 3 runs: a test needs at least 1"):
            label_floor(0, 3)


def _flips(num: int) -> list[tuple[int, ...]]:
    return list(product((1, -1), repeat=num))


def _tail(gaps: np.ndarray, flips: np.ndarray) -> float:
    return float((np.abs(flips @ gaps) >= abs(gaps.sum()) - 1e-9).mean())
