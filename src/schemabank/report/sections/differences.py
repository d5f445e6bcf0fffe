"""Treatment against control at every setting: differences, effect sizes, ratios and peaks."""

from schemabank.common.tables import PlainTable
from schemabank.report.comparing.comparison import Comparison, Contrast, Crossed, Paired, Welch
from schemabank.report.comparing.peaks import Peak
from schemabank.report.sections.cells import interval, number, percent, place, points, short
from schemabank.report.sections.chart import ALL, MOST_SETTINGS, Chart, Labels, evenly, left_out
from schemabank.report.sections.forest import Forest, forest, line

MOST_DOTS = 400  # of single seeds


def chart(comparison: Comparison, labels: Labels) -> Chart | None:
    """Return the differences at every setting, with those of single seeds."""
    contrasts = comparison.every_contrast
    shown = contrasts[-MOST_SETTINGS:]
    dots = [
        {"label": _label(contrast), "seed": seed, "difference": 100 * difference}
        for contrast in shown
        for seed, difference in contrast.differences.items()
    ]
    drawn = evenly(dots, MOST_DOTS)
    adjusted = " The intervals are not adjusted for several settings; the verdicts are."
    which = "over seeds and items where the arms share two seeds"
    if any(contrast.test == "items" for contrast in contrasts):
        which = "over items alone, of these very runs"
    which = which if comparison.counts_items else "paired by seed where the arms share two"
    found = Forest(
        name="differences",
        title="Differences, treatment less control",
        caption=f"Diamonds are mean differences with 95 % intervals, {which}; rings are single "
        f"seeds.{left_out(dots, len(drawn), 'seeds')}"
        f"{adjusted if len(contrasts) > 1 else ''}"
        f"{left_out(contrasts, len(shown), 'settings')}",
        rows=[line(_label(contrast), contrast.verdict) for contrast in shown],
        dots=drawn,
    )
    return forest(found, labels)


def tables(comparison: Comparison) -> list[PlainTable]:
    """Return differences, effect sizes, ratios and, over several settings, peaks."""
    found = [_differences_table(comparison), _effects_table(comparison), _ratios_table(comparison)]
    if comparison.peaks.seeds and len(comparison.contrasts) > 1:
        found.append(_peaks_table(comparison))
    return found


def _label(contrast: Contrast) -> str:
    return place(contrast.setting) or ALL


def _differences_table(comparison: Comparison) -> PlainTable:
    rows = [
        [
            place(c.setting),
            str(len(c.seeds)),
            *_test_cells(c.crossed),
            *_test_cells(c.paired),
            short(c.paired.sign_flip.p if c.paired else None),
            *_test_cells(c.welch),
            short(c.welch.label_permutation.p),
            c.verdict.outcome,
        ]
        for c in comparison.every_contrast
    ]
    head = ["epochs", "pairs", "over seeds and items", "95 % interval", "p", "Holm"]
    head += ["paired", "95 % interval", "p", "Holm", "sign flips"]
    head += ["Welch", "95 % interval", "p", "Holm", "labels", "verdict"]
    return "treatment against control: differences in points of percent", head, rows


def _test_cells(found: Crossed | Paired | Welch | None) -> list[str]:
    if found is None:
        return [""] * 4
    own = found.difference
    return [points(own.mean), interval(own.interval, 100), short(own.p), short(found.p_holm)]


def _effects_table(comparison: Comparison) -> PlainTable:
    rows = []
    for c in comparison.every_contrast:
        paired, g = c.paired, c.welch.g
        wins = (paired or c.welch).outperformance
        rows.append(
            [
                place(c.setting),
                number(g.corrected),
                interval(g.interval),
                number(paired.d_z.corrected if paired else None),
                interval(paired.d_z.interval if paired else None),
                number(wins.probability),
                interval(wins.interval),
                points(paired.detectable if paired else None).lstrip("+"),
                points(c.welch.detectable).lstrip("+"),
            ]
        )
    head = ["epochs", "Hedges' g", "95 % interval", "d_z", "95 % interval", "wins", "95 % interval"]
    head += ["paired detects", "Welch detects"]
    return (
        "treatment against control: effect sizes; differences found at 80 % power, in points",
        head,
        rows,
    )


def _ratios_table(comparison: Comparison) -> PlainTable:
    rows = [
        [
            place(c.setting),
            number(c.ratio.ratio),
            interval(c.ratio.interval) or ("unbounded" if c.ratio.bounded is False else ""),
            number(c.sd_ratio.ratio),
            interval(c.sd_ratio.interval),
            short(c.sd_ratio.p),
        ]
        for c in comparison.every_contrast
    ]
    head = ["epochs", "means", "95 % interval", "sds", "95 % interval", "p"]
    return "treatment over control: ratios", head, rows


def _peaks_table(comparison: Comparison) -> PlainTable:
    found = comparison.peaks
    rows = [
        [row.seed, *_peak_cells(row.treatment), *_peak_cells(row.control), number(row.ratio)]
        for row in found.seeds
    ]
    means = percent(found.mean_treatment), percent(found.mean_control)
    rows.append(["all", means[0], "", means[1], "", number(found.ratio_of_means)])
    head = ["seed", "treatment", "epochs", "control", "epochs", "ratio"]
    return "peaks over epochs, chosen on the scores shown", head, rows


def _peak_cells(peak: Peak) -> tuple[str, str]:
    return percent(peak.score), ", ".join(peak.settings)
