"""Compiling parts of a step, the same way in every process.

PyTorch's compiler times variants of a kernel on the device, and variants that sum in another order
round otherwise. So a process that compiles anew, as one that goes on on another machine does, may
come to other bits. Its deterministic mode chooses among such variants without timing them.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"deterministic": True}

P = ParamSpec("P")
R = TypeVar("R")


def optimised(function: Callable[P, R], *, dynamic: bool = False) -> Callable[P, R]:
    """Compile a function, with kernels that do not depend on what was fastest when it was compiled.

    Args:
        function: to compile.
        dynamic: whether one program serves arguments of all sizes; else each has its own.
    """
    found: Callable[P, R] = torch.compile(function, dynamic=dynamic, options=OPTIONS)
    return found
