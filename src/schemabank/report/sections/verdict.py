"""The primary contrast in words: its verdict, what it is about, and what else bears on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemabank.report.comparing.comparison import Comparison
from schemabank.report.comparing.items import ItemComparison
from schemabank.report.sections.cells import interval, points, short
from schemabank.report.sections.groups import GroupContrast
from schemabank.stats import FEWEST_SEEDS

TESTS = {  # in words, where the name is none
    "crossed": "over seeds and items",
    "items": "over items alone, of these very runs",
}


@dataclass(frozen=True)
class Scoring:
    """What runs were scored by: the name of the score, and the part of the data, where known."""

    metric: str
    split: str | None = None
    group: str | None = None


def sentence(comparison: Comparison) -> str:
    """Return the primary contrast's verdict, with what it is about."""
    primary = comparison.primary
    test = TESTS.get(primary.test, primary.test)
    return (
        f"{comparison.treatment} against {comparison.control}, {primary.contrast} "
        f"({test}, {primary.chosen_by}): {primary.verdict.sentence}"
    )


def other_sentences(
    comparison: Comparison, scored: Scoring | None, groups: Sequence[GroupContrast]
) -> Iterator[str]:
    """Yield what is said of a margin, by seeds alone, and of the compared part as one of several.

    The last two are not the verdict; where one is another than that, its line says so first.
    """
    if (margin := comparison.primary.margin) is not None:
        yield f"Margin ({margin.declared_by}): {margin.verdict.sentence}"
    outcome, alone = comparison.primary.verdict.outcome, comparison.primary.over_seeds
    if alone is not None:
        differs = "" if alone.outcome == outcome else "Not the same as the verdict. "
        yield f"{differs}Other seeds on these very items: {alone.sentence}"
    own = next((row for row in groups if scored and row.group == scored.group), None)
    if own is not None and own.judged.outcome != outcome:
        what = f"As one of {len(groups)} parts of the split, adjusted by Holm"
        yield f"Not the same as the verdict. {what}: {own.judged.sentence}"


def paragraphs(
    comparison: Comparison,
    scored: Scoring | None,
    groups: Sequence[GroupContrast],
    items: ItemComparison | None,
) -> list[str]:
    """Return what a page says of the verdict, the headline first."""
    found = [headline(comparison, items), sentence(comparison)]
    found += other_sentences(comparison, scored, groups)
    if scored is not None:
        parts = [f"score: {scored.metric}"]
        parts += [f"split: {scored.split}"] if scored.split is not None else []
        parts += [f"part of it: {scored.group}"] if scored.group is not None else []
        found.append(f"What is compared: {'; '.join(parts)}.")
    if len(comparison.primary.holm_family) > 1:
        found.append(f"Holm's adjustment covers {comparison.primary.holm_covers}.")
    return found


def headline(comparison: Comparison, items: ItemComparison | None) -> str:
    """Return the primary contrast in one sentence: outcome, effect, interval and seeds."""
    found = comparison.primary.verdict
    known = "" if found.interval is None else f" (95 % interval {interval(found.interval, 100)})"
    p = "" if found.p is None else f", p = {short(found.p)}"
    outcome = f"{found.outcome[:1].upper()}{found.outcome[1:]}"
    few = f" Fewer than {FEWEST_SEEDS} seeds give no verdict."
    if comparison.primary.test == "items":
        few = f" No verdict: {comparison.primary_contrast.own.difference.why_no_verdict}."
    return (
        f"{outcome}: {points(found.difference)} points{known}{p}, "
        f"{_seeds_and_items(comparison, items)}{few if found.outcome == 'no verdict' else ''}"
    )


def _seeds_and_items(comparison: Comparison, items: ItemComparison | None) -> str:
    contrast = comparison.primary_contrast
    num = len(contrast.seeds)
    seeds = f"{num} seed{'s' * (num != 1)}"
    if contrast.test == "items":
        assert items is not None
        return f"a single run of each arm on {items.num_items:,} items, paired."
    if contrast.test == "crossed":
        assert items is not None
        return f"{seeds} and {items.num_items:,} items, paired."
    if contrast.test == "paired":
        return f"{seeds}, paired."
    numbers = contrast.treatment.num_seeds, contrast.control.num_seeds
    return f"{numbers[0]} against {numbers[1]} seeds, not paired."
