"""What a number of seeds can detect, by Student's test and the noncentral t distribution.

Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2. The power at the
difference that was observed says no more than its p-value (Hoenig and Heisey 2001, American
Statistician 55:19-24); what is reported is the difference that would have been detected.
"""

from functools import lru_cache

from scipy.optimize import brentq
from scipy.stats import chi2, nct, norm
from scipy.stats import t as student

from schemabank.common.errors import InputError


def detection_power(
    difference: float, *, sd: float, num_seeds: int, paired: bool = True, alpha: float = 0.05
) -> float | None:
    """Return the probability that the two-sided test finds a true difference.

    Args:
        difference: of the arms' means, in units of the score.
        sd: of the paired differences; of either arm's scores if not paired. Positive.
        num_seeds: of each arm.
        paired: whether arms share seeds.
        alpha: p-value at which the test rejects.

    Returns:
        The power; ``None`` for one seed, which allows no test.
    """
    _check_design(sd, num_seeds, alpha)
    if not sd:
        raise InputError("sd 0 allows no test: give the standard deviation that is expected")
    if num_seeds < 2:
        return None
    error, df = _standard_error(sd, num_seeds, paired)
    return _power_at(abs(difference) / error, df, float(student.isf(alpha / 2, df)))


def detectable_difference(
    *, sd: float, num_seeds: int, paired: bool = True, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Return the smallest true difference that the two-sided test finds with this power.

    Args:
        sd: of the paired differences; of either arm's scores if not paired.
        num_seeds: of each arm.
        paired: whether arms share seeds.
        alpha: p-value at which the test rejects.
        power: probability of finding it.

    Returns:
        In units of the score; ``None`` for one seed, which detects nothing.
    """
    _check_design(sd, num_seeds, alpha)
    if num_seeds < 2:
        return None
    error, df = _standard_error(sd, num_seeds, paired)
    return detectable_from_error(error, df, alpha=alpha, power=power)


def detectable_from_error(
    standard_error: float, df: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest true difference that a t-test with this standard error finds.

    For standard errors that are not those of `paired_difference`, as of `crossed_difference`.

    Args:
        standard_error: of the difference.
        df: its degrees of freedom.
        alpha: p-value at which the test rejects.
        power: probability of finding it.
    """
    if not 0 <= standard_error < float("inf") or not 0 < df < float("inf"):
        raise InputError(
            f"standard error {standard_error} with {df} degrees of freedom: give an error of at "
            "least 0 and degrees of freedom above 0"
        )
    check_alpha(alpha)
    if not alpha < power < 1:
        raise InputError(f"power {power} is not between alpha {alpha} and 1: give one such as 0.8")
    return _detectable_shift(df, alpha, power) * standard_error


@lru_cache(maxsize=1024)  # all contrasts of a report have the same few numbers of seeds
def _detectable_shift(df: float, alpha: float, power: float) -> float:
    """The smallest true difference that is found, in standard errors."""
    rare = (1 - power) / 1000
    critical = float(student.isf(alpha / 2, df))
    bound = critical * float(chi2.isf(rare, df) / df) ** 0.5 + float(norm.isf(rare))
    return float(brentq(lambda errors: _power_at(errors, df, critical) - power, 0, bound))


def _power_at(shift: float, df: float, critical: float) -> float:
    """Power at a true difference of ``shift`` standard errors, both tails counted."""
    return float(nct.sf(critical, df, shift) + nct.sf(critical, df, -shift))


def _standard_error(sd: float, num_seeds: int, paired: bool) -> tuple[float, int]:
    """Standard error of the difference and its degrees of freedom."""
    if paired:
        return sd / num_seeds**0.5, num_seeds - 1
    return sd * (2 / num_seeds) ** 0.5, 2 * num_seeds - 2


def _check_design(sd: float, num_seeds: int, alpha: float) -> None:
    if not 0 <= sd < float("inf"):
        raise InputError(f"sd {sd} is not a standard deviation: give a number of at least 0")
    if num_seeds < 1:
        raise InputError(f"{num_seeds} seeds: give at least 1")
    check_alpha(alpha)


def check_alpha(alpha: float) -> None:
    """Refuse a level that is no probability."""
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha} is not between 0 and 1: give one such as 0.05")
