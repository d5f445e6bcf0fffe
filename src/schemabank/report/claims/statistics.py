"""What published statistics come to on the rows: exact wherever the arithmetic is.

`NUMBERS`, `NAMES`, `SPANS` and `FORMULAS` name the statistics that a claim may be about; the empty
``epochs`` of a claim means every setting that the arm, or both arms, have.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise
from statistics import mean
from typing import TypeVar

from schemabank.common.errors import InputError
from schemabank.report.comparing.peaks import peaks_by_seed
from schemabank.report.reading.table import ScoreRow, ScoreTable

ROOTS = Context(prec=40)
Value = TypeVar("Value")
Best = Callable[[Iterable[Fraction]], Fraction]  # max or min


@dataclass(frozen=True)
class Claim:
    """One row of a file of claims.

    Attributes:
        statistic: its name.
        arm: that it is about; empty for both.
        settings: settings; empty for all.
        seed: that it is about; empty for all.
        value: as printed.
        where: it stands.
        parts: stated numbers that it rests on, by name.
        place: file and line, for errors.
    """

    statistic: str
    arm: str
    settings: tuple[str, ...]
    seed: str
    value: str
    where: str
    parts: Mapping[str, Fraction]
    place: str


@dataclass(frozen=True)
class Subject:
    """The rows that claims are about."""

    table: ScoreTable
    treatment: str
    control: str

    def arms_of(self, claim: Claim) -> tuple[str, ...]:
        """Return the arm that a claim is about, or both."""
        return (claim.arm,) if claim.arm else (self.treatment, self.control)

    def settings(self, claim: Claim) -> list[str]:
        """Return the settings that a claim is about."""
        return list(claim.settings) or self.table.settings(*self.arms_of(claim))

    def rows(self, claim: Claim) -> list[ScoreRow]:
        """Return the runs of the arms that a claim is about."""
        return [row for arm in self.arms_of(claim) for row in self.table.runs(arm)]

    def scores(self, arm: str, settings: Sequence[str], place: str) -> dict[str, Fraction]:
        """Return each seed's mean over settings; refuse settings that no seed has them all of."""
        found = self.table.means(arm, settings)
        if not found:
            raise InputError(
                f"{place}: no seed of {arm!r} has a row at each of epochs {', '.join(settings)}: "
                "name settings that it has"
            )
        return found

    def own_scores(self, claim: Claim) -> dict[str, Fraction]:
        """Return each seed's mean of the claim's arm over the claim's settings."""
        return self.scores(claim.arm, self.settings(claim), claim.place)

    def both(self, settings: Sequence[str], place: str) -> list[dict[str, Fraction]]:
        """Return each seed's mean over settings, of the treatment and of the control."""
        return [self.scores(arm, settings, place) for arm in (self.treatment, self.control)]

    def mean(self, arm: str, settings: Sequence[str], place: str) -> Fraction:
        """Return the mean over seeds of each seed's mean over settings."""
        return mean(self.scores(arm, settings, place).values())

    def ratio(self, settings: Sequence[str], place: str) -> Fraction:
        """Return the ratio of the arms' means, treatment over control."""
        above, below = (mean(scores.values()) for scores in self.both(settings, place))
        return above / below

    def by_epochs(self, claim: Claim) -> dict[str, Fraction]:
        """Return an arm's mean at every setting."""
        return {name: self.mean(claim.arm, [name], claim.place) for name in self.settings(claim)}

    def peaks(self, arm: str, claim: Claim) -> dict[str, Fraction]:
        """Return every seed's best score."""
        found = peaks_by_seed(self.table, arm, self.settings(claim))
        return {seed: score for seed, (score, _) in found.items()}

    def peak_ratios(self, claim: Claim) -> dict[str, Fraction]:
        """Return the ratio of the arms' peaks by seed."""
        return _quotients(*(self.peaks(arm, claim) for arm in (self.treatment, self.control)))


