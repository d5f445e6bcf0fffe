"""What a run may train, each method a file or a folder of its own.

`schemabank.config.methods` names them. A method tells the engine what a run's steps do and what it
attaches to the model, and ends as a plain LoRA adapter.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig

if TYPE_CHECKING:  # a method takes PyTorch, which is loaded when the first is asked for
    from schemabank.methods.method import Method

__all__ = ["coto", "experts", "method", "method_of", "molf", "schemabank", "shrink"]


def method_of(run: RunConfig) -> "Method":
    """Return the method of a run that trains."""
    return _loaded(METHODS[run.arm].where)


@cache
def _loaded(where: str) -> "Method":
    module, _, name = where.partition(":")
    method: Method = getattr(import_module(module), name)()
    return method
