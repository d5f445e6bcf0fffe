"""The cohort engine: many training runs over one frozen base model, and their decoding.

`stack` puts adapters and banks on a model, `cohort` trains them, `decoding` completes prompts,
`planner` says which runs can train together. A run's result does not depend on its neighbours.
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
