"""Published figures against the rows that they were derived from.

A claim follows if the figure that the rows give, rounded to the decimals that were printed, is the
printed one, halves rounded up or to even. What no row tells, as a time, is arithmetic on numbers
that were stated beside it: ``where`` ends in ``| name=number, ...`` then.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.report.claims.printed import NUMBER, Printed, as_fraction, read_printed
from schemabank.report.claims.statistics import (
    ALWAYS,
    FORMULAS,
    LEAST,
    NAMES,
    NUMBERS,
    SPANS,
    Claim,
    Subject,
    cvs,
    sds,
)
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.table import in_order, known, read_cells, read_text

COLUMNS = ("statistic", "arm", "epochs", "seed", "value", "where")
PART = re.compile(rf"(\w+)=({NUMBER})")
WORDS = (
    "lower_sd",
    "lower_cv",
    "narrower_range",
    "every_seed_improves",
    "every_pair_improves",
    "difference_detected",
)
SPREADS = {"sd": sds, "cv": cvs}
RANGES = tuple(f"{name}_{rule}" for name in SPANS for rule in ("range", "within"))
STATISTICS = (*NUMBERS, *NAMES, *ALWAYS, *SPREADS, *RANGES, *LEAST, *WORDS, "cohens_d", *FORMULAS)


@dataclass(frozen=True)
class Judged:
    """A claim and what the rows say to it.

    Attributes:
        follows: whether the rows give what was printed.
        computed: figures in full, in the unit of the rows.
        sentence: both in words.
    """

    statistic: str
    arm: str
    settings: list[str] = field(metadata=EPOCHS)
    seed: str
    value: str
    where: str
    follows: bool
    computed: Mapping[str, object]
    sentence: str


Judgement = tuple[bool, Mapping[str, object], str]


def beside(path: Path) -> Path | None:
    """Return the file of claims that lies beside a table, ``NAME.claims.csv``, if it is there."""
    claims = path.with_name(f"{path.stem}.claims.csv")
    return claims if claims.is_file() else None


def judge_claims(path: Path, subject: Subject) -> list[Judged]:
    """Read claims and check each against the rows.

    Raises:
        InputError: the file cannot be read, or a claim is about nothing that there is.
    """
    rows = read_cells(read_text(path)[0], path, COLUMNS)
    return [
        _judge(_read_claim(cells, f"{path.name} line {line}", subject), subject)
        for line, cells in rows
    ]


def _judge(claim: Claim, subject: Subject) -> Judged:
    try:
        follows, computed, sentence = _judgement(claim, subject)
    except ZeroDivisionError:
        follows, computed = False, {}
        sentence = "the rows do not give it: that would divide by 0"
    return Judged(
        statistic=claim.statistic,
        arm=claim.arm,
        settings=list(claim.settings),
        seed=claim.seed,
        value=claim.value,
        where=claim.where,
        follows=follows,
        computed=computed,
        sentence=f"{_about(claim)}, printed {claim.value}: {sentence}.",
    )


def _about(claim: Claim) -> str:
    parts = [claim.statistic.replace("_", " "), claim.arm]
    parts += ["epochs " + ", ".join(claim.settings)] if claim.settings else []
    parts += [f"seed {claim.seed}"] if claim.seed else []
    return ", ".join(part for part in parts if part)


def _judgement(claim: Claim, subject: Subject) -> Judgement:
    name = claim.statistic
    if name in NAMES:
        return _judge_names(claim, NAMES[name][1](subject, claim))
    if name in ALWAYS:
        return _judge_always(claim, ALWAYS[name][1](subject, claim))
    if name in WORDS:
        return _judge_words(claim, subject)
    return _judge_figure(claim, read_printed(claim.value, claim.place), subject)


def _judge_figure(claim: Claim, printed: Printed, subject: Subject) -> Judgement:
    name = claim.statistic
    if name in NUMBERS:
        return _judge_number(printed, NUMBERS[name][1](subject, claim), "the rows give")
    if name in FORMULAS:
        wanted, formula = FORMULAS[name]
        value = formula(*(claim.parts[part] for part in wanted))
        return _judge_number(printed, value, "the stated numbers give")
    if name in SPREADS:
        return _judge_spread(claim, printed, subject)
    if name in LEAST:
        return _judge_least(printed, LEAST[name](subject, claim))
    if name == "cohens_d":
        return _judge_cohens_d(claim, printed, subject)
    what, _, rule = name.partition("_")
    return _judge_span(claim, printed, SPANS[what][1](subject, claim), strict=rule == "within")


def _judge_number(printed: Printed, value: Fraction, source: str) -> Judgement:
    follows = printed.fits(value)
    verb = "rounds" if follows else "does not round"
    sentence = f"{source} {printed.shown(value)}, which {verb} to it"
    return follows, {"value": float(value)}, sentence


def _judge_spread(claim: Claim, printed: Printed, subject: Subject) -> Judgement:
    """A standard deviation or a coefficient of variation, by either divisor."""
    of, settings = SPREADS[claim.statistic], subject.settings(claim)
    found = {name: of(subject, claim, settings, lost) for name, lost in (("n - 1", 1), ("n", 0))}
    fitting = [name for name, value in found.items() if printed.fits(value)]
    shown = " and ".join(f"{printed.shown(value)} with {name}" for name, value in found.items())
    which = f"{' and '.join(fitting)} fits" if fitting else "neither rounds to it"
    computed = {f"divided by {name}": float(value) for name, value in found.items()}
    return bool(fitting), {**computed, "fits": fitting}, f"the rows give {shown}; {which}"


def _judge_names(claim: Claim, found: set[str]) -> Judgement:
    claimed = {name.strip() for name in claim.value.split(",")}
    names = in_order(sorted(found))
    return claimed == found, {"value": names}, f"the rows give {', '.join(names) or 'none'}"


def _judge_always(claim: Claim, found: Mapping[str, set[str]]) -> Judgement:
    """A seed that is one of those named at every setting."""
    by_epochs = {setting: in_order(sorted(seeds)) for setting, seeds in found.items()}
    shown = ", ".join(f"{setting}: {' and '.join(seeds)}" for setting, seeds in by_epochs.items())
    follows = all(claim.value in seeds for seeds in found.values())
    return follows, {"by_epochs": by_epochs}, f"by epochs it is seed {shown}"


def _judge_span(
    claim: Claim, printed: Printed, values: Sequence[Fraction], *, strict: bool
) -> Judgement:
    """A range: its rounded ends for ``_range``; for ``_within``, that nothing lies outside it."""
    if printed.high is None:
        raise InputError(f"{claim.place}: {claim.value!r} is no range: write two numbers, as 8-11%")
    low, high = min(values), max(values)
    computed = {"low": float(low), "high": float(high)}
    shown = f"the rows give {printed.shown(low)} to {printed.shown(high)}"
    if strict:
        lowest, highest = low, high
        if printed.about:
            lowest, highest = max(printed.roundings(low)), min(printed.roundings(high))
        return printed.low <= lowest and highest <= printed.high, computed, shown
    follows = printed.low in printed.roundings(low) and printed.high in printed.roundings(high)
    return follows, computed, f"{shown}, whose ends {'' if follows else 'do not '}round to it"


def _judge_least(printed: Printed, found: Mapping[str, Fraction]) -> Judgement:
    """A figure that every setting, or every seed, is said to reach."""
    short = [n for n, v in found.items() if max(printed.roundings(v)) < printed.low]
    shown = ", ".join(f"{name}: {printed.shown(value)}" for name, value in found.items())
    less = f"less at {', '.join(short)}" if short else "none rounds to less"
    computed = {name: float(value) for name, value in found.items()}
    return bool(found) and not short, computed, f"the rows give {shown}; {less}"


def _judge_cohens_d(claim: Claim, printed: Printed, subject: Subject) -> Judgement:
    """Cohen's d at the claim's settings; without any, of each seed's mean over all of them."""
    every = subject.settings(claim)
    values = {name: _raw_d(claim, subject, [name]) for name in every}
    pooled = _raw_d(claim, subject, every)
    follows = pooled is not None and printed.fits(Fraction(pooled))
    parts = [f"{name}: {'none' if d is None else format(d, '.4g')}" for name, d in values.items()]
    sentence = (
        f"over seeds it is {'none' if pooled is None else format(pooled, '.6g')} of each seed's "
        f"mean over epochs {', '.join(every)}; by epochs {', '.join(parts)}"
    )
    return follows, {"value": pooled, "by_epochs": values}, sentence