def sd(values: Sequence[Fraction], lost: int) -> Fraction:
    """Return the standard deviation that divides by ``n - lost``, to 40 digits."""
    middle = mean(values)
    squares = sum(((value - middle) ** 2 for value in values), Fraction(0))
    variance = squares / (len(values) - lost)
    quotient = ROOTS.divide(Decimal(variance.numerator), Decimal(variance.denominator))
    return Fraction(ROOTS.sqrt(quotient))


def sds(subject: Subject, claim: Claim, settings: Sequence[str], lost: int) -> Fraction:
    """Return the standard deviation of an arm's scores over seeds."""
    return sd(list(subject.scores(claim.arm, settings, claim.place).values()), lost)


def cvs(subject: Subject, claim: Claim, settings: Sequence[str], lost: int) -> Fraction:
    """Return the coefficient of variation of an arm's scores over seeds."""
    return sds(subject, claim, settings, lost) / subject.mean(claim.arm, settings, claim.place)


def _ratios(subject: Subject, claim: Claim) -> dict[str, Fraction]:
    return {name: subject.ratio([name], claim.place) for name in subject.settings(claim)}


def _seed_ratios(subject: Subject, claim: Claim) -> dict[str, Fraction]:
    return _quotients(*subject.both(subject.settings(claim), claim.place))


def _all_scores(subject: Subject, claim: Claim) -> list[Fraction]:
    own = subject.settings(claim)
    return [row.exact for row in subject.table.runs(claim.arm) if row.setting in own]


def _change(subject: Subject, claim: Claim) -> Fraction:
    before, after = subject.by_epochs(claim).values()
    return after - before


def _num_items(subject: Subject, claim: Claim) -> Fraction:
    found = {row.num_items for row in subject.rows(claim)}
    if None in found or len(found) != 1:
        raise InputError(f"{claim.place}: n_items is not one number: claim no num_items")
    return Fraction(found.pop() or 0)


def _mean_epochs(subject: Subject, claim: Claim) -> Fraction:
    runs = subject.table.runs(claim.arm)
    try:
        return mean(Fraction(Decimal(row.setting)) for row in runs)
    except (ArithmeticError, ValueError) as error:
        raise InputError(
            f"{claim.place}: epochs of {claim.arm!r} are not all numbers: claim no mean_epochs"
        ) from error


def _best_by_epochs(subject: Subject, claim: Claim, best: Best) -> dict[str, set[str]]:
    """Name the seeds that are the best, or worst, of their arm at each setting."""
    settings = subject.settings(claim)
    return {name: _names_of_best(subject.table.scores(claim.arm, name), best) for name in settings}


def _highest(subject: Subject, claim: Claim, column: int) -> set[str]:
    """Name the settings, or seeds, of the highest score of an arm."""
    found = {
        (name, seed): score
        for name in subject.settings(claim)
        for seed, score in subject.table.scores(claim.arm, name).items()
    }
    top = max(found.values())
    return {key[column] for key, score in found.items() if score == top}


def _largest_change(subject: Subject, claim: Claim) -> set[str]:
    means = subject.by_epochs(claim)
    changes = [(means[b] - means[a], (a, b)) for a, b in pairwise(means)]
    return set(max(changes)[1]) if changes else set()


def _peak_epochs(subject: Subject, claim: Claim) -> set[str]:
    """Name the settings at which a seed has its best score."""
    peaks = peaks_by_seed(subject.table, claim.arm, subject.settings(claim))
    return set(_of_seed(peaks, claim)[1])


def _of_seed(found: Mapping[str, Value], claim: Claim) -> Value:
    """Return what belongs to the claim's seed."""
    if claim.seed not in found:
        raise InputError(
            f"{claim.place}: seed {claim.seed!r} has no row there: name one of {', '.join(found)}"
        )
    return found[claim.seed]


def _names_of_best(found: Mapping[str, Fraction], best: Best) -> set[str]:
    """Name what has the best, or worst, value."""
    if not found:
        return set()
    extreme = best(found.values())
    return {name for name, value in found.items() if value == extreme}


