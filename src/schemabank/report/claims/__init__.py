"""Published figures held against the rows that they were derived from.

`judge_claims` reads a file of claims and says of each whether it follows.
"""

from schemabank.report.claims.judgements import Judged, beside, judge_claims
from schemabank.report.claims.statistics import Subject

__all__ = ["Judged", "Subject", "beside", "judge_claims"]
