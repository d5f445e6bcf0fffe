"""What every room may use: errors, reading and writing files, tables, messages while waiting.

Nothing here computes with a model.
"""

__all__ = [
    "archives",
    "cores",
    "durations",
    "errors",
    "extras",
    "failure",
    "files",
    "folders",
    "garbage",
    "growing",
    "hub",
    "lines",
    "memory",
    "openfiles",
    "plainyaml",
    "quiet",
    "stored",
    "tables",
    "waiting",
    "writing",
]
