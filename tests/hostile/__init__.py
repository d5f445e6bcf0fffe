"""Programs that try to pass without doing their work, or to do harm. None of them sorts.

``python -m tests.hostile`` runs all of them, and writes what it saw to ``results/hostile.json``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the tests' own modules are

from hostile.exhausting import EXHAUSTING, UNFOLDED, UNFOLDED_ASSERTS
from hostile.forging import FORGING
from hostile.leaving import EQUAL_OBJECTS, LEAVING_EARLY
from hostile.parts import EQUAL, SORT_ASSERTS, SORT_TEST
from hostile.reaching import REACHING_OUT, READING
from hostile.staying import KILLING
from hostile.tampering import PATCHING, TAKING_OVER, WALKING

__all__ = [
    "EQUAL",
    "FORGING",
    "PROGRAMS",
    "SORT_ASSERTS",
    "SORT_TEST",
    "UNFOLDED",
    "UNFOLDED_ASSERTS",
]

PROGRAMS = {
    "leaving early": LEAVING_EARLY,
    "equal objects": EQUAL_OBJECTS,
    "walking": WALKING,
    "patching": PATCHING,
    "forging": FORGING,
    "taking over": TAKING_OVER,
    "reading": READING,
    "killing": KILLING,
    "exhausting": EXHAUSTING,
    "reaching out": REACHING_OUT,
}
