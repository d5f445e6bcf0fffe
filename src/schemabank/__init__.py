"""LoRA adapters trained with sparse routing as a curriculum, compared fairly with plain LoRA.

The names below load on first use: torch takes seconds to import, and ``--help`` does without.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemabank.common.errors import InputError
    from schemabank.config.settings import BankSettings, LoraSettings, RunConfig, TagSettings
    from schemabank.config.train import StageSettings, TrainSettings
    from schemabank.runs.tuner import Tuner

try:
    __version__ = version("schemabank")
except PackageNotFoundError:  # used from a source tree without installing it
    __version__ = "0+source"

__all__ = [
    "BankSettings",
    "InputError",
    "LoraSettings",
    "RunConfig",
    "StageSettings",
    "TagSettings",
    "TrainSettings",
    "Tuner",
]

_HOMES = {
    "Tuner": "runs.tuner",
    "InputError": "common.errors",
    "StageSettings": "config.train",
    "TrainSettings": "config.train",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'schemabank' has no attribute {name!r}")
    return getattr(import_module(f"schemabank.{_HOMES.get(name, 'config.settings')}"), name)
