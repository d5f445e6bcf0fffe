"""The command ``schemabank power``: how many seeds and items a comparison of two arms takes.

A pilot, which is a folder of runs or a packed record, tells what the difference of two arms varies
with; or these spreads are stated. From them the smallest difference follows that other numbers of
seeds and items would find.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.common.lines import marked_line
from schemabank.common.tables import PlainTable
from schemabank.report.comparing.items import PairedScores
from schemabank.report.comparing.margins import MOST_POINTS
from schemabank.report.comparing.material import Material, gather
from schemabank.report.examine import chosen_group, chosen_setting
from schemabank.report.plain import plain_fields
from schemabank.report.reading.packed import unpacked
from schemabank.report.reading.question import Question
from schemabank.report.reading.runs import read_runs
from schemabank.report.reading.table import MOST_ITEMS
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections.cells import number

POWER, LEAST_POWER, MOST_POWER = 0.8, 0.1, 0.999
SEEDS = "4,8,12,16,24"
STATED = ("seeds", "items", "answers")
SPREAD = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
FEWEST_PILOT_SEEDS = 2
TEST_SIZES = {"gsm8k": 1319}  # items of test splits that no setting states; Cobbe et al. 2021
SOURCES = ("seeds", "items", "single answers")
ADVICE = {
    "seeds": "more seeds help most",
    "items": "more items help most",
    "single answers": "more seeds and more items help alike",
}


@dataclass(frozen=True)
class Wanted:
    """What a comparison shall find.

    Attributes:
        seeds: numbers of seeds to plan for, with commas between them.
        items: numbers of items likewise; ``None`` for the pilot's own and, where it is known, that
            of the whole test split.
        difference: in points, for which the fewest seeds are wanted; ``None`` for none.
        power: probability of finding a difference.
    """

    seeds: str = SEEDS
    items: str | None = None
    difference: float | None = None
    power: float = POWER

    def check(self) -> None:
        """Refuse a power or difference that no plan can be made for."""
        if not LEAST_POWER <= self.power <= MOST_POWER:
            raise InputError(
                f"--power {self.power}: allowed are probabilities from {LEAST_POWER} to "
                f"{MOST_POWER}: give one such as 0.8"
            )
        if self.difference is not None and not 0 < self.difference <= MOST_POINTS:
            raise InputError(
                f"--difference {self.difference}: allowed are percentage points above 0 and up to "
                f"{MOST_POINTS}: give the difference to find, such as 1.0"
            )


@dataclass(frozen=True)
class SeedsNeeded:
    """The fewest seeds that find the wanted difference; ``None`` where no number does."""

    num_items: int
    num_seeds: int | None


@dataclass(frozen=True)
class ComparisonPlan:
    """What a pilot, or stated spreads, say about larger comparisons.

    Attributes:
        treatment: arm; ``None`` for stated spreads, as are all that name the pilot.
        control: arm.
        contrast: the settings that are compared.
        metric: name of the score.
        split: that the pilot was scored on.
        group: part of the split.
        power: probability of finding the detectable differences.
        components: of the difference's variance, estimated from the pilot or stated.
        error_shares: of the pilot's squared standard error, by what adds it; they sum to 1.
        seed_error_factors: how far the true error of seeds and single answers may be from the
            pilot's, at 95 %.
        planned: a prediction for every number of seeds and items, by seeds.
        difference: that shall be found, as a share; ``None`` where none was asked for.
        needed: the fewest seeds that find it, for every number of items.
    """

    treatment: str | None
    control: str | None
    contrast: str | None
    metric: str | None
    split: str | None
    group: str | None
    power: float
    components: stats.VarianceComponents
    error_shares: dict[str, float] | None
    seed_error_factors: stats.Interval | None
    planned: list[stats.PlannedDifference]
    difference: float | None = None
    needed: list[SeedsNeeded] = field(default_factory=list)


def plan(
    path: Path | None, spreads: str | None, question: Question, wanted: Wanted
) -> ComparisonPlan:
    """Plan a comparison from a pilot, or from spreads that are stated instead.

    Args:
        path: folder of the pilot's runs, or their packed record.
        spreads: standard deviations in points, as ``seeds=5.4,items=8.2,answers=46``.
        question: of a pilot.
        wanted: what shall be found.

    Raises:
        InputError: both or neither were given, or as in `plan_comparison` and `plan_stated`.
    """
    if path is not None and spreads is None:
        with unpacked(path) as folder:
            return plan_comparison(folder, question, wanted)
    if path is None and spreads is not None:
        return plan_stated(spreads, question, wanted)
    given = "both were given" if path is not None else "neither was given"
    raise InputError(
        f"a plan rests on a pilot's runs or on --spreads, and {given}: name a folder of runs, or "
        "state the spreads, as --spreads seeds=5.4,items=8.2,answers=46"
    )


def plan_stated(spreads: str, question: Question, wanted: Wanted) -> ComparisonPlan:
    """Predict what seeds and items find if the difference of two arms varies as stated.

    Raises:
        InputError: the spreads are no standard deviations, the numbers of items are not given, or
            something is asked of runs.
    """
    wanted.check()
    if question != Question():
        raise InputError(
            "--spreads names no runs, so no arms, setting or part can be chosen: leave out "
            "--treatment, --control, --primary and --group"
        )
    if wanted.items is None:
        raise InputError("--spreads needs the numbers of items: give them, as --items 500,1319")
    components = _stated_components(spreads)
    nothing = dict.fromkeys(("treatment", "control", "contrast", "metric", "split", "group"))
    items = _parse_numbers("--items", wanted.items, 2)
    return ComparisonPlan(
        **nothing,
        power=wanted.power,
        components=components,
        error_shares=None,
        seed_error_factors=None,
        **_predicted(components, wanted, items),
    )


def plan_comparison(path: Path, question: Question, wanted: Wanted) -> ComparisonPlan:
    """Estimate variances from a pilot, and predict what more seeds and items would find.

    Args:
        path: folder of the pilot's runs.
        question: which arms, setting and part of the split are compared, as in a report.
        wanted: what shall be found.

    Raises:
        InputError: the runs cannot be compared as asked, say nothing about variances, or numbers
            are not allowed.
    """
    if not path.is_dir():
        raise InputError(
            f"{str(path)!r} is no folder: allowed is a folder of runs, whose items have scores of "
            "their own, or its packed record (.tar.xz), and not a table of results; name one, or "
            "state --spreads"
        )
    wanted.check()
    _parse_numbers("--seeds", wanted.seeds, stats.FEWEST_SEEDS)
    num_items = None if wanted.items is None else _parse_numbers("--items", wanted.items, 2)
    runs = read_runs(path)
    arms = choose_contrast(runs, question.treatment, question.control)
    group = chosen_group(runs, arms, question.group)
    material = gather(path, runs, group, arms, chosen_setting(runs, arms, question.primary))
    scores = _pilot_scores(material)
    components = stats.variance_components(scores.treatment, scores.control, scores.clusters)
    return ComparisonPlan(
        treatment=arms[0],
        control=arms[1],
        contrast=material.comparison.primary.contrast,
        metric=runs.score,
        split=runs.split,
        group=group,
        power=wanted.power,
        components=components,
        error_shares=_error_shares(components),
        seed_error_factors=components.seed_error_factors(),
        **_predicted(components, wanted, num_items or _usual_items(material, components.num_items)),
    )


def plan_json(plan: ComparisonPlan) -> dict[str, object]:
    """Return everything in full precision, its keys in their order."""
    return plain_fields(plan)


def heading(plan: ComparisonPlan) -> list[str]:
    """Return one line about the pilot or the spreads, and one about the table below."""
    found = plan.components
    table = (
        f"smallest true difference that is found with {100 * plan.power:.3g} % power, in points:"
    )
    named = zip(SOURCES, (found.seed, found.item, found.cell), strict=True)
    spreads = ", ".join(f"{name} {100 * variance**0.5:.2f}" for name, variance in named)
    if plan.treatment is None:
        return [f"stated standard deviations of the difference in points: {spreads}", table]
    alone = found.num_clusters == found.num_items
    clusters = "" if alone else f" in {found.num_clusters:,} clusters"
    pilot = (
        f"pilot: {plan.treatment} against {plan.control} ({plan.contrast}; {plan.metric}, split "
        f"{plan.split}, part {plan.group}): {found.num_seeds} seeds, {found.num_items:,} items"
        f"{clusters}; standard deviations of the difference in points: {spreads}"
    )
    return [marked_line(pilot), table]


def table(plan: ComparisonPlan) -> PlainTable:
    """Return detectable differences in points: numbers of seeds as rows, of items as columns."""
    cells: dict[int, dict[str, str]] = {}
    for found in plan.planned:
        assert found.detectable is not None
        row = cells.setdefault(found.num_seeds, {})
        row[f"{found.num_items:,} items"] = number(100 * found.detectable)
    rows = [[str(num_seeds), *row.values()] for num_seeds, row in cells.items()]
    return "", ["seeds", *next(iter(cells.values()))], rows


def conclusions(plan: ComparisonPlan) -> list[str]:
    """Return the seeds needed, what to have more of, and how far the pilot may be wrong."""
    needed = _needed_lines(plan)
    if plan.error_shares is None or plan.seed_error_factors is None:
        return needed
    found = plan.components
    most = max(plan.error_shares, key=plan.error_shares.__getitem__)
    low, high = plan.seed_error_factors
    return [
        *needed,
        f"At the pilot's {found.num_seeds} seeds and {found.num_items:,} items, {most} add "
        f"{100 * plan.error_shares[most]:.0f} % of the squared standard error: {ADVICE[most]}.",
        f"With {found.num_seeds} seeds the pilot shows the error of seeds and single answers only "
        f"roughly: the true one is {low:.2g} to {high:.2g} times the estimate (95 % interval).",
    ]


def _needed_lines(plan: ComparisonPlan) -> list[str]:
    """One line a number of items."""
    if plan.difference is None:
        return []
    size = f"{100 * plan.difference:.4g} points, found with {100 * plan.power:.3g} % power"
    lines = []
    for found in plan.needed:
        takes = f"{found.num_seeds:,} seeds" if found.num_seeds else "more items"
        no = "" if found.num_seeds else ": no number of seeds is enough"
        lines.append(f"{size}, takes {takes} with {found.num_items:,} items{no}.")
    return lines


class _Predicted(TypedDict):
    planned: list[stats.PlannedDifference]
    difference: float | None
    needed: list[SeedsNeeded]


def _predicted(
    components: stats.VarianceComponents, wanted: Wanted, items: Sequence[int]
) -> _Predicted:
    """The predictions of a plan, by their names in it."""
    num_seeds, power = _parse_numbers("--seeds", wanted.seeds, stats.FEWEST_SEEDS), wanted.power
    difference = None if wanted.difference is None else wanted.difference / 100
    needed = []
    if difference is not None:
        for m in items:
            fewest = stats.seeds_needed(components, m, difference, power=power)
            needed.append(SeedsNeeded(m, fewest))
    planned = [stats.planned(components, n, m, power=power) for n in num_seeds for m in items]
    return _Predicted(planned=planned, difference=difference, needed=needed)


def _stated_components(text: str) -> stats.VarianceComponents:
    """Variances from standard deviations in points, each named once."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (cell.strip() for cell in part.partition("="))
        number = float(value) if SPREAD.fullmatch(value) else -1.0
        if name not in STATED or name in found or not 0 <= number <= MOST_POINTS:
            raise InputError(
                f"--spreads {text!r}: {part!r} is not allowed, allowed are {', '.join(STATED)}, "
                f"each once, with standard deviations of the difference from 0 to {MOST_POINTS} "
                "points: write them as seeds=5.4,items=8.2,answers=46"
            )
        found[name] = number / 100
    if len(found) < len(STATED) or not any(found.values()):
        raise InputError(
            f"--spreads {text!r} does not state all of {', '.join(STATED)}, or all are 0: give "
            "each, at least one above 0, as seeds=5.4,items=8.2,answers=46"
        )
    seed, item, cell = (found[name] ** 2 for name in STATED)
    return stats.VarianceComponents(seed, item, cell, num_seeds=0, num_items=0, num_clusters=0)


