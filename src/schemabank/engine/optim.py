"""AdamW for all slots at once, each with its own step count, learning rate and weight decay.

The update is that of ``torch.optim.AdamW``, with decoupled weight decay (arXiv 1711.05101), in
float32 on one flat row a slot. A row that is not active keeps weights and moments bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.compiling import optimised
from schemabank.engine.muon import Muon, Step
from schemabank.engine.slices import RankSlices, undo_other_slices


@dataclass(frozen=True)
class AdamWSettings:
    """Coefficients of every row.

    Attributes:
        beta1, beta2, epsilon, weight_decay: ``(slot, 1)`` each.
        ratio: ``(slot, 1)``, learning rate of the faster weights over that of the others.
    """

    beta1: Tensor
    beta2: Tensor
    epsilon: Tensor
    weight_decay: Tensor
    ratio: Tensor


class SlotAdamW:
    """Moments and step counts of one flat group of weights.

    Args:
        weights: ``(slot, size)``, float32, updated in place.
        settings: coefficients of every row.
        rounded: a copy of the weights in another type, kept up to date.
        faster: ``(size,)``, bool: weights with a learning rate of their own; ``None``: none.
        averages: whether to keep a mean of the weights over the steps.
        slices: those of the weights of which a step moves one a layer; ``None``: no slot has any.
        muon: updates some rows' matrices instead; ``None``: AdamW updates all.
        compiled: whether to fuse the update into one pass over the weights.

    Attributes:
        average: the mean over the steps, ``(slot, size)``; ``None``: it is not kept.
        mean, square: Adam's moments, ``(slot, size)``; the mean is Muon's momentum, too.
        step: ``(slot, 1)``, how many updates a row has had.
    """

    def __init__(
        self,
        weights: Tensor,
        settings: AdamWSettings,
        *,
        rounded: Tensor | None = None,
        faster: Tensor | None = None,
        averages: bool = False,
        slices: RankSlices | None = None,
        muon: Muon | None = None,
        compiled: bool = False,
    ) -> None:
        self.weights, self.settings, self.rounded = weights, settings, rounded
        self.faster, self.slices, self.muon = faster, slices, muon
        self.average = weights.clone() if averages else None
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)
        self.step = torch.zeros(weights.shape[0], 1, device=weights.device)
        self._update = optimised(_adamw_update) if compiled else _adamw_update
        self._average = optimised(_move_mean) if compiled else _move_mean
        self._undo = optimised(undo_other_slices) if compiled else undo_other_slices

    @property
    def state(self) -> tuple[Tensor, ...]:
        """All that a row carries from step to step: weights, moments, step counts and mean."""
        average = () if self.average is None else (self.average,)
        return self.weights, self.mean, self.square, self.step, *average

    @property
    def outcome(self) -> tuple[Tensor, ...]:
        """Of :attr:`state`, what a run's end needs: weights and mean."""
        return self.weights, *(() if self.average is None else (self.average,))

    def reset(self, slot: int) -> None:
        """Give a slot the state of a new optimizer; its mean starts at its weights."""
        for state in (self.mean, self.square, self.step):
            state[slot].zero_()
        if self.average is not None:
            self.average[slot].copy_(self.weights[slot])

    @torch.no_grad()
    def update(
        self,
        grad: Tensor,
        *,
        factor: Tensor | float = 1.0,
        learning_rate: Tensor,
        active: Tensor,
        fresh: Tensor | None = None,
    ) -> None:
        """Take one step.

        Args:
            grad: ``(slot, size)``, of any floating-point type.
            factor: ``(slot, 1)``, scales the gradient.
            learning_rate: ``(slot, 1)``.
            active: ``(slot, 1)``, bool; other rows do not change.
            fresh: ``(slot, 1)``, bool: rows whose moments and step count start again.
        """
        before = None if self.slices is None else self.weights.clone()
        s, moved = self.settings, None
        if self.muon is not None:  # before AdamW changes weights and moments
            own = (self.faster, s.ratio, s.beta1, s.weight_decay)
            step = Step(grad, factor, learning_rate, fresh, *own)
            moved = self.muon.moved(self.weights, self.mean, step)
        self._update(
            (self.weights, self.mean, self.square, self.step),
            self.rounded,
            grad,
            faster=self.faster,
            factor=factor,
            learning_rate=learning_rate,
            active=active,
            fresh=fresh,
            s=s,
        )
        if self.slices is not None:
            assert before is not None
            self._undo(
                self.weights,
                self.rounded,
                before,
                (self.mean, self.square),
                epsilon=s.epsilon,
                slices=self.slices,
            )
        if self.muon is not None and moved is not None:
            self.muon.put(moved, self.weights, active)
            if self.rounded is not None:
                self.rounded.copy_(self.weights)

    @torch.no_grad()
    def move_average(self, rate: Tensor) -> None:
        """Move the mean to the weights by a rate, ``(slot, 1)``, whether or not they changed."""
        if self.average is not None:
            self._average(self.average, self.weights, rate)


