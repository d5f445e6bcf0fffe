"""What every room may use: errors, reading and writing files, tables, figures, what a wait says.

Nothing here knows of models, adapters or runs.
"""

__all__ = [
    "errors",
    "failure",
    "figures",
    "files",
    "folders",
    "hub",
    "memory",
    "plainyaml",
    "quiet",
    "tables",
    "tensorfiles",
    "waiting",
    "writing",
]
