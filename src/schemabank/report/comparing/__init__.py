"""Two arms held against each other: over seeds, over seeds and items, by their best settings.

`compare` takes any table of scores; `gather` adds what a folder of runs knows.
"""

from schemabank.report.comparing.comparison import (
    ArmAt,
    Comparison,
    Contrast,
    Reference,
    at_settings,
    compare,
)
from schemabank.report.comparing.families import Adjusted, judged_together
from schemabank.report.comparing.items import ItemComparison
from schemabank.report.comparing.material import Material, gather, primary_contrast
from schemabank.report.comparing.peaks import Peak, peaks_by_seed

__all__ = [
    "Adjusted",
    "ArmAt",
    "Comparison",
    "Contrast",
    "ItemComparison",
    "Material",
    "Peak",
    "Reference",
    "at_settings",
    "compare",
    "gather",
    "judged_together",
    "peaks_by_seed",
    "primary_contrast",
]
