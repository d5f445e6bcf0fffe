"""What a sceptical reviewer would raise about a table of results, each with its numbers.

A warning says what the rows show and no more; its id is stable, so that a program can look for it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import numpy as np
from scipy.stats import binomtest

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.report.comparing.comparison import (
    ArmAt,
    Comparison,
    Contrast,
    at_settings,
)
from schemabank.report.comparing.references import Reference
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.table import ScoreRow, ScoreTable
from schemabank.report.warnings.finding import Finding, first_named, times

FEWEST_SEEDS = 6  # whose sign-flip test can reach p = 0.05
ALPHA = 0.05
BY_SEEDS = "Student's 95 % interval over seeds"
BY_RUNS = "exact binomial tests of single runs"


@dataclass(frozen=True)
class Placed:
    """Where an arm stands against a reference, whose share is taken as exact.

    Attributes:
        setting: ``None`` for each seed's mean over all.
        finding: above, below or not above the reference, or unknown.
        rule: that says so.
        mean: over seeds.
        interval: Student's over seeds.
        pooled_wilson_interval: of all runs' items, as if every run had items of its own.
        num_runs_tested: runs with a known number of items, each by an exact binomial test.
        num_runs_above: runs significantly above, after Holm's adjustment over the runs tested.
        num_runs_below: likewise.
    """

    setting: str | None = field(metadata=EPOCHS)
    finding: str
    rule: str
    mean: float
    interval: stats.Interval | None
    pooled_wilson_interval: stats.Interval | None
    num_runs_tested: int
    num_runs_above: int
    num_runs_below: int


def find_warnings(
    table: ScoreTable, comparison: Comparison, test_size: int | None
) -> list[Finding]:
    """Return all findings.

    Args:
        table: the rows.
        comparison: of them.
        test_size: items of the whole test split, if it was given.

    Raises:
        InputError: a row has more items than the test split.
    """
    return [
        *_identical_rows(table),
        *_impossible_scores(table),
        *_subset_of_test(table, test_size),
        *_against_references(table, comparison),
        *_few_seeds(comparison),
        *_left_out(comparison),
        *_spreads(comparison),
        *_selection(comparison),
    ]


def _identical_rows(table: ScoreTable) -> Iterator[Finding]:
    """Settings of an arm at which every seed, of two at least, has the same score.

    Two tasks may be too hard, or too easy, for every seed; and items were counted, not copied.
    """
    if table.of_tasks:
        return
    for arm in table.trained:
        groups: dict[tuple[tuple[str, Fraction], ...], list[str]] = {}
        for setting in table.settings(arm):
            groups.setdefault(tuple(table.scores(arm, setting).items()), []).append(setting)
        for scores, same in groups.items():
            if len(same) < 2 or len(scores) < 2:
                continue
            shown = ", ".join(f"{seed}: {_percent(score)}" for seed, score in scores)
            yield Finding(
                "identical-rows",
                {"arm": arm, "epochs": same, "scores": {s: float(x) for s, x in scores}},
                f"{arm} has the same score for every seed at "
                f"{at_settings(table.setting_name, same)} (seeds {shown}): independent "
                "runs hardly ever agree so, a row may have been copied.",
            )


def _impossible_scores(table: ScoreTable) -> Iterator[Finding]:
    """Scores that no count of right answers gives, to the decimals that are printed."""
    odd = [row for row in table.rows if not _possible(row)]
    if not odd:
        return
    rows = [
        {"arm": r.arm, "epochs": r.setting, "seed": r.seed, "score": r.score}
        | {"n_items": r.num_items}
        for r in odd
    ]
    named = [f"{_run_named(r)} with {_percent(r.exact)} of {r.num_items}" for r in odd]
    yield Finding(
        "impossible-score",
        {"rows": rows},
        "No count of right answers gives the score, to the decimals it has, of "
        f"{first_named(named)}.",
    )


def _possible(row: ScoreRow) -> bool:
    if row.num_items is None or row.num_correct is None:
        return True
    share = Fraction(row.num_correct, row.num_items)
    # A program may have written the share in full, as a number of 64 or of 32 bits.
    near = math.isclose(float(share), row.score, rel_tol=2**-50)
    if near or np.float32(float(share)) == np.float32(row.score):
        return True
    return abs(share - row.exact) <= Fraction(1, 2 * 10**row.decimals)


def _subset_of_test(table: ScoreTable, test_size: int | None) -> Iterator[Finding]:
    if test_size is None:
        return
    for row in table.rows:
        if row.num_items is not None and row.num_items > test_size:
            raise InputError(
                f"{table.name} line {row.line}: n_items {row.num_items} is more than --test-size "
                f"{test_size}: give the items of the whole test split"
            )
    sizes = sorted({n for row in table.rows if (n := row.num_items) is not None and n < test_size})
    if sizes:
        yield Finding(
            "subset-of-test",
            {"n_items": sizes, "test_size": test_size},
            f"Scores are of {_listed(sizes)} items, not of the {test_size} of the test split: "
            "which items were left out is a choice, and the scores are noisier than they need be.",
        )


def _against_references(table: ScoreTable, comparison: Comparison) -> Iterator[Finding]:
    if not comparison.references:
        yield Finding(
            "no-reference",
            {"references": 0},
            "No row without a seed: neither the untouched model nor the best constant answer is "
            "there to tell whether any arm learned anything.",
        )
    for arm in table.trained:
        places = [at for at in comparison.arms if at.arm == arm]
        placed = {
            reference: [
                _placed(table, at, reference) for at in places if _fits(table, at, reference)
            ]
            for reference in comparison.references
        }
        for rule in ("not-above-reference", "below-reference"):
            found = {
                reference: own
                for reference, all_of in placed.items()
                if (own := [one for one in all_of if one.finding == rule])
            }
            if found:
                yield _reference_finding(rule, arm, found, table.setting_name)


def _fits(table: ScoreTable, at: ArmAt, reference: Reference) -> bool:
    """Whether both are of the same thing: a reference on one task says nothing about another."""
    return not table.of_tasks or reference.setting == at.setting


def _placed(table: ScoreTable, at: ArmAt, reference: Reference) -> Placed:
    """An arm against a reference, by the seeds' interval; without one, by exact tests of runs."""
    runs = [r for r in table.runs(at.arm, at.setting) if r.num_items is not None]
    counts = [(r.num_correct or 0, r.num_items or 1) for r in runs]
    exact = [_binomial_p(*count, reference.score) for count in counts]
    far = zip(stats.holm(exact) if exact else [], counts, strict=True)
    signs = [k / n > reference.score for p, (k, n) in far if p <= ALPHA]
    above, below = sum(signs), len(signs) - sum(signs)
    interval = at.summary.interval
    if interval is not None:
        finding = _finding(interval[0] > reference.score, interval[1] < reference.score)
    else:
        finding = _finding(above > below, below > above) if counts else "unknown"
    return Placed(
        setting=at.setting,
        finding=finding,
        rule=BY_RUNS if interval is None else BY_SEEDS,
        mean=at.summary.mean,
        interval=interval,
        pooled_wilson_interval=_pooled_interval(counts),
        num_runs_tested=len(counts),
        num_runs_above=above,
        num_runs_below=below,
    )


