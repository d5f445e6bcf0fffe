"""Final runs on the test split, judged as `schemabank report` judges them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from math import fsum
from operator import not_, sub
from statistics import fmean
from typing import Any

import numpy as np
from records import Suite
from words import interval_of, less, more, percent, points, table

from schemabank import stats
from schemabank.report.comparing.comparison import CONFIDENCE, Contrast, Reference
from schemabank.report.comparing.families import Adjusted, judged_together
from schemabank.report.comparing.items import Matrix
from schemabank.report.comparing.material import Material, gather
from schemabank.report.examine import chosen_group
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.tabulate import CONSTANT
from schemabank.report.sections import others
from schemabank.report.sections.cells import short
from schemabank.runs.itemscores import load_item_scores
from schemabank.stats import ArmSummary, Interval, Verdict
from schemabank.stats.arms import student_interval


@dataclass(frozen=True)
class Judged:
    """An arm at a setting, against the control at the same.

    Attributes:
        arm, setting: of its runs; the setting is empty where nothing varies.
        contrast: of the two, not adjusted.
        adjusted: the same, adjusted for all that were judged with it; a contrast that the suite
            declared stands by itself.
        declared: whether it is that one.
    """

    arm: str
    setting: str
    contrast: Contrast
    adjusted: Adjusted
    declared: bool


@cache
def final_runs(suite: Suite) -> RunSet:
    """Return a suite's final runs."""
    return read_runs(suite.folder)


def group_of(suite: Suite) -> str:
    """Return the part of the items that a suite's contrast is judged on, and all of its arms here.

    It is the declared one, or the first.
    """
    return chosen_group(final_runs(suite), _contrast(suite), None)


@cache
def compared(suite: Suite, treatment: str, control: str) -> Material:
    """Compare two arms of a suite at every setting and over all of them."""
    return gather(suite.folder, final_runs(suite), group_of(suite), (treatment, control), None)


def judged(suite: Suite, control: str) -> list[Judged]:
    """Compare every trained arm of a suite with one of them, at every setting."""
    found = [
        (arm, contrast)
        for arm in final_runs(suite).arms(trained=True)
        if arm != control
        for contrast in compared(suite, arm, control).comparison.contrasts
    ]
    # With several settings the declared contrast is their mean, which is none of these.
    named = _contrast(suite)
    stated = [(arm, control) == named and not contrast.setting for arm, contrast in found]
    differences = [contrast.own.difference for _, contrast in found]
    others = iter(judged_together(list(compress(differences, map(not_, stated)))))
    return [
        Judged(
            arm,
            contrast.setting or "",
            contrast,
            judged_together([contrast.own.difference])[0] if declared else next(others),
            declared,
        )
        for (arm, contrast), declared in zip(found, stated, strict=True)
    ]


def primary(suite: Suite) -> Verdict:
    """Return the verdict on the contrast that a suite declared, over all its settings."""
    return compared(suite, *_contrast(suite)).comparison.primary.verdict


def holm_among(suite: Suite, family: Sequence[Suite]) -> float:
    """Return p of a suite's declared contrast, adjusted for those of a family by Holm's method."""
    found = [compared(each, *_contrast(each)).comparison.primary_contrast for each in family]
    p = judged_together([contrast.own.difference for contrast in found])[family.index(suite)].p_holm
    assert p is not None
    return p


def against(suite: Suite, arm: str, control: str) -> Adjusted:
    """Return an arm against another over the only setting, adjusted for all against that one."""
    return next(own.adjusted for own in judged(suite, control) if own.arm == arm)


def together(suite: Suite, control: str) -> dict[str, Interval]:
    """Return intervals of all arms less one of them that hold together with 95 % confidence.

    Each is Student's, with Bonferroni's share of the 5 %.
    """
    found = _differences(suite, control)
    confidence = 1 - (1 - CONFIDENCE) / len(found)
    ends = {
        arm: student_interval(own.mean, own.standard_error, own.df, confidence)
        for arm, own in found.items()
    }
    assert None not in ends.values()
    return {arm: own for arm, own in ends.items() if own}


def found_together(suite: Suite, arm: str, control: str) -> float:
    """Return the true difference that an arm's interval among them all finds with 80 %."""
    found = _differences(suite, control)
    own, alpha = found[arm], (1 - CONFIDENCE) / len(found)
    detectable = stats.detectable_from_error(own.standard_error, own.df, alpha=alpha)
    assert detectable is not None
    return detectable


def highest(suite: Suite, control: str) -> float:
    """Return the highest end of the intervals that hold together."""
    return max(end for _, end in together(suite, control).values())


def not_excluded(suite: Suite, control: str, difference: float) -> str:
    """Name the arms that may be ahead by so much, as far as the intervals together tell."""
    names = [arm for arm, (_, end) in together(suite, control).items() if end >= difference]
    return " and ".join(f"`{name}`" for name in names)


