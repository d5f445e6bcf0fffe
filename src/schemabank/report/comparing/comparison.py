"""The numbers of a comparison of two arms, at every setting and pooled.

Where the scores of single items are known, verdicts are over seeds and items; else over seeds.

The primary contrast is each seed's mean over the settings, unless one setting was named; Holm's
adjustment covers the family of settings. Every figure comes from `schemabank.stats`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from schemabank import stats
from schemabank.common.errors import InputError
from schemabank.report.comparing.margins import MarginJudged
from schemabank.report.comparing.peaks import Peaks, find_peaks
from schemabank.report.comparing.references import Reference, find_references
from schemabank.report.plain import EPOCHS, KEY
from schemabank.report.reading.itemresults import TASKS
from schemabank.report.reading.table import ScoreTable

CONFIDENCE = 0.95
MOST_RESAMPLES, FEWEST_RESAMPLES = 10_000, 1_000
MOST_DRAWN = 10**7  # scores in all arrangements of a test
Test = Literal["crossed", "items", "paired", "welch"]
OfItems = stats.CrossedDifference | stats.OverItems
# Two arms' difference over seeds and items, each seed's mean over settings; ``None`` if unknown.
# Where each arm has a single run, the difference is over items alone.
ItemDifference = Callable[[str, str, Sequence[str]], OfItems | None]


@dataclass(frozen=True)
class ArmAt:
    """One arm at one setting; ``None`` for each seed's mean over the contrast's."""

    arm: str
    setting: str | None = field(metadata=EPOCHS)
    scores: dict[str, float]
    summary: stats.ArmSummary


@dataclass(frozen=True)
class Paired:
    """What needs runs that share a seed."""

    difference: stats.PairedDifference
    p_holm: float | None
    d_z: stats.Effect
    sign_flip: stats.PermutationTest
    outperformance: stats.Outperformance
    detectable: float | None


@dataclass(frozen=True)
class Crossed:
    """What needs runs that share a seed, and their scores of single items."""

    difference: OfItems
    p_holm: float | None


@dataclass(frozen=True)
class Welch:
    """What takes the seeds of both arms for independent."""

    difference: stats.Difference
    p_holm: float | None
    g: stats.Effect
    label_permutation: stats.PermutationTest
    outperformance: stats.Outperformance
    detectable: float | None


@dataclass(frozen=True)
class Contrast:
    """Treatment against control; differences and ratios are of the treatment.

    Attributes:
        setting: the setting; ``None`` for each seed's mean over all that both arms have.
        seeds: that both arms have, in the order of pairs.
        differences: by seed, treatment less control, of pairs.
        left_out: runs without a partner, by arm, which the paired figures do not use.
        ratio: of means, of pairs where the verdict is; with Fieller's interval.
        sd_ratio: of the arms' standard deviations.
        crossed: the difference over seeds and items; ``None`` where items are not known.
        test: that the verdict rests on: where two seeds are shared the crossed one, or the paired
            one where items are not known; of single runs that over items; else Welch's.
        verdict: on the p-value adjusted by Holm at a setting, unadjusted for the primary contrast.
    """

    setting: str | None = field(metadata=EPOCHS)
    seeds: list[str]
    differences: dict[str, float]
    left_out: dict[str, list[str]]
    treatment: stats.ArmSummary
    control: stats.ArmSummary
    paired: Paired | None
    welch: Welch
    ratio: stats.MeanRatio
    sd_ratio: stats.SpreadRatio
    crossed: Crossed | None
    test: Test
    verdict: stats.Verdict

    @property
    def own(self) -> Crossed | Paired | Welch:
        """What the verdict rests on."""
        return _own(self.test, self.crossed, self.paired, self.welch)


@dataclass(frozen=True)
class Primary:
    """Which contrast counts, and what Holm's adjustment covers.

    Attributes:
        over_seeds: what seeds say on these very items, by the paired test; ``None`` where the
            verdict is that itself.
        margin: what it says about a margin; ``None`` where none was given.
    """

    contrast: str
    chosen_by: str
    test: Test
    verdict: stats.Verdict
    over_seeds: stats.Verdict | None
    holm_family: list[str]
    holm_covers: str
    margin: MarginJudged | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that is computed from the rows alone."""

    setting_name: str = field(metadata={KEY: "setting"})
    treatment: str
    control: str
    confidence: float
    primary: Primary
    pooled: Contrast
    contrasts: list[Contrast]
    arms: list[ArmAt]
    references: list[Reference]
    peaks: Peaks

    @property
    def primary_contrast(self) -> Contrast:
        """The one that counts."""
        own = [c for c in self.contrasts if c.verdict == self.primary.verdict]
        return own[0] if own and self.pooled.verdict != self.primary.verdict else self.pooled

    @property
    def every_contrast(self) -> list[Contrast]:
        """Those at settings and, where there are several, the pooled one."""
        return [*self.contrasts, *([self.pooled] if len(self.contrasts) > 1 else [])]

    @property
    def counts_items(self) -> bool:
        """Whether an interval counts the variation of items, not that of seeds alone."""
        return any(contrast.test in {"crossed", "items"} for contrast in self.every_contrast)


