"""The training loop of a cohort: every step advances all its runs at once.

A run's result depends on its own seed and settings alone. Every slot has its own stage, learning
rate, clipping, dropout and optimizer state, and all slots see batches of one common shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemabank import bank as bank_maths
from schemabank.cohort.batches import Batch, collate
from schemabank.cohort.loss import gather_labelled, mean_per_slot, token_losses
from schemabank.cohort.optim import AdamWSettings, SlotAdamW, clip_factors
from schemabank.cohort.slots import Run, Slot, TrainingData, tag_tensors
from schemabank.cohort.stack import AdapterStack
from schemabank.curriculum import StepSettings


@dataclass(frozen=True)
class RunStep:
    """What one step of one run did; losses in nats per token, norm before clipping."""

    run: str
    step: int
    num_steps: int
    stage: str
    loss: float
    total_loss: float
    learning_rate: float
    grad_norm: float
    bank_scale: float
    num_tokens: int
    skipped: bool


@dataclass(frozen=True)
class _Input:
    """One step's batch with its tags ``(slot, batch, tag)`` and which of them are shown."""

    batch: Batch
    tags: Tensor
    tagged: Tensor


class Cohort:
    """Trains one run in each slot of a stack.

    Args:
        stack: adapters and banks; :meth:`steps` draws their initial weights.
        runs: one a slot.
        data: the training examples.
    """

    def __init__(self, stack: AdapterStack, runs: Sequence[Run], data: TrainingData) -> None:
        assert len(runs) == stack.num_slots
        self.stack, self.data = stack, data
        self.device = stack.model.device
        self.slots = [Slot(run, data) for run in runs]
        self.max_norm = self._column([run.train.max_grad_norm for run in runs])
        coefficients = AdamWSettings(
            beta1=self._column([r.train.adam_beta1 for r in runs]),
            beta2=self._column([r.train.adam_beta2 for r in runs]),
            epsilon=self._column([r.train.adam_epsilon for r in runs]),
            weight_decay=self._column([r.train.weight_decay for r in runs]),
        )
        self.optimizers = {
            name: SlotAdamW(group.weights, coefficients) for name, group in stack.groups.items()
        }

    @property
    def num_steps(self) -> int:
        """Steps until the longest run ends."""
        return max(slot.num_steps for slot in self.slots)

    def steps(self) -> Iterator[list[RunStep]]:
        """Train all runs from their seeds; yield every step of the runs still in progress."""
        for index, slot in enumerate(self.slots):
            self.stack.initialise(index, slot.run.seed)
        for step in range(self.num_steps):
            settings = [slot.settings(step) for slot in self.slots]
            if any(settings):
                yield self._step(step, settings)
        self.stack.freeze()
        self.stack.dropout.begin_step(None)
        self.stack.banks.routing = "off"

    def _step(self, step: int, settings: list[StepSettings | None]) -> list[RunStep]:
        self._begin(step, settings)
        given = self._input(step, settings)
        task, total = self._losses(given, settings)
        if total.requires_grad:
            total.sum().backward()
        norm = self._update(settings)
        tokens = given.batch.real.sum((1, 2))
        values = torch.stack([task, total, norm, tokens], dim=1).tolist()
        reports = []
        for slot, setting, value in zip(self.slots, settings, values, strict=True):
            if setting is not None:
                report = _report(slot, setting, step, value)
                slot.count(skipped=report.skipped, step=step)
                reports.append(report)
        return reports

    def _begin(self, step: int, settings: list[StepSettings | None]) -> None:
        """Set stages, bank scales and dropout; clear gradients; restart optimizers."""
        for name, group in self.stack.groups.items():
            group.require_grad(any(s is not None and name in s.trained for s in settings))
        for index, setting in enumerate(settings):
            if setting is not None and setting.first:
                for optimizer in self.optimizers.values():
                    optimizer.reset(index)
        scales = [slot.bank_scale(s) for slot, s in zip(self.slots, settings, strict=True)]
        self.stack.banks.scale = torch.tensor(scales, device=self.device)
        self.stack.banks.routing = "on" if any(scales) else "off"
        self.stack.dropout.begin_step([(slot.run.seed, step) for slot in self.slots])

    def _input(self, step: int, settings: list[StepSettings | None]) -> _Input:
        drawn = [slot.rows(step, s) for slot, s in zip(self.slots, settings, strict=True)]
        width, num_labels = self.data.shape(step)
        batch = collate([rows for rows, _ in drawn], width=width, num_labels=num_labels)
        tags, tagged = tag_tensors([tags for _, tags in drawn])
        return _Input(batch.to(self.device), tags.to(self.device), tagged.to(self.device))

    def _losses(self, given: _Input, settings: list[StepSettings | None]) -> tuple[Tensor, Tensor]:
        """Task loss, and the loss that is minimised, ``(slot,)`` each."""
        hidden = self.stack.hidden(given.batch.tokens)
        picked = gather_labelled(hidden, given.batch.positions)
        losses = token_losses(picked, given.batch.labels.flatten(), self.stack.head)
        task = mean_per_slot(losses, given.batch.weights)
        weights = [s.penalty_weights(t) for s, t in zip(self.slots, settings, strict=True)]
        total = task
        for name in sorted(set().union(*weights)):
            weight = torch.tensor([w.get(name, 0.0) for w in weights], device=self.device)
            total = total + weight * self._penalty(name, given)
        return task.detach(), total

    def _penalty(self, name: str, given: _Input) -> Tensor:
        """A term of the loss, averaged over the banks, ``(slot,)``."""
        real, tagged = given.batch.real, given.tagged[..., None]
        routed, banks = self.stack.banks.routed, self.stack.banks.banks
        terms: dict[str, Callable[[], list[Tensor]]] = {
            "entropy": lambda: [bank_maths.router_entropy(r, real) for r in routed],
            "load_balance": lambda: [bank_maths.load_balance(r, real) for r in routed],
            "orthonormality": lambda: [bank_maths.orthonormality(b) for b in banks.values()],
            "tags": lambda: [bank_maths.tag_loss(r, given.tags, real * tagged) for r in routed],
        }
        return torch.stack(terms[name]()).mean(0)

    def _update(self, settings: list[StepSettings | None]) -> Tensor:
        """Clip and apply the gradients of every slot; return their norms, ``(slot,)``."""
        trained = {
            name: [s is not None and name in s.trained for s in settings]
            for name in self.stack.groups
        }
        active = {name: self._column(flags) for name, flags in trained.items() if any(flags)}
        grads = {name: self.stack.groups[name].grads() for name in active}
        norm, factor = clip_factors([(grads[n], active[n]) for n in active], self.max_norm)
        rates = self._column([0.0 if s is None else s.learning_rate for s in settings])
        for name, grad in grads.items():
            self.optimizers[name].update(
                grad * factor, learning_rate=rates, active=active[name] & norm.isfinite()
            )
        return norm[:, 0]

    def _column(self, values: Sequence[float | bool]) -> Tensor:
        """One value a slot, ``(slot, 1)``."""
        return torch.tensor(values, device=self.device)[:, None]


def _report(slot: Slot, setting: StepSettings, step: int, value: list[float]) -> RunStep:
    task, total, norm, tokens = value
    return RunStep(
        run=slot.run.name,
        step=step,
        num_steps=slot.num_steps,
        stage=setting.stage_name,
        loss=task,
        total_loss=total,
        learning_rate=setting.learning_rate,
        grad_norm=norm,
        bank_scale=slot.bank_scale(setting),
        num_tokens=int(tokens),
        skipped=not math.isfinite(norm),
    )
