"""Statistics of comparisons: arrays in, numbers out.

What an interval speaks of depends on what was drawn. Intervals over seeds (`summarise_arm`,
`paired_difference`, `welch_difference`) take the test items as they are; intervals over items
(`wilson_interval`, `clustered_interval`, `difference_over_items`) take the trained weights as they
are; only `crossed_difference`, `stratified_difference` and `pigeonhole_interval` speak of other
seeds and other items.

Where a spread cannot be known (one seed, or no spread at all) the figure is ``None``, never an
interval of width 0; anything that is no score raises `InputError`. How often every interval covers
what it should is simulated by ``benchmarks/coverage.py`` and recorded in ``results/coverage.json``.
"""

from schemabank.stats.arms import ArmSummary, SpreadRatio, sd_ratio, summarise_arm
from schemabank.stats.bootstrap import bootstrap_interval
from schemabank.stats.checks import Interval
from schemabank.stats.contrasts import (
    FEWEST_SEEDS,
    Difference,
    PairedDifference,
    paired_difference,
    welch_difference,
)
from schemabank.stats.crossed import CrossedDifference, crossed_difference, pigeonhole_interval
from schemabank.stats.effects import (
    Effect,
    Outperformance,
    hedges_g,
    paired_d_z,
    paired_outperformance,
    unpaired_outperformance,
)
from schemabank.stats.items import (
    McNemar,
    clustered_interval,
    mcnemar,
    resampled_ratio_interval,
    wilson_interval,
)
from schemabank.stats.margins import MarginOutcome, MarginVerdict, margin_verdict
from schemabank.stats.permutation import (
    PermutationTest,
    label_floor,
    label_test,
    sign_flip_floor,
    sign_flip_test,
)
from schemabank.stats.planning import (
    PlannedDifference,
    VarianceComponents,
    planned,
    seeds_needed,
    variance_components,
)
from schemabank.stats.power import (
    detectable_difference,
    detectable_from_error,
    detection_power,
)
from schemabank.stats.ratios import MeanRatio, ratio_of_means
from schemabank.stats.strata import (
    FEWEST_DIFFERING,
    OverItems,
    StratifiedDifference,
    Stratum,
    difference_over_items,
    stratified_difference,
)
from schemabank.stats.verdicts import Outcome, Relevance, Verdict, holm, verdict

__all__ = [
    "FEWEST_DIFFERING",
    "FEWEST_SEEDS",
    "ArmSummary",
    "CrossedDifference",
    "Difference",
    "Effect",
    "Interval",
    "MarginOutcome",
    "MarginVerdict",
    "McNemar",
    "MeanRatio",
    "Outcome",
    "Outperformance",
    "OverItems",
    "PairedDifference",
    "PermutationTest",
    "PlannedDifference",
    "Relevance",
    "SpreadRatio",
    "StratifiedDifference",
    "Stratum",
    "VarianceComponents",
    "Verdict",
    "bootstrap_interval",
    "clustered_interval",
    "crossed_difference",
    "detectable_difference",
    "detectable_from_error",
    "detection_power",
    "difference_over_items",
    "hedges_g",
    "holm",
    "label_floor",
    "label_test",
    "margin_verdict",
    "mcnemar",
    "paired_d_z",
    "paired_difference",
    "paired_outperformance",
    "pigeonhole_interval",
    "planned",
    "ratio_of_means",
    "resampled_ratio_interval",
    "sd_ratio",
    "seeds_needed",
    "sign_flip_floor",
    "sign_flip_test",
    "stratified_difference",
    "summarise_arm",
    "unpaired_outperformance",
    "variance_components",
    "verdict",
    "welch_difference",
    "wilson_interval",
]