def _adamw_update(
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    rounded: Tensor | None,
    grad: Tensor,
    *,
    faster: Tensor | None,
    factor: Tensor | float,
    learning_rate: Tensor,
    active: Tensor,
    fresh: Tensor | None,
    s: AdamWSettings,
) -> None:
    """See :meth:`SlotAdamW.update`; a plain function, which compiles into one pass.

    Nothing here branches on a row's values: a captured step runs the same operations for all rows,
    and `torch.where` chooses each row's result.
    """
    weights, *moments = state
    # A stage starts with a new optimizer. That is a value on the device, too, so that one captured
    # program serves a stage's first step and all others.
    if fresh is not None:
        moments = [torch.where(fresh, 0.0, value) for value in moments]
    old_mean, old_square, old_step = moments
    if faster is not None:
        learning_rate = torch.where(faster, learning_rate * s.ratio, learning_rate)
    scaled = grad.to(weights.dtype) * factor
    step = old_step + 1
    mean = torch.lerp(scaled, old_mean, s.beta1)
    square = old_square * s.beta2 + scaled.square() * (1 - s.beta2)
    denominator = (square / (1 - s.beta2**step)).sqrt() + s.epsilon
    decayed = weights * (1 - learning_rate * s.weight_decay)
    updated = decayed - learning_rate / (1 - s.beta1**step) * mean / denominator
    # An inactive row keeps its state even where its gradient is not finite: `where` drops the NaN,
    # which a product with 0 would not.
    before = (weights, old_mean, old_square, old_step)
    for place, old, new in zip(state, before, (updated, mean, square, step), strict=True):
        place.copy_(torch.where(active, new, old))
    if rounded is not None:  # in the same pass, so that the weights need not be read again
        rounded.copy_(weights)


def _move_mean(mean: Tensor, weights: Tensor, rate: Tensor) -> None:
    """Move a mean to the weights by a rate, ``(slot, 1)``; a rate of 0 leaves it bit for bit."""
    mean.copy_(torch.where(rate > 0, torch.lerp(mean, weights, rate), mean))


def clip_factors(grads: list[tuple[Tensor, Tensor]], max_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return each slot's gradient norm and the factor that clips it.

    Args:
        grads: pairs of a group's gradient ``(slot, size)`` and whether each slot trains that group,
            ``(slot, 1)`` bool; a group that a slot does not train does not count in its norm.
        max_norm: ``(slot, 1)``.

    Returns:
        Norms and factors, ``(slot, 1)`` each. A slot whose norm is not finite must skip the step.
    """
    squares = [torch.zeros_like(max_norm)]
    squares += [
        torch.where(active, grad.to(max_norm.dtype).square().sum(1, keepdim=True), 0.0)
        for grad, active in grads
    ]
    norm = torch.stack(squares).sum(0).sqrt()
    # The small number is that of PyTorch's `clip_grad_norm_`.
    return norm, (max_norm / (norm + 1e-6)).clamp(max=1.0)
