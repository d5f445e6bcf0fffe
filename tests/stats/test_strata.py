"""Means over tasks, and differences of two single runs over items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import t as student
from scipy.stats import ttest_rel

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import (
    Stratum,
    clustered_interval,
    crossed_difference,
    difference_over_items,
    margin_verdict,
    stratified_difference,
    verdict,
)

seeds = st.integers(0, 10**6)


def scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.random(shape) < 0.4).astype(float)


@examples(50)
@given(seeds)
def test_one_task_is_a_crossed_difference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = scores(rng, 2, 5, 30)
    clusters = (np.arange(30) // 3).tolist()
    for own in (None, clusters):
        found = stratified_difference([Stratum(a, b, own)])
        plain = crossed_difference(a, b, clusters=own)
        for name in ("mean", "standard_error", "df", "p", "num_clusters"):
            assert getattr(found, name) == pytest.approx(getattr(plain, name)), name


@examples(50)
@given(seeds)
def test_two_runs_over_one_tasks_items_are_students_paired_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 1, 30))
    found = difference_over_items([Stratum(a, b)])
    assert found.p == pytest.approx(ttest_rel(a[0], b[0]).pvalue)
    assert found.df == 29
    clusters = rng.integers(0, 6, 30).tolist()
    clustered = difference_over_items([Stratum(a, b, clusters)])
    assert clustered.interval == pytest.approx(clustered_interval((a - b)[0], clusters))


def test_tasks_count_alike_however_many_items_they_have() -> None:
    large, small = np.ones((4, 100)), np.zeros((4, 10))
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (4, 100))
    found = stratified_difference(
        [Stratum(large, large * 0.6 + noise), Stratum(small, small + noise[:, :10])]
    )
    assert found.mean == pytest.approx(0.2, abs=0.01)
    alone = difference_over_items(
        [Stratum(large[:1], large[:1] * 0.6 + noise[:1]), Stratum(small[:1], noise[:1, :10])]
    )
    assert alone.mean == pytest.approx(0.2, abs=0.01)
    assert alone.num_strata == 2


def by_hand(strata: list[Stratum]) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """The mean over tasks, both parts of its variance, and their degrees of freedom.

    From the mean squares of each task's two-way layout, without any code of the package.
    """
    apart = [np.asarray(own.a) - np.asarray(own.b) for own in strata]
    seed_means = np.mean([own.mean(axis=1) for own in apart], axis=0)
    items, freedom = [], []
    for own in apart:
        n, m = own.shape
        rows, columns = own.mean(1, keepdims=True), own.mean(0, keepdims=True)
        by_item = n * np.square(columns - own.mean()).sum() / (m - 1)
        rest = np.square(own - rows - columns + own.mean()).sum() / ((n - 1) * (m - 1))
        items.append(max(by_item - rest, 0) / (n * m) / len(apart) ** 2)
        freedom.append(m - 1)
    total = sum(items)
    df = total**2 / sum(x**2 / f for x, f in zip(items, freedom, strict=True)) if total else 1.0
    parts = float(seed_means.var(ddof=1)) / len(seed_means), total
    return float(seed_means.mean()), parts, (len(seed_means) - 1, df)


@examples(30)
@given(seeds)
def test_a_mean_over_tasks_and_its_margin_are_those_computed_by_hand(seed: int) -> None:
    """Three tasks of unlike sizes; the tests invert Cochran's quantile with scipy's Student."""
    rng = np.random.default_rng(seed)
    shift, strata = rng.normal(0, 0.03, (5, 1)), []
    for size in (12, 40, 7):
        favour, noise = rng.normal(0, 0.5, size), rng.normal(0.02, 0.2, (5, size))
        b = rng.random((5, size))
        strata.append(Stratum(b + shift + favour + noise, b))
    mean, parts, freedom = by_hand(strata)
    error = sum(parts) ** 0.5

    def quantile(tail: float) -> float:
        return float(np.average(student.isf(tail, freedom), weights=parts))

    def tail_of(statistic: float) -> float:
        if statistic < 0:
            return 1 - tail_of(-statistic)
        return float(brentq(lambda tail: quantile(tail) - statistic, 1e-15, 0.5, xtol=1e-14))

    found = stratified_difference(strata)
    assert (found.mean, found.standard_error) == pytest.approx((mean, error))
    reach = quantile(0.025) * error
    assert found.interval == pytest.approx((mean - reach, mean + reach))
    assert found.p == pytest.approx(2 * tail_of(abs(mean) / error), rel=1e-4)
    judged, margin = margin_verdict(found, 0.3), 0.3
    reach = quantile(0.05) * error
    assert judged.interval == pytest.approx((mean - reach, mean + reach)), "90 %, for two tests"
    not_worse, not_better = tail_of((mean + margin) / error), tail_of((margin - mean) / error)
    assert judged.p_not_worse == pytest.approx(not_worse, rel=1e-4, abs=1e-12)
    assert judged.p_equivalent == pytest.approx(max(not_worse, not_better), rel=1e-4, abs=1e-12)
    is_within = -margin <= mean - reach and mean + reach <= margin
    assert (judged.outcome == "equivalent") == is_within


def test_that_tasks_differ_adds_nothing_to_the_error() -> None:
    rng = np.random.default_rng(1)
    a, b = scores(rng, 2, 6, 80)
    near, far = (
        stratified_difference([Stratum(a, b), Stratum(a + shift, b)]) for shift in (0.0, 5.0)
    )
    assert near.standard_error == pytest.approx(far.standard_error)
    assert far.mean - near.mean == pytest.approx(2.5)


def test_intervals_cover_the_mean_over_tasks() -> None:
    """Seeds move all tasks together, items are drawn in clusters, and tasks differ in size."""
    rng = np.random.default_rng(2)
    rounds, hits, single = 600, 0, 0
    members = [np.arange(60), np.repeat(np.arange(40), 3), np.arange(25)]
    for _ in range(rounds):
        strata, seed = [], rng.normal(0, 0.03, (5, 1))
        for own in members:
            favour = rng.normal(0, 0.3, own.max() + 1)[own]
            apart = seed + favour + rng.normal(0, 0.5, (5, len(own)))
            strata.append(Stratum(apart, np.zeros_like(apart), own.tolist()))
        found = stratified_difference(strata)
        assert found.interval is not None
        hits += found.interval[0] <= 0 <= found.interval[1]
        fixed = [Stratum(np.asarray(s.a)[:1] - seed[0], np.zeros((1, len(m))), s.clusters)
                 for s, m in zip(strata, members, strict=True)]  # fmt: skip
        alone = difference_over_items(fixed)
        assert alone.interval is not None
        single += alone.interval[0] <= 0 <= alone.interval[1]
    assert 0.925 <= hits / rounds <= 0.985
    assert 0.925 <= single / rounds <= 0.975


def test_equal_runs_are_seldom_called_different_or_equivalent_at_the_margin() -> None:
    """Right and wrong answers, with few and with many items on which the runs differ."""
    rng = np.random.default_rng(3)
    rounds, margin = 1500, 0.05
    for num_items, rate in ((60, 0.1), (200, 0.05), (200, 0.3)):
        different = equivalent = 0
        for _ in range(rounds):
            apart = rng.choice([-1.0, 0.0, 1.0], (1, num_items), p=[rate / 2, 1 - rate, rate / 2])
            found = difference_over_items([Stratum(apart, np.zeros_like(apart))])
            different += verdict(found).outcome in {"better", "worse"}
            moved = difference_over_items([Stratum(apart + margin, np.zeros_like(apart))])
            equivalent += margin_verdict(moved, margin).outcome == "equivalent"
        limit = 0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5
        assert different / rounds <= limit, (num_items, rate)
        assert equivalent / rounds <= limit, (num_items, rate)


def test_few_differing_items_give_no_verdict() -> None:
    a = np.zeros((1, 400))
    a[0, :5] = 1
    found = difference_over_items([Stratum(a, np.zeros_like(a))])
    judged = verdict(found)
    assert judged.outcome == "no verdict"
    assert judged.sentence.endswith(
        "; the runs differ on 5 items or clusters, too few: a verdict over items takes 6."
    )
    assert margin_verdict(found, 0.1).outcome == "no verdict"
    a[0, 5] = 1
    assert verdict(difference_over_items([Stratum(a, np.zeros_like(a))])).outcome == "better"


def test_one_item_shows_no_spread() -> None:
    found = difference_over_items([Stratum([[1.0]], [[0.0]]), Stratum([[1.0, 0]], [[0.0, 1]])])
    assert (found.standard_error, found.interval, found.p) == (None, None, None)
    assert "a task with a single item or cluster" in found.why_no_verdict
    one = crossed_difference(*scores(np.random.default_rng(0), 2, 5, 3), clusters=["a"] * 3)
    assert verdict(one).sentence.endswith(
        "but a single item or cluster does not show what other items would add."
    )
    assert not found.may_be_enough
    assert not one.may_be_enough


def test_items_that_all_differ_alike_have_no_spread() -> None:
    found = difference_over_items([Stratum(np.ones((1, 20)), np.zeros((1, 20)))])
    assert verdict(found).sentence == (
        "No difference detected: +100.00 points, but items that all differ by the same amount "
        "cannot tell it from chance."
    )


def test_what_has_no_common_mean() -> None:
    two, three = np.zeros((2, 5)), np.zeros((3, 5))
    with pytest.raises(InputError, match=r"tasks with \[2, 3\] seeds have no common mean"):
        stratified_difference([Stratum(two, two), Stratum(three, three)])
    with pytest.raises(InputError, match="2 seeds: a difference over items alone is of one run"):
        difference_over_items([Stratum(two, two)])
    one = np.zeros((1, 5))
    with pytest.raises(InputError, match="do not show what varies"):
        stratified_difference([Stratum(one, one)])
