"""PEFT's format: written, read strictly, and compared with stock PEFT.

`files` saves and reads adapters and banks, `export` checks and merges them, `peftlayers` refuses
targets on which PEFT would choose other layers, and `tensorfiles` reads any safetensors file.
"""

__all__ = [
    "config",
    "export",
    "files",
    "peftcheck",
    "peftlayers",
    "tensorfiles",
]
