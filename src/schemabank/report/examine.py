"""The report on a folder of runs: everything that is said of them, as JSON knows it."""

from dataclasses import dataclass
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any

from schemabank import stats
from schemabank.errors import InputError
from schemabank.report.comparing.comparison import (
    Comparison,
    Contrast,
    ItemDifference,
    compare,
)
from schemabank.report.comparing.items import ItemTable
from schemabank.report.plain import plain, plain_fields
from schemabank.report.reading.runs import RunSet, read_runs
from schemabank.report.reading.table import ScoreTable
from schemabank.report.reading.tabulate import as_table, choose, with_control
from schemabank.report.sections.curves import curves
from schemabank.report.sections.facts import behaviour, costs, provenance
from schemabank.report.sections.rates import tried_rates
from schemabank.report.sections.routing import heat_maps
from schemabank.report.sections.samples import samples
from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings

Found = tuple[dict[str, Any], list[dict[str, Any]]]


@dataclass(frozen=True)
class OfGroup:
    """The primary contrast within one part of the split, its p-value adjusted over all parts."""

    group: str
    num_items: int
    treatment_mean: float
    control_mean: float
    difference: float
    interval: stats.Interval | None
    p: float | None
    p_holm: float | None
    outcome: str
    sentence: str


@dataclass(frozen=True)
class OtherArm:
    """The treatment against another arm, at the primary setting or all that they share."""

    arm: str
    seeds: int
    mean: float
    difference: float
    interval: stats.Interval | None
    p: float | None
    p_holm: float | None
    outcome: str
    sentence: str


def examine_runs(
    path: Path,
    *,
    treatment: str | None,
    control: str | None,
    primary: str | None,
    group: str | None,
    test_size: int | None,
) -> Found:
    """Return everything that a report says of a folder of runs, and samples of what they wrote.

    Args:
        path: the folder.
        treatment: arm; ``None`` where it is declared or clear.
        control: arm; likewise.
        primary: setting that was declared primary; ``None`` for the mean over all.
        group: part of the split; ``None`` for the first.
        test_size: items of the whole test split, where known.

    Raises:
        InputError: the runs cannot be read or compared as asked.
    """
    runs = read_runs(path)
    group = _group(runs, group)
    treatment, control = choose(runs, treatment, control)
    table = with_control(as_table(runs, group), treatment, control)
    by_item = ItemTable(runs)
    items = partial(by_item.difference, group)
    comparison = compare(table, treatment, control, primary, items)
    settings = _settings(comparison, primary)
    found_curves = curves(runs)
    ended, cost = behaviour(runs, group), costs(runs, found_curves)
    rates = tried_rates(path, runs, group)
    samples_of, found_samples = samples(runs, group, treatment, control, settings[-1])
    compared = by_item.comparison(
        group, (treatment, control), settings, primary=primary is not None
    )
    warnings = [
        *adapters_in_doubt(runs),
        *find_warnings(table, comparison, test_size),
        *find_run_warnings(runs, group, comparison, Facts(settings, rates, ended, cost)),
    ]
    report = {
        "table": {"name": table.name, "sha256": table.sha256, "num_rows": len(runs.runs)},
        "metric": runs.score,
        "split": runs.split,
        "group": group,
        **plain_fields(comparison),
        "groups": plain(_groups(runs, by_item, comparison, primary)),
        "others": plain(_others(table, comparison, primary, items)),
        "items": plain(compared),
        "rates": plain(rates),
        "curves": plain(found_curves),
        "behaviour": plain(ended),
        "cost": plain(cost),
        "routing": plain(heat_maps(runs)),
        "samples_of": plain(samples_of),
        "warnings": plain(warnings),
        "claims_file": None,
        "claims": [],
        "provenance": plain(provenance(runs)),
    }
    shown: Any = plain(found_samples)
    return report, shown


def _group(runs: RunSet, group: str | None) -> str:
    groups = runs.groups
    if group is None and groups:
        return groups[0]
    if group not in groups:
        raise InputError(
            f"--group {group!r}: the runs share {', '.join(map(repr, groups)) or 'no group'}: name "
            "one of these"
        )
    return group