def _parse_numbers(option: str, text: str, least: int) -> list[int]:
    """Numbers with commas between them, sorted, each once."""
    found = set()
    for part in text.split(","):
        cell = part.strip()
        is_number = cell.isascii() and cell.isdigit() and len(cell) <= len(str(MOST_ITEMS))
        if not is_number or not least <= int(cell) <= MOST_ITEMS:
            raise InputError(
                f"{option} {text!r}: {cell!r} is not allowed, allowed are whole numbers from "
                f"{least} to {MOST_ITEMS:,}: write them with commas between them, as 8,16"
            )
        found.add(int(cell))
    return sorted(found)


def _pilot_scores(material: Material) -> PairedScores:
    """Both arms' scores; refused where they say nothing about variances."""
    treatment, control = material.arms
    found = material.by_item.paired_scores(material.group, treatment, control, material.settings)
    shared = 0 if found is None else len(found.treatment)
    if found is None or shared < FEWEST_PILOT_SEEDS:
        raise InputError(
            f"{treatment!r} and {control!r} share {shared} seed{'s' * (shared != 1)}, allowed are "
            f"{FEWEST_PILOT_SEEDS} or more: run both arms with the same seeds"
        )
    return found


def _error_shares(components: stats.VarianceComponents) -> dict[str, float]:
    parts = components.error_parts(components.num_seeds, components.num_items)
    if not any(parts):
        raise InputError(
            "the arms differ by the same amount for every seed and item, so nothing tells how many "
            "are needed: allowed is a pilot whose differences vary, take other arms or more items"
        )
    return {name: part / sum(parts) for name, part in zip(SOURCES, parts, strict=True)}


def _usual_items(material: Material, num_items: int) -> Sequence[int]:
    """The pilot's number of items, and that of the whole test split if it is known and larger."""
    run = next(run for run in material.runs.runs if run.arm == material.arms[0])
    task = run.config["task"]
    settings = task.get(task["name"]) or {}
    whole = TEST_SIZES.get(task["name"]) or settings.get("test_size")
    is_whole = material.runs.split == "test" and run.config["eval"]["limit"] is None
    return [num_items] if is_whole or not whole or whole <= num_items else [num_items, whole]
