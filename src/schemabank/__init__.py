"""LoRA adapters trained with sparse routing as a curriculum, compared fairly with plain LoRA.

The names below load on first use: torch takes seconds to import, and ``--help`` does without.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemabank.common.errors import InputError
    from schemabank.common.failure import Failure
    from schemabank.config.methods import (
        CoToSettings,
        ExpertsSettings,
        MoLFSettings,
        ShrinkSettings,
        SWAPSettings,
    )
    from schemabank.config.settings import (
        BankSettings,
        EngineSettings,
        EvalSettings,
        LoraSettings,
        ModelSettings,
        RunConfig,
        TagSettings,
    )
    from schemabank.config.task import TaskSettings
    from schemabank.config.train import (
        AverageSettings,
        DistillSettings,
        RescaleSettings,
        StageSettings,
        TrainSettings,
    )
    from schemabank.config.validation import ValidationSettings
    from schemabank.engine.cohort import RunStep
    from schemabank.methods.schemabank.bank import Routing
    from schemabank.runs.asking import Prompt
    from schemabank.runs.inmemory import OnStep
    from schemabank.runs.members import Rescaled
    from schemabank.runs.pairs import Examples
    from schemabank.runs.together import RunResult, train_cohort
    from schemabank.runs.tuner import Tuner
    from schemabank.runs.validating import Validation

try:
    __version__ = version("schemabank")
except PackageNotFoundError:  # used from a source tree without installing it
    __version__ = "0+source"

__all__ = [
    "AverageSettings",
    "BankSettings",
    "CoToSettings",
    "DistillSettings",
    "EngineSettings",
    "EvalSettings",
    "Examples",
    "ExpertsSettings",
    "Failure",
    "InputError",
    "LoraSettings",
    "MoLFSettings",
    "ModelSettings",
    "OnStep",
    "Prompt",
    "RescaleSettings",
    "Rescaled",
    "Routing",
    "RunConfig",
    "RunResult",
    "RunStep",
    "SWAPSettings",
    "ShrinkSettings",
    "StageSettings",
    "TagSettings",
    "TaskSettings",
    "TrainSettings",
    "Tuner",
    "Validation",
    "ValidationSettings",
    "train_cohort",
]

# The module of each name; all others are settings of `config.settings`.
_HOMES = {
    "AverageSettings": "config.train",
    "CoToSettings": "config.methods",
    "DistillSettings": "config.train",
    "Examples": "runs.pairs",
    "ExpertsSettings": "config.methods",
    "Failure": "common.failure",
    "InputError": "common.errors",
    "MoLFSettings": "config.methods",
    "OnStep": "runs.inmemory",
    "Prompt": "runs.asking",
    "RescaleSettings": "config.train",
    "Rescaled": "runs.members",
    "Routing": "methods.schemabank.bank",
    "RunResult": "runs.together",
    "RunStep": "engine.cohort",
    "SWAPSettings": "config.methods",
    "ShrinkSettings": "config.methods",
    "StageSettings": "config.train",
    "TaskSettings": "config.task",
    "TrainSettings": "config.train",
    "Tuner": "runs.tuner",
    "Validation": "runs.validating",
    "ValidationSettings": "config.validation",
    "train_cohort": "runs.together",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'schemabank' has no attribute {name!r}")
    return getattr(import_module(f"schemabank.{_HOMES.get(name, 'config.settings')}"), name)
