"""Errors of items in few or unequal clusters: the jackknife, its degrees of freedom, its record."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from schemabank.stats import (
    Stratum,
    clustered_interval,
    crossed_difference,
    difference_over_items,
    margin_verdict,
    planned,
    stratified_difference,
    variance_components,
    verdict,
)
from schemabank.stats.clusters import FEWEST_CLUSTERS, degrees_of_freedom, squared_error
from tools import BENCHMARKS, load_tool

RECORD = Path(__file__).parents[2] / "results" / "clusters.json"
OURS, USUAL = "jackknife", "usual error"
UNEQUAL = np.array([40, 5, 4, 3, 2, 2])


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(BENCHMARKS / "clusters.py")


def names(sizes: np.ndarray) -> list[int]:
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


def drawn(seed: int, num_seeds: int, sizes: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(seed)
    own = np.repeat(rng.normal(0, 0.15, len(sizes)), sizes)
    return own + rng.normal(0, 0.4, (num_seeds, len(own))) + rng.normal(0, 0.02, (num_seeds, 1))


def test_the_error_is_that_of_leaving_out_every_cluster() -> None:
    values, members = drawn(0, 1, UNEQUAL)[0], np.array(names(UNEQUAL))
    left = [values[members != own].mean() for own in range(len(UNEQUAL))]
    num = len(UNEQUAL)
    expected = (num - 1) / num * np.square(np.array(left) - values.mean()).sum()
    pulls = np.bincount(members, weights=values - values.mean()) / len(values)
    assert squared_error(pulls, UNEQUAL.astype(float)) == pytest.approx(expected)
    found = difference_over_items([Stratum([values], [np.zeros_like(values)], names(UNEQUAL))])
    assert found.standard_error == pytest.approx(expected**0.5)
    interval = clustered_interval(values.tolist(), names(UNEQUAL))
    assert interval == pytest.approx(found.interval)


def test_degrees_of_freedom_are_those_of_the_errors_distribution() -> None:
    """Twice the square of the mean over the variance, for independent items (Satterthwaite)."""
    rng, sizes = np.random.default_rng(1), UNEQUAL.astype(float)
    means = rng.normal(size=(200_000, len(sizes))) / np.sqrt(sizes)
    pulls = sizes * (means - (means @ sizes / sizes.sum())[:, None]) / sizes.sum()
    errors = np.array([squared_error(own, sizes) for own in pulls[:20_000]])
    expected = 2 * errors.mean() ** 2 / errors.var()
    assert degrees_of_freedom(sizes) == pytest.approx(expected, rel=0.05)
    assert degrees_of_freedom(np.full(7, 3.0)) == 6
    assert degrees_of_freedom(np.array([3.0] * 6 + [3.000001])) == pytest.approx(6)


def test_the_error_goes_over_from_equal_to_unequal_clusters_without_a_leap() -> None:
    pulls = np.random.default_rng(2).normal(size=8)
    alike = squared_error(pulls, np.full(8, 1e6))
    assert squared_error(pulls, np.array([1e6 + 1] + [1e6] * 7)) == pytest.approx(alike, rel=1e-5)


def test_items_that_are_drawn_alone_have_no_floor() -> None:
    a = drawn(3, 4, np.ones(40, int))
    alone = crossed_difference(a, np.zeros_like(a))
    named = crossed_difference(a, np.zeros_like(a), clusters=range(40))
    assert named.p == pytest.approx(alone.p)
    assert named.of_clusters is None is alone.of_clusters


def test_no_interval_is_below_that_of_clusters_alone() -> None:
    """Here clusters differ by less than the noise of single answers, by luck."""
    rng, sizes = np.random.default_rng(4), np.full(5, 8)
    tried = 0
    for _ in range(200):
        a = rng.normal(0.05, 0.4, (8, sizes.sum()))
        found = crossed_difference(a, np.zeros_like(a), clusters=names(sizes))
        one = difference_over_items([Stratum([a.mean(0)], np.zeros((1, 40)), names(sizes))])
        assert found.interval is not None
        assert one.interval is not None
        assert found.interval[0] <= one.interval[0] + 1e-12
        assert found.p is not None
        assert one.p is not None
        assert found.p >= one.p - 1e-9
        tried += found.p == pytest.approx(one.p)
        low = found.mean - found.quantile(0.025) * (found.standard_error or 0)
        assert low == pytest.approx(found.interval[0])
        assert 2 * found.upper_tail(abs(found.mean) / (found.standard_error or 1)) == pytest.approx(
            found.p
        )
    assert tried > 5  # else the floor was never tested


@pytest.mark.parametrize(
    ("num", "told", "has_interval"),
    [
        (1, "a single item or cluster does not show", False),
        (2, "2 clusters of items do not show what others would add: an interval takes 3", False),
        (4, "4 clusters of items are too few, a verdict takes 5", True),
        (5, None, True),
    ],
)
def test_few_clusters_give_no_verdict(num: int, told: str | None, has_interval: bool) -> None:
    sizes = np.arange(2, 2 + num)
    a = 1 + 0.01 * drawn(5, 6, sizes)
    zeros = np.zeros_like(a)
    found = crossed_difference(a, zeros, clusters=names(sizes))
    assert (found.interval is not None) == has_interval
    assert found.may_be_enough == (told is None)
    judged = verdict(found)
    assert (told or "Better") in judged.sentence
    assert margin_verdict(found, 5).outcome == ("equivalent" if told is None else "no verdict")


@pytest.mark.parametrize("sizes", [np.array([9, 3]), np.array([9, 3, 2, 2])])
def test_few_clusters_of_one_of_several_tasks(sizes: np.ndarray) -> None:
    a, plain = drawn(6, 5, sizes), drawn(7, 5, np.ones(30, int))
    strata = [Stratum(a, np.zeros_like(a), names(sizes)), Stratum(plain, np.zeros_like(plain))]
    mean = stratified_difference(strata)
    assert (mean.interval is None) == (len(sizes) < 3)
    assert f"{len(sizes)} clusters of items" in verdict(mean).sentence
    single = difference_over_items(
        [Stratum(np.asarray(own.a)[:1], np.asarray(own.b)[:1], own.clusters) for own in strata]
    )
    assert (single.interval is None) == (len(sizes) < 3)
    assert f"{len(sizes)} clusters of items" in verdict(single).sentence
    assert not single.may_be_enough


def test_a_mean_over_one_task_is_that_task() -> None:
    a = drawn(8, 5, UNEQUAL)
    one = crossed_difference(a, np.zeros_like(a), clusters=names(UNEQUAL))
    mean = stratified_difference([Stratum(a, np.zeros_like(a), names(UNEQUAL))])
    assert mean.p == pytest.approx(one.p)
    assert mean.interval == pytest.approx(one.interval)


def test_a_plan_for_a_pilot_with_unequal_clusters_is_what_its_report_says() -> None:
    for seed in range(20):
        a = drawn(seed, 6, UNEQUAL)
        components = variance_components(a, np.zeros_like(a), names(UNEQUAL))
        own = crossed_difference(a, np.zeros_like(a), clusters=names(UNEQUAL))
        if components.item and components.seed:
            found = planned(components, 6, int(UNEQUAL.sum()))
            assert found.standard_error == pytest.approx(own.standard_error)
            assert found.df == pytest.approx(own.df)


def test_the_simulations_tests_are_the_packages(tool: ModuleType) -> None:
    rng = np.random.default_rng(9)
    for num_seeds in (1, 4):
        for name in tool.SIZES:
            sizes = tool.SIZES[name](5)
            sums = tool.CASES[5].sums(rng, 25, num_seeds, sizes)
            found = tool.Moments.of(sums, sizes, jackknife=True)
            for alpha in (0.05, 0.2):
                shown = []
                for own in sums:
                    a = np.repeat(own / sizes, sizes, axis=1)
                    strata = [Stratum(a, np.zeros_like(a), names(sizes))]
                    over = difference_over_items if num_seeds == 1 else stratified_difference
                    p = over(strata).p
                    shown.append(p is not None and p <= alpha)
                assert shown == tool.different(found, floor=True, alpha=alpha).tolist(), name


def test_false_verdicts_of_the_record_are_at_most_seven_in_a_hundred(tool: ModuleType) -> None:
    lines = tool.read(RECORD)
    alike = [x for x in lines if tool.is_alike(x)]
    places = {(x.method, x.sizes, x.case) for x in alike}
    assert len(places) == len(alike) == 2 * len(tool.SIZES) * len(tool.CASES)
    assert len(lines) - len(alike) == len(tool.SIZES) * len(tool.OTHER_SHAPES)
    assert min(x.rounds for x in lines) >= 10_000
    told = [num for num in tool.CLUSTERS if num >= FEWEST_CLUSTERS]
    rates = {m: [x.rate(n) for x in alike if x.method == m for n in told] for m in (OURS, USUAL)}
    assert max(rates[OURS]) <= 0.07
    assert max(rates[USUAL]) > 0.6


def test_the_simulation_gives_the_lines_of_its_record(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rounds, which are off by less than six standard errors."""
    sizes = {name: tool.SIZES[name] for name in ("all the same", "one has nine tenths")}
    recorded = [x for x in tool.read(RECORD) if x.sizes in sizes]
    monkeypatch.setattr(tool, "SIZES", sizes)
    found = list(tool.simulated(100))
    assert [(x.method, x.sizes, x.case) for x in found] == [
        (x.method, x.sizes, x.case) for x in recorded
    ]
    for one, other in zip(found, recorded, strict=True):
        assert np.abs(np.subtract(one.rates, other.rates)).max() < 6 * 0.5 / 100**0.5


def test_a_verdict_takes_as_many_clusters_as_the_record_says(tool: ModuleType) -> None:
    assert tool.enough(tool.read(RECORD)) == FEWEST_CLUSTERS
