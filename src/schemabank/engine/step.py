"""What one step computes on the device: forward, loss, backward, clipping and update.

A step reads everything that changes from tensors of fixed addresses and writes into the weights,
the optimizer's moments and its report. It never asks the device for a number, so that it can be
captured once as a graph and replayed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank.engine.batches import Batch
from schemabank.engine.loss import labelled_losses, mean_per_slot
from schemabank.engine.optim import SlotAdamW
from schemabank.engine.slots import Kind
from schemabank.engine.stack import AdapterStack
from schemabank.methods.bank import (
    Routed,
    SchemaBank,
    load_balance,
    orthonormality,
    router_entropy,
    tag_loss,
)
from schemabank.methods.curriculum import GROUPS, Group

PENALTIES = ("entropy", "load_balance", "orthonormality", "tags")


@dataclass(frozen=True)
class StepInput:
    """What changes from step to step.

    Attributes:
        batch: the rows of every slot.
        tags: ``(slot, batch, tag)``, schema ids.
        tagged: ``(slot, batch)``, 1 where an example's tags are shown.
        dropout_keys: ``(slot,)``.
        bank_scale: ``(slot,)``; 0 is no bank.
        learning_rate: ``(slot,)``.
        fresh: ``(slot,)``, whether the optimizer starts anew.
        active: ``(slot, group)``, in the order of ``GROUPS``: what the slot's step updates.
        penalties: ``(slot, penalty)``, weights in the order of ``PENALTIES``.
        loss_scale: ``(slot,)``, what the mean loss of a slot's labels is multiplied by.
    """

    batch: Batch
    tags: Tensor
    tagged: Tensor
    dropout_keys: Tensor
    bank_scale: Tensor
    learning_rate: Tensor
    fresh: Tensor
    active: Tensor
    penalties: Tensor
    loss_scale: Tensor


@dataclass(frozen=True)
class Training:
    """What a cohort trains, and how.

    Attributes:
        stack: adapters and banks.
        optimizers: one a group.
        max_norm: ``(slot, 1)``, the clipping limits.
        clip: :func:`clip_factors`, compiled or not.
        penalise: :func:`penalise`, compiled or not.
        penalties: the terms that some run of the cohort adds to its loss.
    """

    stack: AdapterStack
    optimizers: Mapping[Group, SlotAdamW]
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
    stack.begin_step(given.dropout_keys, given.bank_scale)
    trained = [name for name in GROUPS if name in kind.trained and name in stack.groups]
    for name, group in stack.groups.items():
        group.require_grad(name in trained)
    task, total = _losses(training, kind, given, states)
    norm = _update(training, trained, given, total)
    stack.banks.routed.clear()  # it holds the step's graph, and with it its memory
    tokens = given.batch.real.sum((1, 2))
    return torch.stack([task, total.detach(), norm, tokens], dim=1)


def _losses(
    training: Training, kind: Kind, given: StepInput, states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean loss of the batch's labels, and the loss that is minimised, ``(slot,)`` each."""
    stack, batch = training.stack, given.batch
    hidden = stack.hidden(batch.tokens, states=states)
    mean = mean_per_slot(labelled_losses(hidden, batch, stack.head), batch.weights)
    task = mean * given.loss_scale
    names = training.penalties
    if "schemas" not in kind.trained:
        names -= {"orthonormality"}  # its weight is 0 then
    if not names:
        return mean.detach(), task
    banks = list(stack.banks.banks.values())
    return mean.detach(), task + training.penalise(names, banks, stack.banks.routed, given)


def penalise(
    names: frozenset[str], banks: Sequence[SchemaBank], routed: Sequence[Routed], given: StepInput
) -> Tensor:
    """Return the weighted terms of the loss beside the task's, averaged over banks, ``(slot,)``."""
    real = given.batch.real
    terms: dict[str, Callable[[], list[Tensor]]] = {
        "entropy": lambda: [router_entropy(r, real) for r in routed],
        "load_balance": lambda: [load_balance(r, real) for r in routed],
        "orthonormality": lambda: [orthonormality(b) for b in banks],
        "tags": lambda: [tag_loss(r, given.tags, real, given.tagged) for r in routed],
    }
    values = [
        given.penalties[:, index] * torch.stack(terms[name]()).mean(0)
        for index, name in enumerate(PENALTIES)
        if name in names
    ]
    return torch.stack(values).sum(0)


def _update(
    training: Training, trained: Sequence[Group], given: StepInput, total: Tensor
) -> Tensor:
    """Clip and apply the gradients of every slot; return their norms, ``(slot,)``."""
    stack = training.stack
    grads = _gradients(stack, trained, total)
    columns = dict(zip(GROUPS, given.active.split(1, dim=1), strict=True))
    active = {name: columns[name] for name in trained}
    norm, factor = training.clip([(grads[n], active[n]) for n in trained], training.max_norm)
    for name, grad in grads.items():
        training.optimizers[name].update(
            grad,
            factor=factor,
            learning_rate=given.learning_rate[:, None],
            active=active[name] & norm.isfinite(),
            fresh=given.fresh[:, None],
        )
    return norm[:, 0]


def _gradients(stack: AdapterStack, trained: Sequence[Group], total: Tensor) -> dict[Group, Tensor]:
    """Return the gradient of every trained group, ``(slot, size)``; zero where none came."""
    leaves = [p for name in trained for p in stack.groups[name].parameters.values()]
    found = torch.autograd.grad(total.sum(), leaves, allow_unused=True, materialize_grads=True)
    rows = {id(leaf): grad.flatten(1) for leaf, grad in zip(leaves, found, strict=True)}
    return {
        name: torch.cat([rows[id(p)] for p in stack.groups[name].parameters.values()], dim=1)
        for name in trained
    }
