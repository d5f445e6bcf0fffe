"""Whether two arms are equivalent, or one is not worse, within a margin declared in advance.

A difference that was not detected may still be large. Equivalence has to be shown: both one-sided
tests must reject a true difference of a margin or more (TOST; Schuirmann 1987, Journal of
Pharmacokinetics and Biopharmaceutics 15:657-680). Non-inferiority is the lower of these tests
alone. The error is that of the test of a difference.
"""

from dataclasses import dataclass
from typing import Literal

from schemabank.common.errors import InputError
from schemabank.stats.checks import Interval
from schemabank.stats.contrasts import Difference

ALPHA = 0.05  # of each one-sided test
MarginOutcome = Literal["equivalent", "not worse", "neither", "no verdict"]


@dataclass(frozen=True)
class MarginVerdict:
    """What a comparison says about a margin.

    Attributes:
        margin: declared in advance, in units of the score.
        outcome: of the first arm against the second. An equivalent arm is not worse either.
        p_equivalent: the larger one-sided p-value; ``None`` where there is no verdict.
        p_not_worse: one-sided, of a true difference of the negative margin or less; likewise.
        interval: two-sided at 90 %, which lies within the margin if and only if both tests reject.
        sentence: all that in words.
    """

    margin: float
    outcome: MarginOutcome
    p_equivalent: float | None
    p_not_worse: float | None
    interval: Interval | None
    sentence: str


def margin_verdict(contrast: Difference, margin: float, *, shares: bool = True) -> MarginVerdict:
    """Judge a comparison by a margin.

    Both one-sided tests are at 5 %. As with `verdict`, too few seeds give no verdict, and neither
    do seeds without any spread.

    How often arms that differ by the margin are called equivalent or not worse is simulated by
    ``benchmarks/margins.py`` and recorded in ``results/margins.json``.

    Args:
        contrast: from `paired_difference`, `welch_difference` or `crossed_difference`.
        margin: largest difference that does not matter, positive, in units of the score.
        shares: whether scores are shares, whose differences the sentence gives in points of
            percent; else in units of the score.
    """
    if not 0 < margin < float("inf"):
        raise InputError(
            f"margin {margin} is not above 0: give the largest difference that does not matter, in "
            "units of the score"
        )
    error = contrast.standard_error
    if not contrast.is_enough or not error:
        sentence = f"No verdict on a margin of {_text(margin, shares)}: {contrast.why_no_verdict}."
        return MarginVerdict(margin, "no verdict", None, None, None, sentence)
    not_worse = contrast.upper_tail((contrast.mean + margin) / error)
    not_better = contrast.upper_tail((margin - contrast.mean) / error)
    both = max(not_worse, not_better)
    outcome: MarginOutcome = "neither"
    if not_worse <= ALPHA:
        outcome = "equivalent" if both <= ALPHA else "not worse"
    reach = contrast.quantile(ALPHA) * error
    interval = contrast.mean - reach, contrast.mean + reach
    p = both if outcome == "equivalent" else not_worse
    sentence = _sentence(outcome, margin, interval, p, shares=shares)
    return MarginVerdict(margin, outcome, both, not_worse, interval, sentence)


def _sentence(
    outcome: MarginOutcome, margin: float, interval: Interval, p: float, *, shares: bool
) -> str:
    size = _text(margin, shares)
    words = {
        "equivalent": f"Equivalent within ±{size}",
        "not worse": f"Not worse by more than {size}",
        "neither": (
            f"Neither equivalent within ±{size} nor shown to be not worse by more than {size}"
        ),
    }
    low, high = (f"{100 * end:+.2f}" if shares else f"{end:+.4g}" for end in interval)
    return f"{words[outcome]}: 90 % interval {low} to {high}, one-sided p = {p:.2g}."


def _text(margin: float, shares: bool) -> str:
    if not shares:
        return f"{margin:.4g}"
    points = f"{100 * margin:.4g}"
    return f"{points if '.' in points else f'{points}.0'} points"
