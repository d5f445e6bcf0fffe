"""The cohort engine: many training runs over one frozen base model, and their decoding.

`stack` puts adapters on a model, and the `part`s of methods beside them, `cohort` trains them,
`run` is what a cohort knows of a run, `decoding` completes prompts, `planner` says which runs can
train together. A run's result does not depend on its neighbours.
"""

__all__ = [
    "batches",
    "cohort",
    "compiling",
    "decoding",
    "execute",
    "flat",
    "idle",
    "keeping",
    "lora",
    "loralayers",
    "loss",
    "part",
    "planner",
    "reduction",
    "run",
    "schedule",
    "seating",
    "slots",
    "softtargets",
    "stack",
    "step",
    "targets",
]
