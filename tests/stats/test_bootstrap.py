import numpy as np
import pytest
from scipy import stats as scipy_stats

from schemabank.common.errors import InputError
from schemabank.stats import bootstrap_interval
from schemabank.stats.bootstrap import BOOTSTRAP_METHODS, BootstrapMethod

VALUES = [0.074, 0.076, 0.106, 0.066, 0.01, 0.12]


@pytest.mark.parametrize("method", BOOTSTRAP_METHODS)
def test_same_seed_same_numbers_and_order_does_not_matter_much(method: BootstrapMethod) -> None:
    found = bootstrap_interval(VALUES, method=method)
    assert found == bootstrap_interval(VALUES, method=method)
    assert found != bootstrap_interval(VALUES, method=method, seed=1)
    assert found == pytest.approx(bootstrap_interval(VALUES[::-1], method=method), abs=0.01)


@pytest.mark.parametrize("method", BOOTSTRAP_METHODS)
def test_moves_and_stretches_with_the_values(method: BootstrapMethod) -> None:
    low, high = bootstrap_interval(VALUES, method=method) or (0, 0)
    moved = bootstrap_interval([3 + 2 * value for value in VALUES], method=method)
    assert moved == pytest.approx((3 + 2 * low, 3 + 2 * high), abs=1e-3)
    wider = bootstrap_interval(VALUES, method=method, confidence=0.99)
    assert wider is not None
    assert wider[0] <= low < np.mean(VALUES) < high <= wider[1]


def test_percentiles_against_every_resample() -> None:
    """All 4^4 resamples of four values."""
    every = np.array(VALUES[:4])[np.indices((4, 4, 4, 4)).reshape(4, -1)].mean(axis=0)
    found = bootstrap_interval(VALUES[:4], method="percentile", num_resamples=100_000)
    assert found == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.001)


def test_studentised_against_every_resample() -> None:
    """All 5^5 resamples of five values; those of a single value have no spread."""
    values = np.array(VALUES[:5])
    drawn = values[np.indices((5,) * 5).reshape(5, -1)]
    drawn = drawn[:, np.ptp(drawn, axis=0) > 0]
    distances = (drawn.mean(axis=0) - values.mean()) / scipy_stats.sem(drawn, axis=0)
    low, high = np.quantile(distances, [0.025, 0.975])
    error = scipy_stats.sem(values)
    expected = values.mean() - high * error, values.mean() - low * error
    found = bootstrap_interval(values, num_resamples=200_000)
    assert found == pytest.approx(expected, rel=0.03)


def test_resampled_means_never_leave_the_data() -> None:
    for method in ("percentile", "bca"):
        low, high = bootstrap_interval(VALUES[:4], method=method, confidence=0.9999) or (-1, 1)
        assert min(VALUES[:4]) <= low < high <= max(VALUES[:4])
    low, high = bootstrap_interval(VALUES[:4]) or (0, 0)
    assert high > max(VALUES[:4])


@pytest.mark.parametrize("method", BOOTSTRAP_METHODS)
def test_too_few_or_equal_values_have_no_interval(method: BootstrapMethod) -> None:
    assert bootstrap_interval([1, 2, 3], method=method) is None
    assert bootstrap_interval([0.3, 0.1 + 0.2, 0.3, 0.3], method=method) is None
    assert bootstrap_interval([1, 1, 1, 2], method=method) is not None


def test_unknown_method() -> None:
    with pytest.raises(InputError, match="'basic' is unknown: give one of studentised, percentile"):
        bootstrap_interval(VALUES, method="basic")  # type: ignore[arg-type]
