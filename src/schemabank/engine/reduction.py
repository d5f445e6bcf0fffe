"""The nearest adapter of a lower rank, by the singular value decomposition."""

import torch
from torch import Tensor


def nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of ``a @ b`` of a rank (Eckart and Young).

    Both factors get the root of every singular value, so that neither is the larger. The product
    itself is never formed. A product with fewer singular values leaves the last ranks at zero.

    Args:
        a: ``(in, width)``.
        b: ``(width, out)``.
        rank: at most the width.

    Returns:
        ``(in, rank)`` and ``(rank, out)``.
    """
    left, upper = torch.linalg.qr(a.double())
    right, lower = torch.linalg.qr(b.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    roots = values[:rank].sqrt()
    low_a, low_b = a.new_zeros(len(a), rank), b.new_zeros(rank, b.shape[1])
    low_a[:, : len(roots)] = left @ (u[:, :rank] * roots)
    low_b[: len(roots)] = (roots[:, None] * v[:rank]) @ right.T
    return low_a, low_b