def interaction(one: Suite, other: Suite) -> stats.CrossedDifference:
    """Compare the declared contrasts of two suites of equal arms, seeds and items.

    Returns:
        The first suite's difference less the second's, paired by seed and item.
    """
    seeds = [compared(s, *_contrast(s)).comparison.primary_contrast.seeds for s in (one, other)]
    assert seeds[0] == seeds[1]
    assert _items(one) == _items(other)
    first, second = map(_item_differences, (one, other))
    return stats.crossed_difference(first, second)


def by_seed(suite: Suite) -> list[float]:
    """Return the declared treatment less its control for each seed, the lowest first."""
    return sorted(map(float, _item_differences(suite).mean(axis=1)))


def without_best(suite: Suite) -> stats.CrossedDifference:
    """Return the declared contrast without the seed that is best for the treatment."""
    found = _item_differences(suite)
    order = found.mean(axis=1).argsort()
    return stats.crossed_difference(found[order[:-1]], np.zeros_like(found[order[:-1]]))


def across(one: Suite, arm: str, other: Suite, than: str) -> stats.CrossedDifference:
    """Compare an arm of one suite with an arm of another, paired by seed and item.

    Returns:
        The first suite's arm less the other's, over the seeds that both have.
    """
    assert _items(one) == _items(other)
    (first, second), (seeds, others) = zip(
        *(_scores(suite, of) for suite, of in ((one, arm), (other, than))), strict=True
    )
    common = sorted({*seeds} & {*others})
    rows = [[own.index(seed) for seed in common] for own in (seeds, others)]
    return stats.crossed_difference(first[rows[0]], second[rows[1]])


def primaries(suites: Mapping[str, Suite]) -> str:
    """Return the table of all suites' declared contrasts on the test split."""
    rows = []
    for name, suite in suites.items():
        if not suite.manifest["runs"]:  # a round of candidates
            continue
        treatment, control = _contrast(suite)
        comparison = compared(suite, treatment, control).comparison
        found = comparison.primary.verdict
        assert found.detectable is not None
        rows.append(
            {
                "suite": f"`{name}`",
                "contrast": f"{treatment} less {control}",
                "seeds": str(len(comparison.primary_contrast.seeds)),
                "questions": f"{num_items(suite):,}",
                "difference": points(found.difference),
                "95 % interval": interval_of(found.interval),
                "p": short(found.p),
                "found with a power of 80 %": more(found.detectable),
                "verdict": found.outcome,
            }
        )
    return table(rows)


def treatment_against(suite: Suite, arm: str) -> Adjusted:
    """Return the declared treatment against another arm than the control, as reports judge it."""
    found = others.find(compared(suite, *_contrast(suite)))
    return next(own.judged for own in found if own.arm == arm)


def reference(suite: Suite, arm: str) -> str:
    """Return the score of an arm that trains nothing."""
    return percent(next(own.score for own in _references(suite) if own.arm == arm))


def constant(suite: Suite) -> tuple[str, float]:
    """Return the best constant answer and its score, a share."""
    own = next(own for own in _references(suite) if own.arm.startswith(CONSTANT))
    return own.arm.removeprefix(CONSTANT).strip(" ()"), own.score


def seeds_of(suite: Suite, arm: str) -> int:
    """Return with how many seeds an arm of a suite without settings was evaluated."""
    return len(final_runs(suite).by_place(untrained=True)[arm, ""])


def num_items(suite: Suite) -> int:
    """Return how many items every final run answered."""
    return int(final_runs(suite).runs[0].result["groups"][group_of(suite)]["num_items"])


def _differences(suite: Suite, control: str) -> dict[str, stats.CrossedDifference]:
    """Every arm less one of them, in a suite of one setting."""
    all_judged = judged(suite, control)
    found = {own.arm: own.contrast.own.difference for own in all_judged}
    assert len(found) == len(all_judged)
    return {arm: own for arm, own in found.items() if isinstance(own, stats.CrossedDifference)}


def _scores(suite: Suite, arm: str) -> tuple[Matrix, list[int]]:
    """An arm of a suite of one setting: (seed, item), and the seeds."""
    material = compared(suite, *_contrast(suite))
    found = material.by_item.paired_scores(group_of(suite), arm, arm, material.settings)
    assert found is not None
    seeds = [run.seed for run in final_runs(suite).by_place(untrained=True)[arm, ""]]
    assert seeds == sorted(seeds)  # as are the rows
    assert found.treatment.shape[0] == len(seeds)
    return found.treatment, seeds