@cache
def _binomial_p(num_correct: int, num_items: int, share: float) -> float:
    return float(binomtest(num_correct, num_items, share).pvalue)


def _finding(above: bool, below: bool) -> str:
    if above:
        return "above-reference"
    return "below-reference" if below else "not-above-reference"


def _pooled_interval(counts: list[tuple[int, int]]) -> stats.Interval | None:
    if not counts:
        return None
    return stats.wilson_interval(sum(k for k, _ in counts), sum(n for _, n in counts))


def _reference_finding(
    rule: str, arm: str, found: Mapping[Reference, list[Placed]], setting_name: str
) -> Finding:
    """One finding on all references; those that are told in the same words stand together."""
    by_end: dict[str, list[str]] = {}
    for reference, own in found.items():
        named = _reference_named(reference, _told(own), setting_name)
        by_end.setdefault(_settings_and_rule(own, setting_name), []).append(named)
    words = "below" if rule == "below-reference" else "not distinguishable from"
    told = [f"{_listed(named)}{end}" for end, named in by_end.items()]
    tested = any(_told(own).num_runs_tested for own in found.values())
    counted = "; runs are counted by exact binomial tests, Holm-adjusted" if tested else ""
    return Finding(
        rule,
        {
            "arm": arm,
            "references": [
                {"reference": r.arm, "epochs": r.setting, "score": r.score, "found": own}
                for r, own in found.items()
            ],
        },
        f"{arm} is {words} {'; '.join(told)}. References are taken as exact{counted}.",
    )


def _reference_named(reference: Reference, told: Placed, setting_name: str) -> str:
    """A reference with its score, and how many runs lie above and below it."""
    at = _where(setting_name, [reference.setting] if reference.setting else [])
    runs = ""
    if told.num_runs_tested:
        runs = (
            f"; of {times(told.num_runs_tested, 'run')}, {told.num_runs_above} above it and "
            f"{told.num_runs_below} below"
        )
    return f"{f'{reference.arm!r} {at}'.rstrip()} ({_percent(reference.score)}{runs})"


def _told(found: Sequence[Placed]) -> Placed:
    """The place that a sentence tells of: the mean over all settings, else the first setting."""
    return next((placed for placed in found if placed.setting is None), found[0])


