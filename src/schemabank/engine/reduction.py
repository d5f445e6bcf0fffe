"""The nearest adapter of a lower rank, by the singular value decomposition."""

import torch
from torch import Tensor


def nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of ``a @ b`` of a rank (Eckart and Young).

    Both factors get the root of every singular value, so that neither is the larger. The product
    itself is never formed.

    Args:
        a: ``(in, width)``.
        b: ``(width, out)``.
        rank: at most the width.

    Returns:
        ``(in, rank)`` and ``(rank, out)``.
    """
    left, upper = torch.linalg.qr(a.double())
    right, lower = torch.linalg.qr(b.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    roots = values[:rank].sqrt()
    low_a = left @ (u[:, :rank] * roots)
    low_b = (roots[:, None] * v[:rank]) @ right.T
    return low_a.to(a.dtype), low_b.to(b.dtype)