def _items(suite: Suite) -> tuple[str, str]:
    """What tells a suite's items apart: the digest of all, in their order, and the part of them.

    All runs of a suite have the same, or they cannot be compared.
    """
    runs = final_runs(suite)
    return load_item_scores(runs.runs[0].folder, runs.score).digest, group_of(suite)


def _item_differences(suite: Suite) -> Matrix:
    """The declared treatment less its control: (seed, item), each the mean over settings."""
    treatment, control = _contrast(suite)
    material = compared(suite, treatment, control)
    found = material.by_item.paired_scores(group_of(suite), treatment, control, material.settings)
    assert found is not None
    return found.treatment - found.control


def _references(suite: Suite) -> list[Reference]:
    return compared(suite, *_contrast(suite)).comparison.references


def _contrast(suite: Suite) -> tuple[str, str]:
    contrast = final_runs(suite).contrast
    assert contrast is not None
    return contrast


def judgements(suite: Suite, control: str) -> str:
    """Return the table of every trained arm against one of them."""
    found = judged(suite, control)
    of_control = {own.setting: own.contrast.control for own in found}
    rows = []
    for setting, summary in of_control.items():
        rows.append(_row(suite, control, setting, summary))
        rows += [
            {**_row(suite, own.arm, setting, own.contrast.treatment), **_difference(own)}
            for own in found
            if own.setting == setting
        ]
    return table(rows)


def measured(suite: Suite, arm: str, setting: str, name: str) -> float:
    """Return the mean over seeds of one of the figures in an arm's results."""
    return fmean(_each(suite, arm, setting, name))


def spread(suite: Suite, arm: str, setting: str, name: str) -> str:
    """Return the lowest and the highest over seeds of one of the figures in an arm's results."""
    found = _each(suite, arm, setting, name)
    return f"{min(found):.2f} to {max(found):.2f}"


def worst(suite: Suite, arm: str, setting: str) -> str:
    """Return the score of an arm's worst seed."""
    return percent(min(_each(suite, arm, setting, "correct")))


def figures(suite: Suite, arm: str, name: str) -> list[float]:
    """Return one of the figures of each seed's result, the lowest first."""
    return sorted(_each(suite, arm, "", name))


def paired(suite: Suite, arm: str, control: str, name: str) -> list[float]:
    """Return what an arm has more than another of one of the figures, seed by seed."""
    runs = final_runs(suite).by_place(untrained=True)
    seeds = [[run.seed for run in runs[each, ""]] for each in (arm, control)]
    assert seeds[0] == seeds[1]
    return [*map(sub, _each(suite, arm, "", name), _each(suite, control, "", name))]


def trained(suite: Suite, arm: str, name: str) -> int:
    """Return one of the figures of an arm's training, which all of its runs share."""
    runs = final_runs(suite).by_place(untrained=True)[arm, ""]
    (found,) = {run.result["training"][name] for run in runs}
    return int(found)


def unended(suite: Suite, arm: str, setting: str) -> float:
    """Return the share of an arm's right answers that stand in completions without an end."""
    results = _results(suite, arm, setting)
    # A result whose completions all lack an end has no share of right ones among those with one.
    ended = fsum(r["ended_ratio"] * r.get("correct_among_ended", 0) for r in results)
    return 1 - ended / fsum(r["correct"] for r in results)


def _each(suite: Suite, arm: str, setting: str, name: str) -> list[float]:
    return [result[name] for result in _results(suite, arm, setting)]


def _results(suite: Suite, arm: str, setting: str) -> list[dict[str, Any]]:
    runs = final_runs(suite).by_place(untrained=True)[arm, setting]
    return [run.result["groups"][group_of(suite)] for run in runs]


def _row(suite: Suite, arm: str, setting: str, summary: ArmSummary) -> dict[str, str]:
    assert summary.sd is not None
    return {
        "arm": arm,
        **({final_runs(suite).setting_name.rpartition(".")[2]: setting} if setting else {}),
        "correct": f"{percent(summary.mean)} ± {100 * summary.sd:.1f}",
        "ended": f"{100 * measured(suite, arm, setting, 'ended_ratio'):.0f} %",
        "loss": f"{measured(suite, arm, setting, 'gold_nll'):.3f}",
    }


def _difference(own: Judged) -> dict[str, str]:
    return {
        "difference": points(own.adjusted.difference),
        "95 % interval": interval_of(own.adjusted.interval),
        "p, Holm": short(own.adjusted.p_holm) + (" (declared)" if own.declared else ""),
        "verdict": own.adjusted.outcome,
    }


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(across, against, by_seed, constant, figures, found_together, highest, holm_among),
        *(interaction, interval_of, judged, judgements, less, measured, more, not_excluded),
        *(
            num_items,
            paired,
            points,
            primaries,
            primary,
            reference,
            seeds_of,
            spread,
            treatment_against,
            unended,
        ),
        *(trained, without_best, worst),
    )
}
