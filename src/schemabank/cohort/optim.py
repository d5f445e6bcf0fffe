"""AdamW for all slots at once, each row with its own step count, rate and decay.

Decoupled weight decay (arXiv 1711.05101), the update of ``torch.optim.AdamW`` in float32 on one
flat row a slot. A row that is not active keeps weights and moments bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamWSettings:
    """Coefficients of every row.

    Attributes:
        beta1, beta2, epsilon, weight_decay: ``(slot, 1)`` each.
    """

    beta1: Tensor
    beta2: Tensor
    epsilon: Tensor
    weight_decay: Tensor


class SlotAdamW:
    """Moments and step counts of one flat group of weights.

    Args:
        weights: ``(slot, size)``, float32, updated in place.
        settings: coefficients of every row.
    """

    def __init__(self, weights: Tensor, settings: AdamWSettings) -> None:
        self.weights, self.settings = weights, settings
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)
        self.step = torch.zeros(weights.shape[0], 1, device=weights.device)

    def reset(self, slot: int) -> None:
        """Forget a slot's moments and step count: a fresh optimizer."""
        for state in (self.mean, self.square, self.step):
            state[slot].zero_()

    @torch.no_grad()
    def update(self, grad: Tensor, *, learning_rate: Tensor, active: Tensor) -> None:
        """Take one step.

        Args:
            grad: ``(slot, size)``.
            learning_rate: ``(slot, 1)``.
            active: ``(slot, 1)``, bool; other rows do not change.
        """
        s = self.settings
        step = self.step + 1
        mean = torch.lerp(grad, self.mean, s.beta1)
        square = self.square * s.beta2 + grad.square() * (1 - s.beta2)
        denominator = (square / (1 - s.beta2**step)).sqrt() + s.epsilon
        decayed = self.weights * (1 - learning_rate * s.weight_decay)
        weights = decayed - learning_rate / (1 - s.beta1**step) * mean / denominator
        for state, new in (
            (self.step, step),
            (self.mean, mean),
            (self.square, square),
            (self.weights, weights),
        ):
            state.copy_(torch.where(active, new, state))


def clip_factors(grads: list[tuple[Tensor, Tensor]], max_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return each slot's gradient norm and the factor that clips it.

    Args:
        grads: pairs of a group's gradient ``(slot, size)`` and which slots train that group,
            ``(slot, 1)`` bool; a group that a slot does not train is no part of its norm.
        max_norm: ``(slot, 1)``.

    Returns:
        Norms and factors, ``(slot, 1)`` each. A norm that is not finite means: skip the step.
    """
    squares = [torch.zeros_like(max_norm)] + [
        torch.where(active, grad.square().sum(1, keepdim=True), 0.0) for grad, active in grads
    ]
    norm = torch.stack(squares).sum(0).sqrt()
    return norm, (max_norm / (norm + 1e-6)).clamp(max=1.0)