def _raw_d(claim: Claim, subject: Subject, settings: Sequence[str]) -> float | None:
    return stats.hedges_g(*_both_floats(claim, subject, settings)).raw


def _judge_words(claim: Claim, subject: Subject) -> Judgement:
    """Claims without a figure: each by one stated rule."""
    if claim.statistic in ("lower_sd", "lower_cv"):
        return _judge_lower_spread(claim, subject)
    if claim.statistic == "narrower_range":
        both = subject.both(subject.settings(claim), claim.place)
        a, b = (max(scores.values()) - min(scores.values()) for scores in both)
        shown = (
            f"the widths are {float(100 * a):.6g} and {float(100 * b):.6g} points, treatment first"
        )
        return a < b, {"treatment": float(a), "control": float(b)}, shown
    if claim.statistic in ("every_seed_improves", "every_pair_improves"):
        return _judge_improvement(claim, subject)
    pairs = _pairs(claim, subject)
    found = stats.verdict(stats.paired_difference(*pairs))
    exact = stats.sign_flip_test(*pairs)
    shown = f"paired test, {found.sentence.rstrip('.')}; exact sign-flip p = {exact.p:.4g}"
    computed = {"p": found.p, "interval": found.interval, "sign_flip_p": exact.p}
    return found.outcome == "better", computed, shown