def compare(
    table: ScoreTable,
    treatment: str,
    control: str,
    primary: str | None,
    items: ItemDifference | None = None,
) -> Comparison:
    """Compare two arms of a table.

    Args:
        table: with both arms.
        treatment: arm.
        control: arm.
        primary: setting that was declared primary; ``None`` for the pooled contrast.
        items: both arms' difference over seeds and items, where the scores of these are known.

    Raises:
        InputError: no such setting, or no seed of an arm has them all.
    """
    settings = table.settings(treatment, control)
    if not settings:
        raise InputError(
            f"{treatment!r} and {control!r} have no setting in common: name two arms that were run "
            "at the same settings"
        )
    if primary is not None and primary not in settings:
        place = "as tasks" if table.of_tasks else "in the column epochs"
        raise InputError(
            f"--primary {primary!r}: {treatment} and {control} have "
            f"{', '.join(map(repr, settings))} {place}: name one of these"
        )
    arms = treatment, control

    def contrast(name: str | None, settings: Sequence[str]) -> Contrast:
        crossed = None if items is None else items(treatment, control, settings)
        return _contrast(name, _scores_of_both(table, arms, settings), crossed)

    contrasts = _family([contrast(name, [name]) for name in settings], primary)
    pooled = contrast(None, settings)
    chosen = pooled if primary is None else contrasts[settings.index(primary)]
    return Comparison(
        setting_name=table.setting_name,
        treatment=treatment,
        control=control,
        confidence=CONFIDENCE,
        primary=_primary(chosen, primary, settings, table.setting_name),
        pooled=pooled,
        contrasts=contrasts,
        arms=_arms_at(table, settings),
        references=find_references(table),
        peaks=find_peaks(table, treatment, control, [] if table.of_tasks else settings),
    )


Runs = tuple[dict[str, float], dict[str, float]]


def _scores_of_both(table: ScoreTable, arms: tuple[str, str], settings: Sequence[str]) -> Runs:
    """Both arms' scores by seed, each a mean over settings."""
    first, second = (_floats(table.means(arm, settings)) for arm in arms)
    for arm, found in zip(arms, (first, second), strict=True):
        if not found:
            raise InputError(f"no seed of {arm!r} in {table.name} has {_rows_at(table, settings)}")
    return first, second


def _rows_at(table: ScoreTable, settings: Sequence[str]) -> str:
    """What a seed lacks that has not all settings, and the mend."""
    names = ", ".join(settings)
    if table.of_tasks:
        return f"all of the tasks {names}: add the missing evaluations, or leave a task out"
    return f"a row at each of epochs {names}: give the missing rows, or tables of fewer settings"


def _floats(scores: Mapping[str, Fraction]) -> dict[str, float]:
    return {seed: float(score) for seed, score in scores.items()}


def _family(raw: Sequence[Contrast], primary: str | None) -> list[Contrast]:
    """Adjust the p-values of contrasts at settings; what cannot be tested counts as 1."""
    crossed = stats.holm([_p_or_1(c.crossed) for c in raw])
    paired = stats.holm([_p_or_1(c.paired) for c in raw])
    welch = stats.holm([_p_or_1(c.welch) for c in raw])
    return [
        _adjusted(contrast, p_values, 1 if contrast.setting == primary else len(raw))
        for contrast, *p_values in zip(raw, crossed, paired, welch, strict=True)
    ]


def _adjusted(contrast: Contrast, p_values: Sequence[float], num: int) -> Contrast:
    """Add adjusted p-values; the verdict rests on them where it is one of several."""
    crossed, paired, welch = p_values
    judged = replace(
        contrast,
        crossed=contrast.crossed and replace(contrast.crossed, p_holm=crossed),
        paired=contrast.paired and replace(contrast.paired, p_holm=paired),
        welch=replace(contrast.welch, p_holm=welch),
    )
    if num == 1:
        return judged
    own = judged.own
    p = None if own.difference.p is None else own.p_holm
    verdict = stats.verdict(own.difference, p=p, num_comparisons=num)
    return replace(judged, verdict=verdict)


def _p_or_1(found: Crossed | Paired | Welch | None) -> float:
    return 1.0 if found is None or found.difference.p is None else found.difference.p


def _own(
    test: Test, crossed: Crossed | None, paired: Paired | None, welch: Welch
) -> Crossed | Paired | Welch:
    found = {"crossed": crossed, "items": crossed, "paired": paired, "welch": welch}[test]
    assert found is not None
    return found


