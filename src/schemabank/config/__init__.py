"""Settings: every one with its default and its checks, and the YAML files that hold them.

`settings` has the whole of a run, `task` and `train` its largest parts, `presets` sets of defaults,
`methods` names what a run may train and `targets` where, `file` and `settingsfile` read them,
`datacolumns` knows what others call the columns of their rows, `peftconfig` PEFT's configurations,
`overrides` reads ``--set``, `validation` is what a program says of measuring while it trains.
Nothing here reads a model or data, or loads torch.
"""

__all__ = [
    "base",
    "datacolumns",
    "file",
    "methods",
    "naming",
    "overrides",
    "peftconfig",
    "places",
    "presets",
    "settings",
    "settingsfile",
    "start",
    "targets",
    "task",
    "train",
    "validation",
]