def _judge_improvement(claim: Claim, subject: Subject) -> Judgement:
    """Every seed scores higher under the treatment: its mean over settings, or at each of them."""
    by_pair = claim.statistic == "every_pair_improves"
    every = subject.settings(claim)
    gains: dict[tuple[str, str], Fraction] = {}
    for settings in [[name] for name in every] if by_pair else [every]:
        a, b = (subject.table.means(arm, settings) for arm in (subject.treatment, subject.control))
        gains |= {(", ".join(settings), seed): a[seed] - b[seed] for seed in a if seed in b}
    worse = [key for key, gain in gains.items() if gain <= 0]
    what = "pairs of runs" if by_pair else "seeds, by their mean over epochs,"
    shown = f"{len(gains) - len(worse)} of {len(gains)} {what} improve" + "".join(
        f", not seed {seed} at epochs {name} ({float(100 * gains[name, seed]):+.3g} points)"
        for name, seed in worse
    )
    least = float(min(gains.values())) if gains else None
    computed = {"num": len(gains), "num_improved": len(gains) - len(worse), "least": least}
    return bool(gains) and not worse, computed, shown


def _judge_lower_spread(claim: Claim, subject: Subject) -> Judgement:
    """A lower spread at each setting: the ratio's interval lies below 1.

    Relative spread by the standard deviations of the scores' logarithms, which are about the
    coefficients of variation where these are small.
    """
    relative = claim.statistic == "lower_cv"
    found: dict[str, stats.SpreadRatio] = {}
    for name in subject.settings(claim):
        both = _both_floats(claim, subject, [name])
        if relative and min(map(min, both)) <= 0:
            raise InputError(f"{claim.place}: a score of 0 has no logarithm: claim no lower_cv")
        found[name] = stats.sd_ratio(*((np.log(own) for own in both) if relative else both))
    follows = all(r.interval is not None and r.interval[1] < 1 for r in found.values())
    shown = ", ".join(f"{name}: {_ratio_shown(ratio)}" for name, ratio in found.items())
    what = "sds of the scores' logarithms" if relative else "sds"
    sentence = f"the ratio of {what}, treatment over control, with its 95 % interval is {shown}"
    sentence += "" if follows else "; a lower spread needs intervals below 1"
    return follows, {"ratios": found}, sentence


