"""The cohort engine: many training runs over one frozen base model, and their decoding.

A run's result does not depend on the runs that share its cohort.
"""

__all__ = [
    "batches",
    "cohort",
    "decoding",
    "execute",
    "loss",
    "planner",
    "seating",
    "slots",
    "stack",
    "targets",
]
