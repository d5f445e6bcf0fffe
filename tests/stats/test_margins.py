"""Verdicts about a margin: Schuirmann's two one-sided tests, and how often they err."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from properties import examples
from schemabank.common.errors import InputError
from schemabank.stats import (
    Difference,
    crossed_difference,
    detectable_from_error,
    margin_verdict,
    paired_difference,
    welch_difference,
)

scores = st.lists(st.floats(0, 1), min_size=4, max_size=9)


def contrast(mean: float, error: float, num_seeds: int = 9) -> Difference:
    return Difference(mean, error, num_seeds - 1, (0, 0), 0.5, 0.95, num_seeds)


@examples(50)
@given(scores, st.floats(0.001, 0.5))
def test_both_tests_are_scipys_one_sided_ones(own: list[float], margin: float) -> None:
    """Schuirmann 1987 on the paired differences; scipy tests each bound."""
    values = np.array(own) - 0.5
    found = margin_verdict(paired_difference(own, [0.5] * len(own)), margin)
    if np.ptp(values) < 1e-6:
        return
    lower = ttest_1samp(values, -margin, alternative="greater").pvalue
    upper = ttest_1samp(values, margin, alternative="less").pvalue
    assert found.p_not_worse == pytest.approx(lower, abs=1e-9)
    assert found.p_equivalent == pytest.approx(max(lower, upper), abs=1e-9)


@examples(50)
@given(st.integers(0, 10**6), st.floats(0.001, 0.3))
def test_the_interval_decides_as_the_tests_do(seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 5, 30)) + rng.normal(0, 0.1, (2, 5, 1))
    for own in (
        crossed_difference(a, b),
        paired_difference(a.mean(1), b.mean(1)),
        welch_difference(a.mean(1), b.mean(1)),
    ):
        found = margin_verdict(own, margin)
        assert found.interval is not None
        low, high = found.interval
        assert (found.outcome == "equivalent") == (-margin <= low and high <= margin)
        assert (found.outcome == "neither") == (low < -margin)


def test_a_crossed_difference_has_one_error_for_both_questions() -> None:
    rng = np.random.default_rng(5)
    found = crossed_difference(rng.random((6, 40)), rng.random((6, 40)))
    assert found.standard_error is not None
    assert found.interval is not None
    reach = found.quantile(0.025) * found.standard_error
    assert found.interval[1] - found.mean == pytest.approx(reach)
    assert 2 * found.upper_tail(abs(found.mean) / found.standard_error) == pytest.approx(found.p)
    assert found.upper_tail(-1.2) == pytest.approx(1 - found.upper_tail(1.2))
    assert found.upper_tail(0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("mean", "error", "outcome", "words"),
    [
        (0.001, 0.002, "equivalent", "Equivalent within ±1.0 points: 90 % interval -0.27 to +0.47"),
        (0.02, 0.004, "not worse", "Not worse by more than 1.0 points: 90 % interval +1.26"),
        (0.0, 0.02, "neither", "Neither equivalent within ±1.0 points nor shown to be not worse"),
        (-0.05, 0.001, "neither", "Neither equivalent within ±1.0 points nor shown to be not"),
    ],
)
def test_the_words(mean: float, error: float, outcome: str, words: str) -> None:
    found = margin_verdict(contrast(mean, error), 0.01)
    assert found.outcome == outcome
    assert found.sentence.startswith(words)
    assert f"one-sided p = {found.p_equivalent:.2g}." in found.sentence or outcome != "equivalent"


def test_what_is_no_share_keeps_its_unit() -> None:
    found = margin_verdict(contrast(0.001, 0.002), 0.01, shares=False)
    assert found.sentence.startswith("Equivalent within ±0.01: 90 % interval -0.002719 to ")


def test_few_seeds_and_seeds_without_spread_give_no_verdict() -> None:
    few = margin_verdict(contrast(0.0, 0.001, num_seeds=3), 0.02)
    assert few.sentence == (
        "No verdict on a margin of 2.0 points: 3 seeds are too few, a verdict takes 4."
    )
    alike = margin_verdict(paired_difference([0.5] * 5, [0.5] * 5), 0.0125)
    assert alike.sentence == (
        "No verdict on a margin of 1.25 points: seeds without any spread cannot tell it from "
        "chance."
    )
    for found in (few, alike):
        assert (found.outcome, found.p_equivalent, found.interval) == ("no verdict", None, None)


RATIOS = [(3, 0.91), (5, 0.97), (11, 1.02), (50, 1.04)]


def test_the_page_says_what_a_plan_for_a_margin_takes() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8").split())
    (df, few), *_, (_, many) = RATIOS
    assert f"takes is {few} of the difference with {df + 1} seeds, and rises to {many} of" in page


@pytest.mark.parametrize(("df", "ratio"), RATIOS)
def test_a_plan_for_a_difference_serves_for_a_margin(df: int, ratio: float) -> None:
    """Equal arms are called equivalent 4 times in 5 near the difference that is found as often."""
    rng = np.random.default_rng(0)
    error, mean = (rng.chisquare(df, 200_000) / df) ** 0.5, rng.standard_normal(200_000)
    needed = np.quantile(np.abs(mean) + student.isf(0.05, df) * error, 0.8)
    assert needed / detectable_from_error(1.0, df) == pytest.approx(ratio, abs=0.015)


@pytest.mark.parametrize("margin", [0, -0.01, float("nan"), float("inf")])
def test_no_margin(margin: float) -> None:
    with pytest.raises(InputError, match="is not above 0: give the largest difference"):
        margin_verdict(contrast(0, 0.01), margin)
