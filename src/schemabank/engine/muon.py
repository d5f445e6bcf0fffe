"""Muon for the adapters' matrices, each run of a cohort choosing it or AdamW.

The momentum of every matrix is made nearly orthogonal before it is applied (Jordan 2024,
https://kellerjordan.github.io/posts/muon), and scaled so that a learning rate means about what it
means for AdamW (Moonlight, arXiv 2502.16982, equation 4). A and B of every layer are matrices of
their own, and so is each of several B's. All matrices of one shape are computed together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.compiling import optimised
from schemabank.engine.flat import FlatGroup

# Jordan's: they raise small singular values fast, and end with all between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
EPSILON = 1e-7
RMS = 0.2  # of an update's entries before the learning rate, about that of AdamW's updates


@dataclass(frozen=True)
class Step:
    """What one step is made from; columns are ``(slot, 1)``.

    Attributes:
        grad: ``(slot, size)``, of any floating-point type.
        factor: scales the gradient.
        learning_rate: column.
        fresh: whether a row's momentum starts again; ``None``: no row's does.
        faster: ``(size,)``, bool: weights whose learning rate is ``ratio`` times that.
        ratio, beta1, weight_decay: columns.
    """

    grad: Tensor
    factor: Tensor | float
    learning_rate: Tensor
    fresh: Tensor | None
    faster: Tensor | None
    ratio: Tensor
    beta1: Tensor
    weight_decay: Tensor


class Muon:
    """Which slots use Muon, and the matrices in a row of the adapters' weights.

    Args:
        group: the adapters' weights.
        num_maps: B's that a layer has room for.
        compiled: whether to fuse what is computed weight by weight.

    Attributes:
        rows: ``(slot, 1)``, bool: the slots whose run uses Muon.
        ranks: ``(slot, 1)``, the rank of each slot's run, without padding.
    """

    def __init__(self, group: FlatGroup, *, num_maps: int = 1, compiled: bool = False) -> None:
        self._views, self._num_maps = group.views, num_maps
        num_slots, device = len(group.weights), group.weights.device
        self.rows = torch.zeros(num_slots, 1, dtype=torch.bool, device=device)
        self.ranks = torch.ones(num_slots, 1, device=device)
        self._stacks = _same_shapes(group)
        self._matrices = torch.zeros(1, group.size, dtype=torch.bool, device=device)
        views = group.views(self._matrices)
        for names in self._stacks:
            for name in names:
                views[name].fill_(True)
        self._momentum = optimised(_momentum) if compiled else _momentum
        self._stepped = optimised(_stepped) if compiled else _stepped

    def seat(self, slot: int, *, rank: int, chosen: bool) -> None:
        """Give a slot to a run of this rank, which has chosen Muon or not."""
        self.rows[slot], self.ranks[slot] = chosen, rank

    def moved(self, weights: Tensor, mean: Tensor, step: Step) -> Tensor:
        """Return what all rows' weights would be after a step, ``(slot, size)``.

        Args:
            weights: as they are, ``(slot, size)``.
            mean: the momentum before the step, ``(slot, size)``.
            step: the step.
        """
        return self._stepped(weights, self.directions(self._momentum(mean, step)), step)

    def put(self, moved: Tensor, weights: Tensor, active: Tensor) -> None:
        """Copy the matrices of active rows that use Muon from what :meth:`moved` returned.

        AdamW has updated all rows before. So its own rows come out of the very program that
        computes them where nobody uses Muon, and keep their bits.
        """
        # `where` drops what is not finite in other rows.
        weights.copy_(torch.where(active & self.rows & self._matrices, moved, weights))

    def directions(self, momentum: Tensor) -> Tensor:
        """Return rows ``(slot, size)`` with every matrix orthogonalised and scaled, else zeros."""
        views = self._views(momentum)
        found: dict[str, Tensor] = {}
        for names in self._stacks:
            stacked = torch.stack([views[name] for name in names])  # (layer, slot, row, column)
            is_b = names[0].endswith(".B")
            height, width = stacked.shape[2:]
            height //= self._num_maps if is_b else 1
            results = orthogonalised(stacked.view(-1, height, width)).view(stacked.shape)
            sides = self.ranks.clamp(min=width if is_b else height)
            scaled = results * (RMS * sides.sqrt())[:, :, None]
            found |= dict(zip(names, scaled.unbind(), strict=True))
        parts = [found[n] if n in found else torch.zeros_like(view) for n, view in views.items()]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices ``(matrix, row, column)`` with singular values near 1, by Newton-Schulz.

    Rows and columns of zeros stay zero, and so do whole matrices. Products are taken over the
    larger side, so that the squares have the size of the smaller one.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    found: Tensor = matrices / (norms + EPSILON)
    for _ in range(NUM_ITERATIONS):
        square = found.mT @ found if tall else found @ found.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        first, second = (found, polynomial) if tall else (polynomial, found)
        found = torch.baddbmm(found, first, second, beta=a)
    return found


def _same_shapes(group: FlatGroup) -> list[list[str]]:
    """Names of A's, and of B's, of one shape; routers are no map of hidden states."""
    found: dict[tuple[str, torch.Size], list[str]] = {}
    for name, parameter in group.parameters.items():
        kind = name.rpartition(".")[2]
        if kind in {"A", "B"}:
            found.setdefault((kind, parameter.shape), []).append(name)
    return list(found.values())


def _momentum(mean: Tensor, step: Step) -> Tensor:
    """Nesterov's momentum, ``(slot, size)``, of means that AdamW moves in the same way."""
    if step.fresh is not None:
        mean = torch.where(step.fresh, 0.0, mean)
    scaled = step.grad.to(mean.dtype) * step.factor
    moved = torch.lerp(scaled, mean, step.beta1)
    return torch.lerp(scaled, moved, step.beta1)


def _stepped(weights: Tensor, directions: Tensor, step: Step) -> Tensor:
    rate = step.learning_rate
    if step.faster is not None:
        rate = torch.where(step.faster, rate * step.ratio, rate)
    return weights * (1 - rate * step.weight_decay) - rate * directions
