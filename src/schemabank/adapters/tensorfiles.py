"""Reading tensors from a safetensors file that may be damaged or come from anywhere.

Shapes and types stand in the file's head, so that a caller can refuse them before any tensor is
read. Pickles are never read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemabank.common.errors import InputError
from schemabank.common.files import check_regular
from schemabank.common.memory import is_out_of_memory

FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str


def read_tensors(
    path: Path,
    *,
    mend: str,
    check: Callable[[Mapping[str, Header]], None],
    finite: bool = True,
) -> dict[str, Tensor]:
    """Read all tensors of a file, which must be floating-point and, unless said, finite.

    Args:
        path: the safetensors file.
        mend: what to do where it cannot be read, for the message.
        check: is given every name with its shape and type, and refuses what does not fit, before
            any tensor is read.
        finite: whether values that are not finite are refused.

    Raises:
        InputError: it is missing, torn, not finite or of another type, or ``check`` refused it.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: _read_header(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            _check_floats(path, found)
            check(found)
            tensors = {name: file.get_tensor(name) for name in found}
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"cannot read {str(path)!r} ({error}): {mend}") from error
    for name, tensor in tensors.items():
        if finite and not torch.isfinite(tensor).all():
            raise InputError(
                f"{str(path)!r} holds {name!r} with values that are not finite, allowed are finite "
                "numbers: its training has diverged, or the file is damaged; name another"
            )
    return tensors


def _read_header(part: object) -> Header:
    # safetensors ships no types for its slices.
    return Header(tuple(part.get_shape()), str(part.get_dtype()))  # type: ignore[attr-defined]


def _check_floats(path: Path, found: Mapping[str, Header]) -> None:
    other = [name for name, head in found.items() if head.dtype not in FLOATS]
    if other:
        raise InputError(
            f"{str(path)!r} holds {other[0]!r} as {found[other[0]].dtype}, allowed are "
            f"{', '.join(sorted(FLOATS))}: save the weights in one of these types"
        )