def _settings(comparison: Comparison, primary: str | None) -> list[str]:
    """The settings whose mean the primary contrast compares."""
    return [primary] if primary is not None else [c.setting or "" for c in comparison.contrasts]


def _groups(
    runs: RunSet, by_item: ItemTable, comparison: Comparison, primary: str | None
) -> list[OfGroup]:
    """The primary contrast group by group, where there are several."""
    if len(runs.groups) < 2:
        return []
    treatment, control = comparison.treatment, comparison.control
    found = {}
    for group in runs.groups:
        table = with_control(as_table(runs, group), treatment, control)
        items = partial(by_item.difference, group)
        found[group] = _chosen(compare(table, treatment, control, primary, items), primary)
    raw = [contrast.own.difference.p for contrast in found.values()]
    adjusted = stats.holm([1.0 if p is None else p for p in raw])
    return [
        _of_group(runs, group, contrast, p, len(found))
        for (group, contrast), p in zip(found.items(), adjusted, strict=True)
    ]


def _of_group(runs: RunSet, group: str, contrast: Contrast, p: float, num: int) -> OfGroup:
    difference = contrast.own.difference
    p_holm = None if difference.p is None else p
    judged = stats.verdict(difference, p=p_holm, num_comparisons=num)
    return OfGroup(
        group=group,
        num_items=runs.runs[0].result["groups"][group]["num_items"],
        treatment_mean=contrast.treatment.mean,
        control_mean=contrast.control.mean,
        difference=difference.mean,
        interval=difference.interval,
        p=difference.p,
        p_holm=p_holm,
        outcome=judged.outcome,
        sentence=judged.sentence,
    )


def _chosen(comparison: Comparison, primary: str | None) -> Contrast:
    if primary is None:
        return comparison.pooled
    return next(c for c in comparison.contrasts if c.setting == primary)


def _others(
    table: ScoreTable, comparison: Comparison, primary: str | None, items: ItemDifference
) -> list[OtherArm]:
    """The treatment against every other trained arm, p-values adjusted over these."""
    treatment = comparison.treatment
    found = {
        arm: _difference(table, (treatment, arm), primary, items)
        for arm in table.arms
        if arm not in {treatment, comparison.control}
        and _comparable(table, treatment, arm, primary)
    }
    if not found:
        return []
    adjusted = stats.holm([1.0 if d.p is None else d.p for _, d in found.values()])
    return [
        _other(arm, scores, difference, p, len(found))
        for (arm, (scores, difference)), p in zip(found.items(), adjusted, strict=True)
    ]


def _difference(
    table: ScoreTable, arms: tuple[str, str], primary: str | None, items: ItemDifference
) -> tuple[list[float], stats.Difference]:
    """The second arm's scores by seed, and how much the first's are above them."""
    settings = table.settings(*arms) if primary is None else [primary]
    first, second = (
        {seed: float(score) for seed, score in table.means(name, settings).items()} for name in arms
    )
    scores = list(second.values())
    if len(first.keys() & second.keys()) > 1:
        crossed = items(*arms, settings)
        assert crossed is not None
        return scores, crossed
    return scores, stats.welch_difference(list(first.values()), scores)


def _comparable(table: ScoreTable, treatment: str, arm: str, primary: str | None) -> bool:
    """Whether some seed of both arms has all the settings that they share."""
    settings = table.settings(treatment, arm)
    wanted = settings if primary is None else [primary]
    return bool(settings) and set(wanted) <= set(settings) and bool(table.means(arm, wanted))


def _other(
    arm: str, scores: list[float], difference: stats.Difference, p: float, num: int
) -> OtherArm:
    p_holm = None if difference.p is None else p
    judged = stats.verdict(difference, p=p_holm, num_comparisons=num)
    return OtherArm(
        arm=arm,
        seeds=len(scores),
        mean=fsum(scores) / len(scores),
        difference=difference.mean,
        interval=difference.interval,
        p=difference.p,
        p_holm=p_holm,
        outcome=judged.outcome,
        sentence=judged.sentence,
    )
