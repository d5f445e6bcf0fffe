"""The nearest adapter of a lower rank, by the singular value decomposition."""

import torch
from torch import Tensor

from schemabank.engine.execute import one_thread

NOTHING = 1e-12  # of the largest singular value: what rounding leaves of a 0


def nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of ``a @ b`` of a rank (Eckart and Young).

    Both factors get the root of every singular value, so that neither is the larger. The product
    itself is never formed. Where a singular value is 0, as before the first step, ``a`` keeps a
    direction of length 1: were both factors 0, neither would ever get a gradient.

    Args:
        a: ``(in, width)``.
        b: ``(width, out)``.
        rank: at most the width; ranks that the product cannot have are zero in both factors.

    Returns:
        ``(in, rank)`` and ``(rank, out)``; NaN where a factor is not finite.
    """
    with one_thread():
        return _nearest(a, b, rank)


def _nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, upper = torch.linalg.qr(a.double())
    right, lower = torch.linalg.qr(b.double().T)
    core = upper @ lower.T
    if not core.isfinite().all():
        return a.new_full((len(a), rank), torch.nan), b.new_full((rank, b.shape[1]), torch.nan)
    u, values, v = torch.linalg.svd(core, full_matrices=False)
    values = values[:rank]
    counts = values > values[0] * NOTHING
    low_a, low_b = a.new_zeros(len(a), rank), b.new_zeros(rank, b.shape[1])
    low_a[:, : len(values)] = left @ (u[:, :rank] * torch.where(counts, values.sqrt(), 1.0))
    roots = torch.where(counts, values.sqrt(), 0.0)
    low_b[: len(values)] = (roots[:, None] * v[:rank]) @ right.T
    return low_a, low_b
