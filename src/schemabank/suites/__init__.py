"""Suites: arms, seeds and a grid of settings, the search for learning rates, and all their runs.

`file` reads a suite's YAML, `suite` makes its runs, `plan` says what they would take, `execution`
trains what is not there yet.
"""

__all__ = [
    "execution",
    "file",
    "plan",
    "suite",
]
