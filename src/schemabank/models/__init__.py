"""Base models: where they come from, what they are checked for, how their parts are called."""

__all__ = [
    "architecture",
    "basemodel",
    "digests",
    "files",
    "frozen",
    "refusals",
]
