from collections.abc import Callable

import numpy as np
import pytest

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.stats.checks import differences, sample_sd

PAIRED = (
    stats.paired_difference,
    stats.sign_flip_test,
    stats.paired_d_z,
    stats.paired_outperformance,
    stats.ratio_of_means,
)
UNPAIRED = (
    stats.welch_difference,
    stats.label_test,
    stats.hedges_g,
    stats.unpaired_outperformance,
    stats.sd_ratio,
)
CROSSED = (stats.crossed_difference, stats.pigeonhole_interval)
TESTS = (stats.sign_flip_test, stats.label_test)
WITH_INTERVAL = [function for function in PAIRED + UNPAIRED if function not in TESTS]
SINGLE = (stats.summarise_arm, stats.bootstrap_interval)


@pytest.mark.parametrize("function", PAIRED)
def test_pairs_need_as_many_of_each(function: Callable[..., object]) -> None:
    with pytest.raises(
        InputError, match=r"shapes \(3,\) and \(2,\) do not make pairs.*both arms have"
    ):
        function([1, 2, 3], [1, 2])


@pytest.mark.parametrize("function", [*CROSSED, stats.mcnemar])
def test_crossed_pairs_need_the_same_items(function: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"\(2, 3\) and \(2, 2\) do not make pairs"):
        function(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"shape \(3,\).*one row a seed"):
        function([1, 0, 1], [1, 0, 1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("function", [*PAIRED, *UNPAIRED])
def test_scores_are_finite(function: Callable[..., object], bad: float | None) -> None:
    with pytest.raises(InputError, match=r"at position \(1,\) is not finite: leave out"):
        function([1, bad, 3], [1, 2, 4])
    with pytest.raises(InputError, match=r"at position \(0,\) is not finite: leave out"):
        function([1, 2, 4], [bad, 2, 3])


@pytest.mark.parametrize("function", SINGLE)
def test_single_scores_are_finite_numbers_in_a_row(function: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="is not finite"):
        function([1, float("nan")])
    with pytest.raises(InputError, match=r"shape \(0,\).*at least one"):
        function([])
    with pytest.raises(InputError, match=r"shape \(\)"):
        function(0.5)
    with pytest.raises(InputError, match=r"\['high'\] are not scores: give numbers"):
        function(["high"])
    with pytest.raises(InputError, match="are not scores: give numbers"):
        function([[1, 2], [3]])


@pytest.mark.parametrize("function", CROSSED)
def test_crossed_scores_are_finite(function: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"score nan at position \(0, 1\) is not finite"):
        function([[1, float("nan")]], [[1, 1]])


@pytest.mark.parametrize("function", WITH_INTERVAL)
@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, float("nan")])
def test_confidence_is_a_probability(function: Callable[..., object], confidence: float) -> None:
    with pytest.raises(InputError, match=r"not between 0 and 1: give one such as 0\.95"):
        function([1, 2, 3], [1, 3, 5], confidence=confidence)


@pytest.mark.parametrize("function", [*CROSSED, stats.summarise_arm, stats.bootstrap_interval])
def test_confidence_is_a_probability_everywhere(function: Callable[..., object]) -> None:
    arguments = ([[1, 2]], [[2, 4]]) if function in CROSSED else ([1, 2],)
    with pytest.raises(InputError, match=r"not between 0 and 1: give one such as 0\.95"):
        function(*arguments, confidence=95)


@pytest.mark.parametrize("function", TESTS)
def test_resampling_happens_at_least_once(function: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="0 resamples are too few: give at least 1"):
        function([1, 2], [1, 3], num_resamples=0)
    with pytest.raises(InputError, match="0 resamples are too few"):
        stats.bootstrap_interval([1, 2, 3, 5], num_resamples=0)
    with pytest.raises(InputError, match="0 resamples are too few"):
        stats.pigeonhole_interval([[1, 2]], [[2, 4]], num_resamples=0)
    with pytest.raises(InputError, match="0 resamples are too few"):
        stats.resampled_ratio_interval([1, 2], [2, 4], num_resamples=0)


def test_differences_equal_on_paper_are_equal() -> None:
    assert 0.052 - 0.05 != 0.102 - 0.1
    found = differences([0.052, 0.102, 0.3], [0.05, 0.1, 0.1 + 0.2])
    assert found.tolist() == [0.002, 0.002, 0]
    assert differences([1e-300, 0], [0, 0]) == pytest.approx([1e-300, 0], abs=1e-310)
    assert differences([1e300, 1e300], [0, 1e300]) == pytest.approx([1e300, 0])


def test_a_spread_below_rounding_is_none() -> None:
    assert np.std([0.3, 0.1 + 0.2], ddof=1) > 0
    assert sample_sd(np.array([0.3, 0.1 + 0.2])) == 0
    assert sample_sd(np.array([0.3])) is None
    assert sample_sd(np.array([1.0, 2.0])) == pytest.approx(0.5**0.5)


def test_every_public_name_is_documented() -> None:
    for name in stats.__all__:
        value = getattr(stats, name)
        assert (
            name in ("Interval", "MarginOutcome", "Outcome", "Relevance") or len(value.__doc__) > 40
        ), name
