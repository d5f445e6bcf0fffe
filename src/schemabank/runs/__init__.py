"""Runs of one experiment: prepared, trained, evaluated, saved and read again.

`experiment` does all of that for a list of runs, `tuner` is the way in from Python, `saved` goes on
with a run on disk. A run is never thrown away: what is wrong with it is written beside it.
"""

__all__ = [
    "effects",
    "experiment",
    "fairness",
    "folder",
    "inputs",
    "itemscores",
    "loading",
    "located",
    "members",
    "modelfit",
    "pairs",
    "prepare",
    "progress",
    "readiness",
    "saved",
    "stored",
    "tables",
    "tuner",
]
