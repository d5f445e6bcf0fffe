"""A warning: what the rows or the runs show, and no more.

Its id is stable, so that a program can look for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MOST_NAMED = 5  # rows or runs in a sentence


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: stable name of the rule.
        numbers: that it rests on; shares as in the table.
        sentence: the finding in words.
    """

    id: str
    numbers: Mapping[str, object]
    sentence: str