def _contrast(setting: str | None, runs: Runs, items: OfItems | None) -> Contrast:
    """Compare, without any adjustment."""
    first, second = runs
    seeds = [seed for seed in first if seed in second]
    a, b = list(first.values()), list(second.values())
    pairs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    paired = _compare_paired(*pairs) if seeds else None
    welch = _compare_welch(a, b)
    crossed = None if items is None else Crossed(items, None)
    test: Test = "welch" if len(seeds) < 2 else "paired" if crossed is None else "crossed"
    test = "items" if isinstance(items, stats.OverItems) else test
    own = _own(test, crossed, paired, welch)
    by_pairs = test in {"crossed", "paired"}
    return Contrast(
        setting=setting,
        seeds=seeds,
        differences={seed: first[seed] - second[seed] for seed in seeds},
        left_out={
            "treatment": [seed for seed in first if seed not in second],
            "control": [seed for seed in second if seed not in first],
        },
        treatment=stats.summarise_arm(a),
        control=stats.summarise_arm(b),
        paired=paired,
        welch=welch,
        ratio=stats.ratio_of_means(*(pairs if by_pairs else (a, b)), paired=by_pairs),
        sd_ratio=stats.sd_ratio(a, b),
        crossed=crossed,
        test=test,
        verdict=stats.verdict(own.difference),
    )


def _compare_paired(a: list[float], b: list[float]) -> Paired:
    difference = stats.paired_difference(a, b)
    sd, num = difference.sd, difference.num_seeds
    return Paired(
        difference=difference,
        p_holm=None,
        d_z=stats.paired_d_z(a, b),
        sign_flip=stats.sign_flip_test(a, b, num_resamples=_num_resamples(len(a))),
        outperformance=stats.paired_outperformance(a, b),
        detectable=stats.detectable_difference(sd=sd, num_seeds=num) if sd else None,
    )


def _compare_welch(a: list[float], b: list[float]) -> Welch:
    difference = stats.welch_difference(a, b)
    error, df = difference.standard_error, difference.df
    return Welch(
        difference=difference,
        p_holm=None,
        g=stats.hedges_g(a, b),
        label_permutation=stats.label_test(a, b, num_resamples=_num_resamples(len(a) + len(b))),
        outperformance=stats.unpaired_outperformance(a, b),
        detectable=stats.detectable_from_error(error, df) if error and df is not None else None,
    )


def at_settings(setting_name: str, names: Sequence[str]) -> str:
    """Return settings as a reader knows them: ``epochs 2 and 4``; nothing where nothing varies."""
    setting_name = "task" if setting_name == TASKS and len(names) == 1 else setting_name
    *rest, last = (name or "(empty)" for name in names)
    listed = f"{', '.join(rest)} and {last}" if rest else last
    return f"{setting_name} {listed}" if setting_name and any(names) else ""


def _num_resamples(num_scores: int) -> int:
    """How many arrangements to draw: fewer of so many scores that they say next to the same."""
    return max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, MOST_DRAWN // num_scores))


def _primary(chosen: Contrast, primary: str | None, settings: Sequence[str], name: str) -> Primary:
    contrast, chosen_by = at_settings(name, settings) or "the only setting", "default"
    if primary is not None:
        contrast, chosen_by = at_settings(name, [primary]), "--primary"
    elif len(settings) > 1:
        contrast = f"mean over {name}"
        chosen_by = f"default: each seed's mean over all {name}"
    by_items = chosen.test == "crossed" and chosen.paired is not None
    first = "p-values over seeds and items" if by_items else "paired p-values"
    others = "their paired and Welch p-values" if by_items else "their Welch p-values"
    family = "as families of their own" if by_items else "as a family of its own"
    return Primary(
        contrast=contrast,
        chosen_by=chosen_by,
        test=chosen.test,
        verdict=chosen.verdict,
        over_seeds=(
            stats.verdict(chosen.paired.difference) if by_items and chosen.paired else None
        ),
        holm_family=list(settings),
        holm_covers=(
            f"the {first} of the {len(settings)} settings"
            + (f" of {name}" if name else "")
            + f" and, {family}, {others}; not the pooled contrast, sd "
            "ratios or permutation tests. The primary contrast's verdict rests on its unadjusted "
            "p-value, which is fair only if it was declared before the scores were seen"
        ),
    )


def _arms_at(table: ScoreTable, settings: Sequence[str]) -> list[ArmAt]:
    """Every arm at every setting, and its mean over those of the contrast if it has them all."""
    found = []
    for arm in table.trained:
        own = table.settings(arm)
        found += [_arm_at(arm, setting, table.scores(arm, setting)) for setting in own]
        pooled = table.means(arm, settings) if set(settings) <= set(own) else {}
        found += [_arm_at(arm, None, pooled)] if pooled else []
    return found


def _arm_at(arm: str, setting: str | None, exact: Mapping[str, Fraction]) -> ArmAt:
    scores = _floats(exact)
    return ArmAt(arm, setting, scores, stats.summarise_arm(list(scores.values())))
