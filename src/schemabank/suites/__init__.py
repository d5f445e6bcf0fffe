"""Suites: arms, seeds and a grid of settings, the search for learning rates, and all their runs."""

__all__ = [
    "file",
    "run",
    "suite",
]