def _ratio_shown(found: stats.SpreadRatio) -> str:
    if found.interval is None:
        return "unknown"
    return f"{found.ratio:.3g} ({found.interval[0]:.4g} to {found.interval[1]:.4g})"


def _both_floats(claim: Claim, subject: Subject, settings: Sequence[str]) -> list[list[float]]:
    return [list(map(float, scores.values())) for scores in subject.both(settings, claim.place)]


def _pairs(claim: Claim, subject: Subject) -> tuple[list[float], list[float]]:
    """Both arms' scores of the seeds that they share."""
    a, b = subject.both(subject.settings(claim), claim.place)
    seeds = [seed for seed in a if seed in b]
    return [float(a[seed]) for seed in seeds], [float(b[seed]) for seed in seeds]


def _read_claim(cells: Mapping[str, str], place: str, subject: Subject) -> Claim:
    """Check what a claim is about."""
    parts = {name: as_fraction(n) for name, n in PART.findall(cells["where"].partition("|")[2])}
    arm, listed, seed = (known(cells[name]) for name in ("arm", "epochs", "seed"))
    arm = cells["arm"] if cells["arm"] in subject.table.arms else arm
    settings = tuple(e.strip() for e in listed.split(";")) if listed else ()
    statistic, value, where = (cells[name] for name in ("statistic", "value", "where"))
    claim = Claim(statistic, arm, settings, seed, value, where, parts, place)
    _check_known(claim)
    _check_rows(claim, subject)
    return claim


def _check_known(claim: Claim) -> None:
    if claim.statistic not in STATISTICS:
        raise InputError(
            f"{claim.place}: statistic {claim.statistic!r} is unknown: name one of "
            f"{', '.join(STATISTICS)}"
        )
    needs = {**NUMBERS, **NAMES, **ALWAYS}.get(claim.statistic, ("", None))[0].split()
    needs += ["arm"] if claim.statistic in (*SPREADS, *RANGES) else []
    missing = [name for name in needs if not _claim_cell(claim, name)]
    if missing or (claim.statistic == "change" and len(claim.settings) != 2):
        raise InputError(
            f"{claim.place}: {claim.statistic} needs {', '.join(needs)} (of a change, the epochs "
            "before and after, as 2;4): fill these cells"
        )
    absent = [n for n in FORMULAS.get(claim.statistic, ((), None))[0] if n not in claim.parts]
    if absent:
        raise InputError(
            f"{claim.place}: {claim.statistic} rests on {', '.join(absent)}: end the cell where "
            "with them, as '| steps=7,473, seconds=2.3'"
        )


def _claim_cell(claim: Claim, name: str) -> object:
    """What a claim has in a column of its file."""
    return claim.settings if name == "epochs" else getattr(claim, name)


def _check_rows(claim: Claim, subject: Subject) -> None:
    arms = subject.arms_of(claim)
    known = subject.table.arms
    if arms[0] not in known:
        raise InputError(
            f"{claim.place}: arm {claim.arm!r} has no runs: name one of {', '.join(known)}"
        )
    settings = subject.table.settings(*arms)
    if unknown := [name for name in claim.settings if name not in settings]:
        raise InputError(
            f"{claim.place}: epochs {unknown[0]!r} has no runs of {' and '.join(arms)}: name some "
            f"of {', '.join(settings)}, parted by ;"
        )
    for arm in arms:
        if claim.seed and claim.seed not in {row.seed for row in subject.table.runs(arm)}:
            raise InputError(
                f"{claim.place}: seed {claim.seed!r} has no runs of {arm}: name one that it has"
            )
