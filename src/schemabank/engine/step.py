"""What one step computes on the device: forward, loss, backward, clipping and update.

A step reads everything that changes from tensors of fixed addresses and writes into the weights,
the optimizer's moments and its report. It never asks the device for a number, so that it can be
captured once as a graph and replayed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.loss import (
    labelled_divergences,
    labelled_losses,
    labelled_soft_losses,
    mean_per_slot,
)
from schemabank.engine.optim import SlotAdamW
from schemabank.engine.part import Penalty, StepInput
from schemabank.engine.slots import Kind
from schemabank.engine.softtargets import SHARES, TOKENS
from schemabank.engine.stack import AdapterStack


@dataclass(frozen=True)
class Training:
    """What a cohort trains, and how.

    Attributes:
        stack: adapters, and what methods put beside them.
        optimizers: one a group.
        max_norm: ``(slot, 1)``, the clipping limits.
        clip: :func:`clip_factors`, compiled or not.
        penalise: :func:`penalise`, compiled or not.
        penalties: names of the terms that some run of the cohort adds to its loss.
    """

    stack: AdapterStack
    optimizers: Mapping[str, SlotAdamW]
    max_norm: Tensor
    clip: Callable[[list[tuple[Tensor, Tensor]], Tensor], tuple[Tensor, Tensor]]
    penalise: Callable[..., Tensor]
    penalties: frozenset[str]


def train_step(training: Training, kind: Kind, given: StepInput, states: Tensor | None) -> Tensor:
    """Take one step with every slot.

    Args:
        training: what is trained; its weights and moments change in place.
        kind: which groups get a gradient.
        given: the step's input on the device.
        states: for a cached kind, :meth:`AdapterStack.trunk` of the batch's tokens.

    Returns:
        ``(slot, 4)``: task loss, minimised loss, gradient norm before clipping, real tokens.
    """
    stack = training.stack
    stack.begin_step(given)
    trained = [name for name in stack.groups if kind.trains(name)]
    for name, group in stack.groups.items():
        group.require_grad(name in trained)
    task, total = _losses(training, kind, given, states)
    norm = _update(training, trained, given, total)
    for part in stack.parts:
        part.end_step()
    tokens = given.batch.real.sum((1, 2))
    return torch.stack([task, total.detach(), norm, tokens], dim=1)


def _losses(
    training: Training, kind: Kind, given: StepInput, states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean loss of the batch's labels, and the loss that is minimised, ``(slot,)`` each."""
    stack, batch = training.stack, given.batch
    hidden = stack.hidden(batch.tokens, states=states)
    mean, learned = _task_losses(training, kind, given, hidden)
    task = learned * given["loss_scale"]
    terms = [
        (penalty, part.seen())
        for part in stack.parts
        for penalty in part.penalties
        if penalty.name in training.penalties
        and (penalty.group is None or kind.trains(penalty.group))
    ]
    total = task + training.penalise(terms, given) if terms else task
    if kind.passes == 2:
        total = total + _inconsistency(training, hidden, given, states)
    return mean.detach(), total


def _task_losses(
    training: Training, kind: Kind, given: StepInput, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss of the labels, and that of what is learned in their place, ``(slot,)`` each."""
    batch, head = given.batch, training.stack.head
    if kind.soft:
        soft, hard = labelled_soft_losses(hidden, batch, given[TOKENS], given[SHARES], head)
        return mean_per_slot(hard, batch.weights), mean_per_slot(soft, batch.weights)
    mean = mean_per_slot(labelled_losses(hidden, batch, head), batch.weights)
    return mean, mean


def _inconsistency(
    training: Training, hidden: Tensor, given: StepInput, states: Tensor | None
) -> Tensor:
    """Run the batch again with other draws; return the weighted difference, ``(slot,)``."""
    stack, batch = training.stack, given.batch
    stack.next_pass(given)
    again = stack.hidden(batch.tokens, states=states)
    differences = labelled_divergences(hidden, again, batch, stack.head)
    weight = given["consistency_weight"] * given["loss_scale"]
    return weight * mean_per_slot(differences, batch.weights)


def penalise(terms: Sequence[tuple[Penalty, object]], given: StepInput) -> Tensor:
    """Return the weighted terms of the loss beside the task's, ``(slot,)``.

    Args:
        terms: with what each is computed from.
        given: the step's input.
    """
    values = [given[penalty.name] * penalty.value(seen, given) for penalty, seen in terms]
    return torch.stack(values).sum(0)


def _update(training: Training, trained: Sequence[str], given: StepInput, total: Tensor) -> Tensor:
    """Clip and apply the gradients of every slot, and average; return their norms, ``(slot,)``.

    A slot whose loss or gradient is not finite keeps weights, moments and count of updates. Its
    schedule goes on, and so does a mean over the steps, which counts the kept weights once more.
    """
    stack = training.stack
    grads = _gradients(stack, trained, total)
    columns = dict(zip(stack.groups, given["active"].split(1, dim=1), strict=True))
    active = {name: columns[name] for name in trained}
    norm, factor = training.clip([(grads[n], active[n]) for n in trained], training.max_norm)
    # A loss may be infinite whose gradient is not, as where the label's logit is minus infinity.
    is_finite = norm.isfinite() & total.detach().isfinite()[:, None]
    for name, grad in grads.items():
        training.optimizers[name].update(
            grad,
            factor=factor,
            learning_rate=given["learning_rate"][:, None],
            active=active[name] & is_finite,
            fresh=given["fresh"][:, None],
        )
    for optimizer in training.optimizers.values():
        optimizer.move_average(given["average_rate"][:, None])
    return norm[:, 0]


def _gradients(stack: AdapterStack, trained: Sequence[str], total: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every trained group, ``(slot, size)``; zero where none came."""
    leaves = [p for name in trained for p in stack.groups[name].parameters.values()]
    found = torch.autograd.grad(total.sum(), leaves, allow_unused=True, materialize_grads=True)
    rows = {id(leaf): grad.flatten(1) for leaf, grad in zip(leaves, found, strict=True)}
    return {
        name: torch.cat([rows[id(p)] for p in stack.groups[name].parameters.values()], dim=1)
        for name in trained
    }
