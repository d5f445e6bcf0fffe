"""What a pilot predicts: against the layout's textbook, the pilot itself, and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import (
    VarianceComponents,
    crossed_difference,
    planned,
    variance_components,
    verdict,
)

prop = examples(40)
shapes = st.tuples(st.integers(2, 6), st.integers(2, 9))
answers = shapes.flatmap(lambda shape: arrays(float, (2, *shape), elements=st.sampled_from([0, 1])))
TRUE = VarianceComponents(
    seed=4e-4, item=0.02, cell=0.3, num_seeds=8, num_items=200, num_clusters=200
)


def draw(
    rng: np.random.Generator,
    num_seeds: int,
    num_items: int,
    true: VarianceComponents = TRUE,
    *,
    difference: float = 0.0,
    cluster_size: int = 1,
    cluster_sd: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Both arms' scores, whose difference varies as ``true`` says, and with clusters."""
    shape = num_seeds, num_items
    varied = difference + true.seed**0.5 * rng.normal(size=(num_seeds, 1))
    varied = varied + true.item**0.5 * rng.normal(size=num_items)
    shared = cluster_sd * rng.normal(size=num_items // cluster_size)
    varied = varied + np.repeat(shared, cluster_size)
    control = rng.random(shape)
    return control + varied + true.cell**0.5 * rng.normal(size=shape), control


class TestVarianceComponents:
    @prop
    @given(answers)
    def test_mean_squares_of_the_two_way_layout(self, scores: np.ndarray) -> None:
        """MS(seed) estimates cell + m seed, MS(item) cell + n item, and MS(rest) cell."""
        d = scores[0] - scores[1]
        n, m = d.shape
        rows, columns = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
        ms_seed = m * rows.var(ddof=1)
        ms_item = n * columns.var(ddof=1)
        ms_rest = np.square(d - rows - columns + d.mean()).sum() / ((n - 1) * (m - 1))
        found = variance_components(*scores)
        assert found.seed == pytest.approx(max(ms_seed - ms_rest, 0) / m)
        assert found.item == pytest.approx(max(ms_item - ms_rest, 0) / n)
        assert found.cell == pytest.approx(ms_rest)
        assert (found.num_seeds, found.num_items, found.num_clusters) == (n, m, m)

    def test_estimates_are_unbiased(self) -> None:
        """The mean over many pilots is the truth, but for the simulation's error."""
        rng = np.random.default_rng(0)
        true = replace(TRUE, seed=0.04, item=0.2)  # so large that no estimate is cut at 0
        found = [variance_components(*draw(rng, 8, 100, true)) for _ in range(400)]
        for name in ("seed", "item", "cell"):
            values = np.array([getattr(own, name) for own in found])
            assert values.min() > 0
            error = values.std(ddof=1) / len(values) ** 0.5
            assert abs(values.mean() - getattr(true, name)) < 3 * error, name

    def test_what_is_estimated_below_0_counts_as_0(self) -> None:
        rng = np.random.default_rng(1)
        found = [variance_components(*draw(rng, 4, 100, replace(TRUE, seed=0.0))) for _ in range(9)]
        assert min(own.seed for own in found) == 0 < max(own.seed for own in found)

    @prop
    @given(answers, st.integers(2, 4))
    def test_copies_of_an_item_add_no_evidence(self, scores: np.ndarray, copies: int) -> None:
        """As clusters, they predict the same error for as many clusters, and never find more."""
        num_seeds, num_items = scores.shape[1:]
        assume(num_items >= 3)  # of which an error takes three where they are clusters
        clusters = [*range(num_items)] * copies
        once = variance_components(*scores)
        found = variance_components(*np.tile(scores, (1, 1, copies)), clusters)
        assert (found.num_items, found.num_clusters) == (copies * num_items, num_items)
        alone = planned(once, num_seeds, 3 * num_items)
        clustered = planned(found, num_seeds, 3 * num_items * copies)
        assert clustered.num_clusters == alone.num_items
        assert clustered.standard_error == pytest.approx(alone.standard_error)
        if alone.detectable is not None:
            assert clustered.detectable is not None
            assert clustered.detectable >= alone.detectable * (1 - 1e-9)

    def test_arms_that_do_not_vary(self) -> None:
        found = variance_components(np.full((4, 9), 0.3), np.full((4, 9), 0.1))
        assert (found.seed, found.item, found.cell) == (0, 0, 0)
        assert planned(found, 4, 9).detectable is None
        assert (planned(found, 4, 9).standard_error, planned(found, 4, 9).df) == (0, None)

    @pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
    def test_one_seed_or_one_item_shows_nothing(self, shape: tuple[int, int]) -> None:
        with pytest.raises(
            InputError, match="items do not show what varies: give at least 2 seeds and 2 items"
        ):
            variance_components(np.arange(5.0).reshape(shape), np.zeros(shape))

    def test_the_true_error_lies_within_the_factors(self) -> None:
        """Of 4 seeds: sqrt(3 / 9.348) and sqrt(3 / 0.2158), by the chi-squared table."""
        low, high = replace(TRUE, num_seeds=4).seed_error_factors()
        assert (low, high) == pytest.approx((0.5665, 3.729), rel=1e-3)
        rng = np.random.default_rng(2)
        low, high = replace(TRUE, num_seeds=6).seed_error_factors()
        parts = TRUE.error_parts(6, 100)
        true = (parts[0] + parts[2]) ** 0.5
        errors = [
            (crossed_difference(*draw(rng, 6, 100)).seed_part or 0) ** 0.5 for _ in range(400)
        ]
        covered = np.mean([low * own <= true <= high * own for own in errors])
        assert covered == pytest.approx(0.95, abs=0.033)


class TestPlanned:
    @prop
    @given(answers, st.sampled_from([0.01, 0.05]))
    def test_for_the_pilot_itself_it_is_what_the_pilot_says(
        self, scores: np.ndarray, alpha: float
    ) -> None:
        components = variance_components(*scores)
        own = crossed_difference(*scores, confidence=1 - alpha)
        found = planned(components, *scores.shape[1:], alpha=alpha)
        assert found.standard_error >= own.standard_error * (1 - 1e-9)
        assume(components.seed > 0)  # no component was cut at 0 that the pilot's error has
        assert found.standard_error == pytest.approx(own.standard_error)
        assert found.df == pytest.approx(own.df)

    @pytest.mark.parametrize("cluster_size", [1, 25])
    def test_for_the_pilot_itself_it_is_what_the_verdict_says(self, cluster_size: int) -> None:
        a, b = draw(np.random.default_rng(3), 8, 300, cluster_size=cluster_size, cluster_sd=0.1)
        clusters = [number // cluster_size for number in range(300)]
        components = variance_components(a, b, clusters)
        assert min(components.seed, components.item, components.cell) > 0
        own = crossed_difference(a, b, clusters=clusters)
        found = planned(components, 8, 300)
        assert found.num_clusters == own.num_clusters
        assert found.standard_error == pytest.approx(own.standard_error)
        assert found.df == pytest.approx(own.df)
        assert found.detectable == pytest.approx(verdict(own).detectable)

    @pytest.mark.parametrize(("num_seeds", "num_items"), [(4, 200), (8, 200), (8, 400), (16, 100)])
    def test_power_at_the_detectable_difference(self, num_seeds: int, num_items: int) -> None:
        rng = np.random.default_rng(4)
        found = planned(TRUE, num_seeds, num_items)
        assert found.detectable is not None
        contrasts = [
            crossed_difference(*draw(rng, num_seeds, num_items, difference=found.detectable))
            for _ in range(500)
        ]
        hits = np.mean([own.p is not None and own.p <= 0.05 for own in contrasts])
        assert hits == pytest.approx(0.8, abs=3 * (0.8 * 0.2 / 500) ** 0.5)
        squared = np.mean([(own.standard_error or 0) ** 2 for own in contrasts])
        assert squared**0.5 == pytest.approx(found.standard_error, rel=0.05)

    def test_the_formula(self) -> None:
        found = planned(TRUE, 10, 1000)
        assert found.standard_error**2 == pytest.approx(4e-4 / 10 + 0.02 / 1000 + 0.3 / 10_000)
        assert (found.num_seeds, found.num_items, found.num_clusters) == (10, 1000, 1000)
        only_seeds = planned(replace(TRUE, item=0.0), 10, 1000)
        assert only_seeds.df == 9

    @prop
    @given(
        st.tuples(*[st.sampled_from([0, 1e-4, 0.01, 0.3])] * 3).filter(any),
        st.integers(2, 30),
        st.integers(2, 3000),
    )
    def test_more_seeds_and_more_items_find_more(
        self, variances: tuple[float, float, float], num_seeds: int, num_items: int
    ) -> None:
        seed, item, cell = variances
        components = replace(TRUE, seed=seed, item=item, cell=cell)
        least = planned(components, num_seeds, num_items).standard_error
        assert planned(components, num_seeds + 1, num_items).standard_error <= least
        assert planned(components, num_seeds, 2 * num_items).standard_error <= least

    @pytest.mark.parametrize(("num_seeds", "num_items"), [(1, 100), (0, 100), (4, 1), (4, 37)])
    def test_numbers_that_allow_no_test(self, num_seeds: int, num_items: int) -> None:
        """37 items are one and a half clusters of 25, so one."""
        components = replace(TRUE, num_clusters=200 if num_items != 37 else 8)
        with pytest.raises(InputError, match=r"allow no test: plan for at least 2 seeds and [23]"):
            planned(components, num_seeds, num_items)

    def test_alpha_and_power_are_checked(self) -> None:
        with pytest.raises(InputError, match="alpha 1 is not between 0 and 1"):
            planned(TRUE, 4, 100, alpha=1)
        with pytest.raises(InputError, match=r"power 0\.01 is not between alpha"):
            planned(TRUE, 4, 100, power=0.01)
