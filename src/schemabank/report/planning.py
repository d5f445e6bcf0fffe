"""The command ``schemabank power``: how many seeds and items a comparison of two arms takes.

A pilot, which is a folder of runs, tells what the difference of two arms varies with. From that the
smallest difference follows that other numbers of seeds and items would find.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.common.tables import PlainTable
from schemabank.report.comparing.items import PairedScores
from schemabank.report.comparing.material import Material, gather
from schemabank.report.examine import chosen_group
from schemabank.report.page.markup import printable
from schemabank.report.plain import plain_fields
from schemabank.report.reading.question import Question
from schemabank.report.reading.runs import read_runs
from schemabank.report.reading.table import MOST_ITEMS
from schemabank.report.reading.tabulate import choose_contrast
from schemabank.report.sections.cells import number

POWER = 0.8
FEWEST_PILOT_SEEDS = 2
TEST_SIZES = {"gsm8k": 1319}  # items of test splits that no setting states; Cobbe et al. 2021
SOURCES = ("seeds", "items", "single answers")
ADVICE = {
    "seeds": "more seeds help most",
    "items": "more items help most",
    "single answers": "more seeds and more items help alike",
}


@dataclass(frozen=True)
class ComparisonPlan:
    """What a pilot says about larger comparisons of its arms.

    Attributes:
        treatment: arm.
        control: arm.
        contrast: the settings that are compared.
        metric: name of the score.
        split: that the pilot was scored on.
        group: part of the split.
        power: probability of finding the detectable differences.
        components: of the difference's variance, estimated from the pilot.
        error_shares: of the pilot's squared standard error, by what adds it; they sum to 1.
        seed_error_factors: how far the true error of seeds and single answers may be from the
            pilot's, at 95 %.
        planned: a prediction for every number of seeds and items, by seeds.
    """

    treatment: str
    control: str
    contrast: str
    metric: str
    split: str
    group: str
    power: float
    components: stats.VarianceComponents
    error_shares: dict[str, float]
    seed_error_factors: stats.Interval
    planned: list[stats.PlannedDifference]


def plan_comparison(
    path: Path, question: Question, seeds: str, items: str | None
) -> ComparisonPlan:
    """Estimate variances from a pilot, and predict what more seeds and items would find.

    Args:
        path: folder of the pilot's runs.
        question: which arms, setting and part of the split are compared, as in a report.
        seeds: numbers of seeds to plan for, with commas between them.
        items: numbers of items likewise; ``None`` for the pilot's own and, where it is known, that
            of the whole test split.

    Raises:
        InputError: the runs cannot be compared as asked, say nothing about variances, or numbers
            are not allowed.
    """
    if not path.is_dir():
        raise InputError(
            f"{str(path)!r} is no folder: allowed is a folder of runs, whose items have scores of "
            "their own, and not a table of results; name the folder"
        )
    num_seeds = _parse_numbers("--seeds", seeds, stats.FEWEST_SEEDS)
    num_items = None if items is None else _parse_numbers("--items", items, 2)
    runs = read_runs(path)
    group = chosen_group(runs, question.group)
    arms = choose_contrast(runs, question.treatment, question.control)
    material = gather(path, runs, group, arms, question.primary)
    scores = _pilot_scores(material)
    components = stats.variance_components(scores.treatment, scores.control, scores.clusters)
    return ComparisonPlan(
        treatment=arms[0],
        control=arms[1],
        contrast=material.comparison.primary.contrast,
        metric=runs.score,
        split=runs.split,
        group=group,
        power=POWER,
        components=components,
        error_shares=_error_shares(components),
        seed_error_factors=components.seed_error_factors(),
        planned=[
            stats.planned(components, n, m, power=POWER)
            for n in num_seeds
            for m in num_items or _usual_items(material, components.num_items)
        ],
    )


def plan_json(plan: ComparisonPlan) -> dict[str, object]:
    """Return everything in full precision, its keys in their order."""
    return plain_fields(plan)


def heading(plan: ComparisonPlan) -> list[str]:
    """Return one line about the pilot, and one about the table below."""
    found = plan.components
    named = zip(SOURCES, (found.seed, found.item, found.cell), strict=True)
    spreads = ", ".join(f"{name} {100 * variance**0.5:.2f}" for name, variance in named)
    alone = found.num_clusters == found.num_items
    clusters = "" if alone else f" in {found.num_clusters:,} clusters"
    pilot = (
        f"pilot: {plan.treatment} against {plan.control} ({plan.contrast}; {plan.metric}, split "
        f"{plan.split}, part {plan.group}): {found.num_seeds} seeds, {found.num_items:,} items"
        f"{clusters}; standard deviations of the difference in points: {spreads}"
    )
    table = (
        f"smallest true difference that is found with {100 * plan.power:.0f} % power, in points:"
    )
    return [printable(pilot), table]


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
    """Return what to have more of, and how far the pilot may be wrong."""
    found = plan.components
    most = max(plan.error_shares, key=plan.error_shares.__getitem__)
    low, high = plan.seed_error_factors
    return [
        f"At the pilot's {found.num_seeds} seeds and {found.num_items:,} items, {most} add "
        f"{100 * plan.error_shares[most]:.0f} % of the squared standard error: {ADVICE[most]}.",
        f"With {found.num_seeds} seeds the pilot shows the error of seeds and single answers only "
        f"roughly: the true one is {low:.2g} to {high:.2g} times the estimate (95 % interval).",
    ]


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