def _quotients(above: Mapping[str, Fraction], below: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {seed: above[seed] / below[seed] for seed in above if seed in below}


# Each with the cells that a claim about it must fill.
NUMBERS: dict[str, tuple[str, Callable[[Subject, Claim], Fraction]]] = {
    "score": ("arm epochs seed", lambda s, c: _of_seed(s.scores(c.arm, c.settings, c.place), c)),
    "mean": ("arm", lambda s, c: mean(s.own_scores(c).values())),
    "ratio_of_means": ("", lambda s, c: s.ratio(s.settings(c), c.place)),
    "highest": ("arm", lambda s, c: max(_all_scores(s, c))),
    "highest_mean": ("arm", lambda s, c: max(s.by_epochs(c).values())),
    "highest_ratio_of_means": ("", lambda s, c: max(_ratios(s, c).values())),
    "peak": ("arm seed", lambda s, c: _of_seed(s.peaks(c.arm, c), c)),
    "peak_ratio": ("seed", lambda s, c: _of_seed(s.peak_ratios(c), c)),
    "change": ("arm epochs", _change),
    "num_runs": ("", lambda s, c: Fraction(len(s.rows(c)))),
    "num_seeds": ("", lambda s, c: Fraction(len({row.seed for row in s.rows(c)}))),
    "num_items": ("", _num_items),
    "mean_epochs": ("arm", _mean_epochs),
}
NAMES: dict[str, tuple[str, Callable[[Subject, Claim], set[str]]]] = {
    "peak_epochs": ("arm seed", _peak_epochs),
    "highest_epochs": ("arm", lambda s, c: _highest(s, c, 0)),
    "highest_seed": ("arm", lambda s, c: _highest(s, c, 1)),
    "highest_mean_epochs": ("arm", lambda s, c: _names_of_best(s.by_epochs(c), max)),
    "highest_ratio_epochs": ("", lambda s, c: _names_of_best(_ratios(s, c), max)),
    "highest_peak_ratio_seed": ("", lambda s, c: _names_of_best(s.peak_ratios(c), max)),
    "highest_peak_seed": ("arm", lambda s, c: _names_of_best(s.peaks(c.arm, c), max)),
    "lowest_peak_seed": ("arm", lambda s, c: _names_of_best(s.peaks(c.arm, c), min)),
    "best_seed": ("arm", lambda s, c: _names_of_best(s.own_scores(c), max)),
    "worst_seed": ("arm", lambda s, c: _names_of_best(s.own_scores(c), min)),
    "largest_change_epochs": ("arm", _largest_change),
}
ALWAYS: dict[str, tuple[str, Callable[[Subject, Claim], dict[str, set[str]]]]] = {
    "always_best_seed": ("arm", lambda s, c: _best_by_epochs(s, c, max)),
    "always_worst_seed": ("arm", lambda s, c: _best_by_epochs(s, c, min)),
}
SPANS: dict[str, tuple[str, Callable[[Subject, Claim], list[Fraction]]]] = {
    "scores": ("arm", _all_scores),
    "means": ("arm", lambda s, c: list(s.by_epochs(c).values())),
    "sds": ("arm", lambda s, c: [sds(s, c, [name], 1) for name in s.settings(c)]),
    "cvs": ("arm", lambda s, c: [cvs(s, c, [name], 1) for name in s.settings(c)]),
}
LEAST: dict[str, Callable[[Subject, Claim], dict[str, Fraction]]] = {
    "every_ratio_of_means": _ratios,
    "every_seeds_ratio": _seed_ratios,
}
# Arithmetic on stated numbers: the parts that `where` must name, and what they come to.
FORMULAS: dict[str, tuple[tuple[str, ...], Callable[..., Fraction]]] = {
    "minutes_of_steps": (("steps", "seconds"), lambda steps, seconds: steps * seconds / 60),
    "minutes_of_epochs": (("epochs", "minutes"), lambda epochs, minutes: epochs * minutes),
    "hours_of_runs": (("runs", "minutes"), lambda runs, minutes: runs * minutes / 60),
}
