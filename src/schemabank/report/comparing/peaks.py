"""Each seed's best score over settings, as published tables like to report it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from schemabank.report.plain import EPOCHS
from schemabank.report.reading.table import ScoreTable, in_order

PEAK_NOTE = (
    "a peak over epochs is chosen on the scores that it is reported with: it overstates what the "
    "chosen setting would score on other items, the more so the noisier an arm is"
)


@dataclass(frozen=True)
class Peak:
    """The best score of a seed over the settings, and every setting that reaches it."""

    score: float
    settings: list[str] = field(metadata=EPOCHS)


@dataclass(frozen=True)
class SeedPeaks:
    """Both arms' peaks of one seed; the ratio is treatment over control."""

    seed: str
    treatment: Peak
    control: Peak
    ratio: float | None


@dataclass(frozen=True)
class Peaks:
    """Peaks of the seeds that both arms have."""

    note: str
    seeds: list[SeedPeaks]
    mean_treatment: float | None
    mean_control: float | None
    ratio_of_means: float | None


def find_peaks(table: ScoreTable, treatment: str, control: str, settings: Sequence[str]) -> Peaks:
    """Return both arms' peaks over settings."""
    first, second = (peaks_by_seed(table, arm, settings) for arm in (treatment, control))
    seeds = in_order([seed for seed in first if seed in second])
    above = sum((first[seed][0] for seed in seeds), Fraction(0))
    below = sum((second[seed][0] for seed in seeds), Fraction(0))
    return Peaks(
        note=PEAK_NOTE,
        seeds=[
            SeedPeaks(
                seed=seed,
                treatment=Peak(float(first[seed][0]), first[seed][1]),
                control=Peak(float(second[seed][0]), second[seed][1]),
                ratio=_quotient(first[seed][0], second[seed][0]),
            )
            for seed in seeds
        ],
        mean_treatment=_quotient(above, Fraction(len(seeds))),
        mean_control=_quotient(below, Fraction(len(seeds))),
        ratio_of_means=_quotient(above, below),
    )


def _quotient(above: Fraction, below: Fraction) -> float | None:
    return float(above / below) if below else None


def peaks_by_seed(
    table: ScoreTable, arm: str, settings: Sequence[str]
) -> dict[str, tuple[Fraction, list[str]]]:
    """Return each seed's best score, and every setting that reaches it."""
    found: dict[str, tuple[Fraction, list[str]]] = {}
    for name in settings:
        for seed, score in table.scores(arm, name).items():
            best, at = found.get(seed, (Fraction(-1), []))
            if score >= best:
                found[seed] = (score, [*at, name] if score == best else [name])
    return found