def _settings_and_rule(found: Sequence[Placed], setting_name: str) -> str:
    """At which settings an arm stands so, and by which rule."""
    shown = _told(found)
    pooled = f"over all {setting_name}" if shown.setting is None and setting_name else ""
    every = _where(setting_name, [placed.setting for placed in found if placed.setting is not None])
    own = pooled or _where(setting_name, [shown.setting] if shown.setting else [])
    where = f" {' and '.join(part for part in (pooled, every) if part)}".rstrip()
    by = shown.rule
    if shown.interval is not None:
        low, high = map(_percent, shown.interval)
        by += f", {low} to {high} {own}".rstrip()
    return f"{where}, by {by}"


def _few_seeds(comparison: Comparison) -> Iterator[Finding]:
    """Fewer seeds than can reach p = 0.05 whatever they score."""
    pooled = comparison.pooled
    arms = (pooled.treatment.num_seeds, pooled.control.num_seeds)
    if pooled.test == "items":
        yield Finding(
            "single-runs",
            {"arms": [comparison.treatment, comparison.control]},
            "Each arm has a single run: the verdict speaks of these very weights and answers. "
            "Whether training or sampling again would show the difference, nothing here tells.",
        )
        return
    paired = pooled.test != "welch"
    num = len(pooled.seeds) if paired else min(arms)
    floor = stats.sign_flip_floor(num) if paired else stats.label_floor(*arms)
    if num >= FEWEST_SEEDS and floor <= ALPHA:
        return
    kind = "sign-flip test of pairs" if paired else "label permutation"
    yield Finding(
        "few-seeds",
        {"num_seeds": num, "floor": floor, "fewest": FEWEST_SEEDS},
        f"{times(num, 'seed')}: a two-sided {kind} cannot go below p = {floor:.4g}, whatever the "
        f"scores; {FEWEST_SEEDS} seeds are the fewest whose sign-flip test can reach {ALPHA}.",
    )


def _left_out(comparison: Comparison) -> Iterator[Finding]:
    setting_name = comparison.setting_name
    contrasts = [contrast for contrast in comparison.contrasts if any(contrast.left_out.values())]
    rows = {_place_named(contrast, setting_name): contrast.left_out for contrast in contrasts}
    if rows:
        yield Finding(
            "runs-left-out",
            {"by_epochs": rows},
            f"At {_listed(list(rows))} the arms do not have the same seeds: paired figures leave "
            "out the runs without a partner.",
        )


def _spreads(comparison: Comparison) -> Iterator[Finding]:
    """Settings at which the interval of the ratio of standard deviations contains 1."""
    unclear, rows = [], {}
    for contrast in comparison.every_contrast:
        found, place = contrast.sd_ratio, _place_named(contrast, comparison.setting_name)
        if found.interval is not None:
            rows[place] = found
            low, high = found.interval
            if low <= 1 <= high:
                unclear.append(f"{place} ({found.ratio:.3g}, {low:.3g} to {high:.3g})")
    if unclear:
        yield Finding(
            "lower-variance-unsupported",
            {"sd_ratios": rows},
            f"A claim that {comparison.treatment} varies less over seeds than "
            f"{comparison.control}, or more, is not supported: the 95 % interval of the ratio of "
            f"their standard deviations contains 1 at {'; '.join(unclear)}.",
        )


def _selection(comparison: Comparison) -> Iterator[Finding]:
    """A peak over several settings is reported."""
    peaks, pooled, name = comparison.peaks, comparison.pooled, comparison.setting_name
    if len(comparison.contrasts) < 2 or None in (peaks.mean_treatment, peaks.mean_control):
        return
    shown = [
        (comparison.treatment, peaks.mean_treatment, pooled.treatment.mean),
        (comparison.control, peaks.mean_control, pooled.control.mean),
    ]
    words = [
        f"{arm}'s peaks average {_percent(peak)} against {_percent(mean)} over all {name}"
        for arm, peak, mean in shown
    ]
    yield Finding(
        "selection-on-test",
        {
            "num_epochs": len(comparison.contrasts),
            "mean_peaks": {arm: peak for arm, peak, _ in shown},
            "means": {arm: mean for arm, _, mean in shown},
        },
        f"A peak over {len(comparison.contrasts)} settings of {name} is chosen on the scores "
        f"that it is reported with: {' and '.join(words)}.",
    )


def _where(setting_name: str, names: Sequence[str]) -> str:
    found = at_settings(setting_name, names) if names else ""
    return f"at {found}" if found else ""


def _place_named(contrast: Contrast, setting_name: str) -> str:
    if contrast.setting is None:
        return f"the mean over {setting_name}"
    return at_settings(setting_name, [contrast.setting]) or "all runs"


def _run_named(row: ScoreRow) -> str:
    parts = [row.arm, row.setting and f"epochs {row.setting}", row.seed and f"seed {row.seed}"]
    return ", ".join(part for part in parts if part)


def _listed(names: list[str] | list[int]) -> str:
    *rest, last = map(str, names)
    return f"{', '.join(rest)} and {last}" if rest else last


def _percent(share: float | Fraction | None) -> str:
    return "none" if share is None else f"{float(100 * share):.3g} %"
