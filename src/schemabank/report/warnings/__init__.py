"""What a sceptical reviewer would raise: about scores, about training, about saved adapters.

Every finding has a stable id, its numbers and a sentence. The gravest come first.
"""

from schemabank.report.warnings.adapters import adapters_in_doubt
from schemabank.report.warnings.finding import Finding, by_weight
from schemabank.report.warnings.scores import find_warnings
from schemabank.report.warnings.training import Facts, find_run_warnings

__all__ = [
    "Facts",
    "Finding",
    "adapters_in_doubt",
    "by_weight",
    "find_run_warnings",
    "find_warnings",
]
