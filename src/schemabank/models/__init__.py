"""Base models: where they come from, what they are checked for, what their parts are called.

`basemodel` loads one from a folder, a GGUF file or the hub, `refusals` says what cannot be trained,
`frozen` gives a user's model back as it was, `precise` gives one all digits for a while.
"""

__all__ = [
    "architecture",
    "basemodel",
    "blocknames",
    "checks",
    "digests",
    "embedded",
    "files",
    "frozen",
    "precise",
    "refusals",
]
