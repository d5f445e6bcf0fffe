"""The training loop of a cohort: every step advances all its runs at once.

A run's result depends on its own seed and settings alone. Every slot has its own stage, learning
rate, clipping, dropout and optimizer state, and all slots see batches of one common shape. A run
that ends leaves its slot to the next one.
"""

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from schemabank.cohort.batches import last_step
from schemabank.cohort.execute import (
    DEPTH,
    Fetch,
    allow_many_versions,
    default_executor,
    keep_freed_memory,
)
from schemabank.cohort.optim import AdamWSettings, SlotAdamW, clip_factors
from schemabank.cohort.programs import Programs
from schemabank.cohort.slots import Kind, Run, Slot, TrainingData
from schemabank.cohort.stack import AdapterStack
from schemabank.cohort.step import Training, penalise
from schemabank.curriculum import Group, StepSettings

CACHE_SHARE = 0.4  # of the free memory, for states below the first bank


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
class _Tick:
    """The programs of one step of the cohort, on their way: slots, their steps, the reports."""

    parts: list[tuple[dict[int, tuple[Slot, StepSettings, int]], Fetch]]


class Cohort:
    """Trains runs in the slots of a stack.

    Args:
        stack: adapters and banks; :meth:`steps` draws their initial weights.
        runs: any number; those beyond the stack's slots follow as slots come free.
        data: the training examples.
        explain: told what a user should know about how the steps are executed.

    Attributes:
        slots: the runs' progress, in the order of ``runs``.
        finished: weights of the runs that have ended, by name: a row for each group.
    """

    def __init__(
        self,
        stack: AdapterStack,
        runs: Sequence[Run],
        data: TrainingData,
        *,
        explain: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.stack, self.data = stack, data
        self.device = stack.model.device
        self.slots = [Slot(run, data) for run in runs]
        self.finished: dict[str, dict[Group, Tensor]] = {}
        self._seats: list[Slot | None] = [None] * stack.num_slots
        self._waiting = deque(self.slots)
        self._begun: dict[str, dict[Group, list[Tensor]]] = {}
        self._tick, self._explain = 0, explain
        self._coefficients = AdamWSettings(*(self._column() for _ in range(4)))
        self._max_norm = self._column()
        on_gpu = self.device.type == "cuda"
        self.optimizers = {
            name: SlotAdamW(
                group.weights, self._coefficients, rounded=group.rounded, compiled=on_gpu
            )
            for name, group in stack.groups.items()
        }
        if on_gpu:
            allow_many_versions()
            stack.compile()
        else:
            keep_freed_memory()
        self._programs = Programs(
            Training(
                stack=stack,
                optimizers=self.optimizers,
                max_norm=self._max_norm,
                clip=torch.compile(clip_factors, dynamic=False) if on_gpu else clip_factors,
                penalise=torch.compile(penalise, dynamic=True) if on_gpu else penalise,
                penalties=frozenset().union(*(slot.penalty_names() for slot in self.slots)),
            ),
            data=data,
            num_tags=_num_tags(runs),
            executor=default_executor(self.device, explain=explain),
            limit_bytes=_cache_limit(self.device),
        )

    @property
    def num_steps(self) -> int:
        """Steps of the cohort from the start until all runs have ended, in these slots."""
        return self._until_end([slot.num_steps for slot in self.slots])

    @property
    def steps_left(self) -> int:
        """About how many steps there are from where the cohort stands."""
        return self._until_end([slot.num_steps - slot.step for slot in self.slots])

    def _until_end(self, lengths: Sequence[int]) -> int:
        epoch = self.data.schedule.steps_per_epoch
        return last_step(lengths, epoch=epoch, slots=len(self._seats))

    def steps(self) -> Iterator[list[RunStep]]:
        """Train all runs from their seeds; yield every step of the runs in progress.

        On a GPU the reports come some steps late, so that nobody waits for them.

        Raises:
            torch.OutOfMemoryError: no step was lost; :meth:`moved` goes on with fewer slots.
        """
        launched: deque[_Tick] = deque()
        late = DEPTH - 1 if self.device.type == "cuda" else 0
        exhausted: torch.OutOfMemoryError | None = None
        while exhausted is None and self._place():
            tick = _Tick([])
            try:
                self._launch(tick)
            except torch.OutOfMemoryError as error:
                exhausted = error
            if exhausted is None or tick.parts:
                launched.append(tick)
            if len(launched) > late:
                yield self._report(launched.popleft())
        for ticked in launched:
            yield self._report(ticked)
        if exhausted is not None:
            raise exhausted
        self.stack.freeze()
        self.stack.dropout.begin_step(None)
        self.stack.banks.routing = "off"

    def free(self) -> None:
        """Give back the memory that only training needs; no step can be taken any more."""
        del self._programs, self.optimizers
        gc.collect()  # captured programs hold themselves in a circle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seat(self, names: Sequence[str]) -> None:
        """Put finished runs into the first slots, to be evaluated or saved."""
        for index, name in enumerate(names):
            run = next(slot.run for slot in self.slots if slot.run.name == name)
            self.stack.configure(index, run.lora, banked=run.bank is not None)
            for group_name, row in self.finished[name].items():
                self.stack.groups[group_name].weights[index].copy_(row)
        for group in self.stack.groups.values():
            group.publish()

    def moved(self, build: Callable[[], AdapterStack]) -> "Cohort":
        """Return a cohort that goes on where this one stands; this one is of no use any more.

        Its results are those of a cohort of the new stack's slots, within rounding.

        Args:
            build: puts another stack on the same model, once this one's memory is free.
        """
        self._empty_seats()
        begun = dict(self._begun)  # of runs that wait since an earlier move
        seated = [(i, slot) for i, slot in enumerate(self._seats) if slot is not None]
        begun |= {slot.run.name: self._rows(index) for index, slot in seated}
        self.stack.remove()
        del self.stack
        self.free()
        runs = [slot.run for slot in self.slots]
        cohort = Cohort(build(), runs, self.data, explain=self._explain)
        cohort.slots, cohort.finished, cohort._tick = self.slots, self.finished, self._tick
        cohort._begun = begun
        cohort._waiting = deque([*(slot for _, slot in seated), *self._waiting])
        return cohort

    def _rows(self, index: int) -> dict[Group, list[Tensor]]:
        """A copy of a slot's weights, moments and optimizer steps, on the CPU."""
        return {
            name: [state[index].to("cpu", copy=True) for state in optimizer.state]
            for name, optimizer in self.optimizers.items()
        }

    def _place(self) -> bool:
        """Empty the slots of runs that ended and fill them; return whether there is work.

        All runs are at the same place of the schedule's epoch, so that a run's batches do not
        depend on when it got its slot.
        """
        epoch = self.data.schedule.steps_per_epoch
        self._empty_seats()
        for index, seated in enumerate(self._seats):
            fitting = [s for s in self._waiting if (s.step - self._tick) % epoch == 0]
            if seated is None and fitting:
                self._waiting.remove(fitting[0])
                self._enter(index, fitting[0])
        return any(self._seats) or bool(self._waiting)

    def _enter(self, index: int, slot: Slot) -> None:
        """Give a run a slot: in the state of a new one, or where the run left off."""
        train = slot.run.train
        self._seats[index] = slot
        self.stack.configure(index, slot.run.lora, banked=slot.run.bank is not None)
        self.stack.initialise(index, slot.run.seed)
        for optimizer in self.optimizers.values():
            optimizer.reset(index)
        s = self._coefficients
        for column, value in (
            (s.beta1, train.adam_beta1),
            (s.beta2, train.adam_beta2),
            (s.epsilon, train.adam_epsilon),
            (s.weight_decay, train.weight_decay),
            (self._max_norm, train.max_grad_norm),
        ):
            column[index] = value
        for name, rows in self._begun.pop(slot.run.name, {}).items():
            for state, row in zip(self.optimizers[name].state, rows, strict=True):
                state[index].copy_(row)
            self.stack.groups[name].publish()

    def _empty_seats(self) -> None:
        """Keep the weights of runs that have ended, and give up their slots."""
        for index, slot in enumerate(self._seats):
            if slot is not None and slot.has_ended:
                self.finished[slot.run.name] = {
                    name: group.weights[index].to("cpu", copy=True)
                    for name, group in self.stack.groups.items()
                }
                self._seats[index] = None

    def _launch(self, tick: _Tick) -> None:
        """Take a step with every seated run: one program for every kind of step among them.

        Where memory runs out, ``tick`` has the programs that were launched before.
        """
        kinds: dict[Kind, dict[int, tuple[Slot, StepSettings]]] = {}
        for index, slot in enumerate(self._seats):
            if slot is not None:
                settings = slot.settings()
                kinds.setdefault(slot.kind(settings), {})[index] = (slot, settings)
        shapes = {kind: self.data.shape(self._tick, kind.prefix_room) for kind in kinds}
        for kind, shape in shapes.items():
            self._programs.prepare(kind, shape)
        for kind, working in sorted(kinds.items()):
            report = self._programs.launch(kind, shapes[kind], working)
            steps = {i: (slot, settings, slot.step) for i, (slot, settings) in working.items()}
            tick.parts.append((steps, report))
            for slot, _ in working.values():
                slot.step += 1
        self._tick += 1

    def _report(self, tick: _Tick) -> list[RunStep]:
        """Wait for a tick's numbers; a run that was given up meanwhile reports nothing."""
        reports: dict[int, RunStep] = {}
        for steps, fetch in tick.parts:
            values = fetch.get()
            for index, (slot, settings, step) in steps.items():
                if slot.failure is None:
                    reports[index] = _run_step(slot, settings, step, values[index])
                    slot.count(skipped=reports[index].skipped, step=step)
        return [reports[index] for index in sorted(reports)]

    def _column(self) -> Tensor:
        """One value a slot, ``(slot, 1)``."""
        return torch.zeros(self.stack.num_slots, 1, device=self.device)


def _run_step(slot: Slot, settings: StepSettings, step: int, values: list[float]) -> RunStep:
    task, total, norm, tokens = values
    return RunStep(
        run=slot.run.name,
        step=step,
        num_steps=slot.num_steps,
        stage=settings.stage_name,
        loss=task,
        total_loss=total,
        learning_rate=settings.learning_rate,
        grad_norm=norm,
        bank_scale=slot.bank_scale(settings),
        num_tokens=int(tokens),
        skipped=not math.isfinite(norm),
    )


def _num_tags(runs: Sequence[Run]) -> int:
    """Tags of an example, which all tagged runs of a cohort have in common."""
    counts = {run.tags.num_tags for run in runs if run.tags is not None}
    assert len(counts) <= 1
    return max(counts, default=1)


def _cache_limit(device: torch.device) -> int:
    """Bytes that the states below the first bank may take."""
    if device.type == "cuda":
        return int(CACHE_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(CACHE_SHARE * psutil.virtual_memory().available)
