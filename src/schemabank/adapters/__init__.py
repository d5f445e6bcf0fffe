"""PEFT's format: written, read strictly, and compared with stock PEFT."""

__all__ = [
    "config",
    "export",
    "files",
    "peftcheck",
    "peftlayers",
]
