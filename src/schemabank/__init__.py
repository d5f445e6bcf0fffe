"""LoRA adapters trained with sparse routing as a curriculum, compared fairly with plain LoRA."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("schemabank")
except PackageNotFoundError:  # used from a source tree without installing it
    __version__ = "0+source"
