"""Settings: every one with its default and its checks, and the YAML files that hold them.

Reads no model and no data, and loads no torch.
"""

__all__ = [
    "base",
    "file",
    "naming",
    "settings",
    "task",
    "train",
]
