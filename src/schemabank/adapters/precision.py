"""Computing in one precision, whatever number type a model's code asks for.

Models round inside: the norms of transformers cast to float32 even when all weights are float64,
and so two float64 computations of one function would differ by float32's rounding, 1e-7 (measured:
a Llama of three blocks, as float64 and as here). :class:`Precision` sits below the model's code,
where every operation passes, and casts there. Weights stay in their own type and are cast while an
operation uses them, so a large model needs room for one of its matrices more, not for a copy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Operands of matrix products, and along which dimension each is summed.
SUMMED: Mapping[Any, Mapping[int, int]] = {
    aten.mm.default: {0: 1, 1: 0},
    aten.bmm.default: {0: 2, 1: 1},
    aten.addmm.default: {1: 1, 2: 0},
    aten.baddbmm.default: {1: 2, 2: 1},
}


@contextmanager
def in_precision(
    model: nn.Module, dtype: torch.dtype, *, backwards: bool = False
) -> Iterator[None]:
    """Let a model compute in one precision for a while; see :class:`Precision`."""
    # Convolutions compare the types of input and weights before the operation gets here.
    small = [p for m in model.modules() if isinstance(m, CONVOLUTIONS) for p in m.parameters(False)]
    originals = [(parameter, parameter.data) for parameter in small]
    for parameter, data in originals:
        parameter.data = data.to(dtype)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of numbers that become tensors, such as a type's least one
    try:
        with Precision(dtype, backwards=backwards):
            yield
    finally:
        torch.set_default_dtype(usual)
        for parameter, data in originals:
            parameter.data = data


class Precision(TorchDispatchMode):
    """Computes every operation on real numbers in ``dtype`` and leaves the results in it.

    Views, and operations that write into a tensor that is there, keep that tensor's type.

    Args:
        dtype: of all arithmetic.
        backwards: sum matrix products from their last term to their first.
    """

    def __init__(self, dtype: torch.dtype, *, backwards: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.backwards = dtype, backwards

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 -- an operation of torch, which has no public type
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Compute one operation."""
        del types
        named = dict(kwargs or {})
        if func.is_view:
            return func(*args, **named)
        if func is aten.embedding.default:  # picks rows: the table need not be cast
            return self._cast(func(*args, **named))
        written = _written_tensor(func, args)
        cast = self._cast if written is None else _cast_for(written.dtype, but=written)
        asked = named.get("dtype")
        if written is None and asked is not None and asked.is_floating_point and _has_reals(args):
            named["dtype"] = self.dtype
        args = tuple(_each_tensor(cast, value) for value in args)
        if func is aten._grouped_mm.default:
            return _grouped_product(*args)
        if self.backwards:
            args = _reversed_operands(func, args)
        return func(*args, **{name: _each_tensor(cast, value) for name, value in named.items()})

    def _cast(self, tensor: Tensor) -> Tensor:
        is_other = tensor.dtype != self.dtype and tensor.is_floating_point()
        return tensor.to(self.dtype) if is_other else tensor


def _each_tensor(change: Callable[[Tensor], Tensor], value: Any) -> Any:  # noqa: ANN401
    """Change an argument of an operation: a tensor, a sequence of some, or none at all."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return [_each_tensor(change, each) for each in value]
    return value


def _cast_for(dtype: torch.dtype, *, but: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what casts real numbers to the type of the tensor that is written into."""

    def cast(tensor: Tensor) -> Tensor:
        keep = tensor is but or not (tensor.is_floating_point() and dtype.is_floating_point)
        return tensor if keep else tensor.to(dtype)

    return cast


def _written_tensor(func: Any, args: Sequence[Any]) -> Tensor | None:  # noqa: ANN401
    """Return the tensor that an operation writes into, if it does."""
    for place in _written_places(func):
        if place < len(args) and isinstance(args[place], Tensor):
            written: Tensor = args[place]
            return written
    return None


@cache
def _written_places(func: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return which arguments an operation writes into."""
    infos = [argument.alias_info for argument in func._schema.arguments]
    return tuple(i for i, info in enumerate(infos) if info is not None and info.is_write)


def _has_reals(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_reals, value))
    return isinstance(value, Tensor) and value.is_floating_point()


def _reversed_operands(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ANN401
    """Turn what a matrix product sums over back to front; of others return the operands."""
    dims = SUMMED.get(func, {})
    return tuple(arg.flip(dims[i]) if i in dims else arg for i, arg in enumerate(args))


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor, *_none: None) -> Tensor:
    """Multiply each group of rows by its own matrix, as experts do; torch has it up to float32.

    Args:
        rows: ``(row, in)``, group by group.
        matrices: ``(group, in, out)``.
        ends: ``(group,)``, where the rows of each group end.
    """
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    used = rows[: sum(sizes)].split(sizes)
    product = torch.cat([part @ matrix for part, matrix in zip(used, matrices, strict=True)])
    return nn.functional.pad(product, (0, 0, 0, len(rows) - len(product)))
