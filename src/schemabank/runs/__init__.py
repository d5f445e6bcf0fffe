"""Runs of one experiment: prepared, trained, evaluated, saved and read again.

`experiment` does all of that for a list of runs, `tuner` (one run) and `together` (many at once)
are the ways in from Python, `saved` goes on with a run on disk. A run is never thrown away: what is
wrong with it is written beside it.
"""

__all__ = [
    "asking",
    "beforehand",
    "chatting",
    "distill",
    "effects",
    "experiment",
    "fairness",
    "folder",
    "inmemory",
    "inputs",
    "itemscores",
    "launched",
    "loading",
    "located",
    "locks",
    "members",
    "modelfit",
    "pairs",
    "planning",
    "prepare",
    "progress",
    "readiness",
    "resuming",
    "saved",
    "stored",
    "tables",
    "together",
    "tuner",
]
