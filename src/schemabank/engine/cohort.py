"""The training loop of a cohort: every step advances all its runs at once.

A run's result depends on its own seed and settings alone, but for rounding where the number of
slots or the largest ranks differ. Every slot has its own stage, learning rate, clipping, dropout
and optimizer state, and all slots see batches of one common shape. A run that ends or is ahead
leaves its slot to another.
"""

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import psutil
import torch
from torch import Tensor

from schemabank.common.failure import Failure
from schemabank.config.train import Stage
from schemabank.engine.compiling import optimised
from schemabank.engine.execute import (
    DEPTH,
    Fetch,
    can_compile,
    default_executor,
    keep_freed_memory,
    prepare_compiler,
    use_given_cores,
)
from schemabank.engine.finished import Finished
from schemabank.engine.idle import IdleParts, Neglected
from schemabank.engine.keeping import Keeping, Standing
from schemabank.engine.lora import ONE_MAP
from schemabank.engine.optim import AdamWSettings, clip_factors
from schemabank.engine.optimizers import begin_run, new_optimizers, use_rank
from schemabank.engine.programs import Programs
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.schedule import StepSettings
from schemabank.engine.seating import Seating, count_steps
from schemabank.engine.slots import Halted, Kind, Slot
from schemabank.engine.stack import AdapterStack
from schemabank.engine.step import Training, penalise, train_step

CACHE_SHARE = 0.4  # of the free memory, for states below the first part


@dataclass(frozen=True)
class RunStep:
    """What one step of one run did; losses in nats per token, norm before clipping.

    A skipped step changed nothing, since its loss or gradient was not finite; ``examples`` holds
    the ids of its batch, and nothing for other steps. ``logged`` holds what the run's method says.
    """

    run: str
    step: int
    num_steps: int
    stage: str
    loss: float
    total_loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    skipped: bool
    logged: Mapping[str, float] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether it is the last one of the whole run; one that is stopped takes none such."""
        return self.step + 1 == self.num_steps


@dataclass(frozen=True)
class _Tick:
    """The programs of one step of the cohort, on their way: slots, their steps, the reports."""

    parts: list[tuple[dict[int, tuple[Slot, StepSettings, int]], Fetch]]


class Cohort:
    """Trains runs in the slots of a stack.

    Args:
        stack: what trains; :meth:`steps` draws their initial weights.
        runs: any number; the longest come first, others follow as slots come free.
        data: the training examples.
        explain: told what a user should know about how the steps are executed.
        halted: a cohort of these very runs, to go on from where it was halted.

    Attributes:
        slots: the runs' progress, in the order of ``runs``.
        finished: weights of the runs that have ended, by name: a row for each group.
        stage_ended: called with slot, run and stage when a run has taken the last step of a stage
            but its last, while the stack holds the weights that it came to.
        is_due: called before every step; where it says so, the cohort waits for all reports of the
            steps before and calls ``save``, while :meth:`standings` can be asked.
        between: called before every step and after the last with the runs in slots, while the stack
            holds the weights that they came to; it may measure them, stop a run, or choose
            :meth:`weights` that it ends as.
    """

    def __init__(
        self,
        stack: AdapterStack,
        runs: Sequence[Run],
        data: TrainingData,
        *,
        explain: Callable[[str], None] = lambda _: None,
        halted: Halted | None = None,
    ) -> None:
        self.stack, self.data = stack, data
        self.device = stack.model.device
        begin = halted or Halted([Slot(run, data) for run in runs], Finished(), {}, tick=0)
        self.slots, self.finished = begin.slots, begin.finished
        assert all(slot.run.passes <= stack.lora.passes for slot in self.slots)
        self.stage_ended: Callable[[int, str, Stage], None] = lambda *_: None
        self.between: Callable[[Mapping[int, Slot]], None] = lambda _: None
        self.is_due: Callable[[], bool] = lambda: False
        self.save: Callable[[], None] = lambda: None
        by_name = {slot.run.name: slot for slot in self.slots}
        self._seating = Seating(
            self.slots,
            num_slots=stack.num_slots,
            cycle=data.schedule.cycle,
            tick=begin.tick,
            seated={index: by_name[name] for index, name in begin.seats.items()},
        )
        self._explain = explain
        self._coefficients = AdamWSettings(*(self._column() for _ in fields(AdamWSettings)))
        self._max_norm = self._column()
        compiled = can_compile(self.device, explain=explain)
        if compiled:
            prepare_compiler()
        self.optimizers = new_optimizers(stack, self.slots, self._coefficients, compiled=compiled)
        if compiled:
            stack.compile()
        elif self.device.type == "cpu":
            use_given_cores()
            keep_freed_memory()
        finished, begun = self.finished, dict(begin.begun)
        self._keeping = Keeping(stack, self.optimizers, finished=finished, begun=begun)
        self._idle = IdleParts(stack, self.optimizers)
        self._programs = Programs(
            partial(train_step, self._training(compiled=compiled)),
            stack,
            data=data,
            executor=default_executor(self.device, explain=explain),
            limit_bytes=_cache_limit(self.device),
        )
        for index, slot in self._seating.seated.items():
            self._enter(index, slot)

    def _training(self, *, compiled: bool) -> Training:
        """What a step needs."""
        return Training(
            stack=self.stack,
            optimizers=self.optimizers,
            max_norm=self._max_norm,
            clip=optimised(clip_factors) if compiled else clip_factors,
            penalise=optimised(penalise, dynamic=True) if compiled else penalise,
            penalties=frozenset().union(*(slot.course.penalties for slot in self.slots)),
        )

    @property
    def num_steps(self) -> int:
        """How many steps the cohort takes, from where it stands, until all runs have ended."""
        return sum(self.steps_to_come)

    @property
    def steps_to_come(self) -> tuple[int, int]:
        """The same, apart: steps with the base model's trunk, and others."""
        own = self._seating
        return count_steps(
            self.slots, num_slots=len(own.slots), cycle=own.cycle, tick=own.tick, seated=own.seated
        )

    @property
    def tick(self) -> int:
        """Where the cohort stands in the schedule of its steps."""
        return self._seating.tick

    def standings(self) -> dict[str, Standing]:
        """Copy what runs have come to that have begun and go on, by name; for ``save`` to call."""
        return self._keeping.standings(self.slots, self._seating.seated)

    def steps(self) -> Iterator[list[RunStep]]:
        """Train all runs from their seeds; yield every step of the runs in progress.

        On a GPU the reports come some steps late, so that the host never waits for the device.

        Raises:
            torch.OutOfMemoryError: no captured step was lost; :meth:`halt` lets the runs go on in
                fewer slots.
        """
        launched: deque[_Tick] = deque()
        late = DEPTH - 1 if self.device.type == "cuda" else 0
        exhausted: torch.OutOfMemoryError | None = None
        try:
            while exhausted is None:
                tick = _Tick([])
                try:
                    if not self._place():
                        break
                    if self.is_due():
                        while launched:
                            yield self._report(launched.popleft())
                        self.save()
                    self._launch(tick)
                except torch.OutOfMemoryError as error:
                    exhausted = error
                if exhausted is None or tick.parts:
                    launched.append(tick)
                if len(launched) > late:
                    yield self._report(launched.popleft())
            yield from map(self._report, launched)
            if exhausted is not None:
                raise exhausted
            self._keeping.keep_failed(self.slots)
        finally:
            self.stack.rest()

    def idle_parts(self) -> list[Neglected]:
        """Return what routers have left idle for long, from time to time; to call at every step."""
        return self._idle.look(self._seating.seated)

    def free(self) -> None:
        """Give back the memory that only training needs; no step can be taken any more."""
        del self._programs, self.optimizers, self._keeping, self._idle
        gc.collect()  # captured programs hold themselves in a circle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def weights(self, index: int) -> dict[str, Tensor]:
        """Return the weights that the run in a slot would end as now, by group, on the CPU."""
        return self._keeping.ends_as(index, self._seating.seated[index])

    def give_up(self, reason: Failure) -> None:
        """Let the runs that have slots fail."""
        for slot in self._seating.seated.values():
            slot.failure = reason

    def seat(self, names: Sequence[str], *, factors: Sequence[float] = ()) -> None:
        """Put finished runs into the first slots, each B times its factor if there are any."""
        for index, name in enumerate(names):
            run = next(slot.run for slot in self.slots if slot.run.name == name)
            self.stack.configure(index, run.lora, run.method.settings)
            self.stack.lora.use_maps(index, ONE_MAP)  # as it was folded when it ended
            weights = self.finished[name]
            if factors:
                weights = self.stack.lora.rescaled(weights, factors[index])
            for group_name, row in weights.items():
                self.stack.groups[group_name].weights[index].copy_(row)
        for group in self.stack.groups.values():
            group.publish()

    def halt(self) -> Halted:
        """Take the stack off the model and return all that the runs have come to.

        Their results will be those of a cohort of the next stack's slots, within rounding. This
        cohort is of no use any more.
        """
        for index, slot in self._seating.seated.items():
            self._keeping.keep(index, slot)
        begun = dict(self._keeping.begun)
        self.stack.remove()
        self.free()
        return Halted(self.slots, self.finished, begun, self._seating.tick)

    def _place(self) -> bool:
        """Empty the slots of runs that ended or wait and fill them; say whether there is work."""
        entered = True
        while entered:  # once more, since a run that was halted enters with a step to look at
            self._look()
            for index, slot in self._seating.leave().items():
                self._keeping.keep(index, slot)
            entered = self._fill()
        if not self._seating.is_cached:
            self._programs.drop_trunk()
        return bool(self._seating.seated)

    def _look(self) -> None:
        """Let runs be looked at; where memory runs out, also those at their end keep waiting."""
        seated = self._seating.seated
        for slot in seated.values():
            slot.is_awaited = True
        self.between(seated)
        for slot in seated.values():
            slot.is_awaited = False

    def _fill(self) -> bool:
        """Give free slots to runs that can go on now; say whether there was one."""
        entering = self._seating.enter()
        try:
            for index, slot in entering.items():
                self._enter(index, slot)
        except BaseException:
            self._seating.vacate(entering)
            raise
        return bool(entering)

    def _enter(self, index: int, slot: Slot) -> None:
        """Give a run a slot: in the state of a new one, or where the run left off."""
        self.stack.configure(index, slot.run.lora, slot.run.method.settings)
        self.stack.initialise(index, slot.run.seed)
        begin_run(self.optimizers, self._coefficients, index, slot.run)
        self._max_norm[index] = slot.run.train.max_grad_norm
        self._keeping.put_back(index, slot)

    def _launch(self, tick: _Tick) -> None:
        """Take a step with every seated run: one program for every kind of step among them.

        Where memory runs out, ``tick`` has the programs that were launched before.
        """
        kinds: dict[Kind, dict[int, tuple[Slot, StepSettings]]] = {}
        for index, slot in self._seating.seated.items():
            settings = slot.settings()
            if settings.first and slot.step > 0:
                self.stage_ended(index, slot.run.name, slot.stage_before)
            if slot.step == slot.course.reduced_at:
                self.stack.lora.reduce(index)
                use_rank(self.optimizers, index, slot.run.lora.r)
            if slot.step in slot.course.branch_starts:
                slot.origin = self.stack.lora.back_at(index, slot.origin)
            kinds.setdefault(slot.kind(settings), {})[index] = (slot, settings)
        shapes = {k: self.data.shape(self._seating.tick, k.room) for k in kinds}
        self._prepare(shapes)
        for kind, working in sorted(kinds.items()):
            report = self._programs.launch(kind, shapes[kind], working)
            steps = {i: (slot, settings, slot.step) for i, (slot, settings) in working.items()}
            tick.parts.append((steps, report))
            for slot, _ in working.values():
                slot.step += 1
        self._seating.tick += 1

    def _prepare(self, shapes: Mapping[Kind, tuple[int, int]]) -> None:
        """Make a step's programs, and on a GPU those to come of a kind that is new.

        So what does not fit shows at the start.
        """
        for kind, shape in shapes.items():
            is_new = self.device.type == "cuda" and not self._programs.has(kind)
            coming = self._shapes_to_come(kind) if is_new else []
            self._programs.prepare(kind, [*coming, shape])

    def _shapes_to_come(self, kind: Kind) -> list[tuple[int, int]]:
        """Shapes of the steps that runs may still take as a kind, the largest first."""
        tick, cycle = self._seating.tick, self._seating.cycle
        going = [slot for slot in self.slots if not slot.has_ended]
        left = max((s.num_cached if kind.cached else s.num_steps) - s.step for s in going)
        steps = range(tick, tick + min(left, cycle))
        return sorted({self.data.shape(step, kind.room) for step in steps}, reverse=True)

    def _report(self, tick: _Tick) -> list[RunStep]:
        """Wait for a tick's numbers; a run that was given up meanwhile reports nothing."""
        reports: dict[int, RunStep] = {}
        for steps, fetch in tick.parts:
            values = fetch.get()
            for index, (slot, settings, step) in steps.items():
                if slot.failure is None:
                    reports[index] = report = _run_step(slot, settings, step, values[index])
                    # Looked at after a skipped step alone, so that others need not wait for it.
                    if report.skipped and self._seating.slots[index] is slot:
                        slot.failure = self._keeping.damage(index, step)
                    slot.count(step, settings, skipped=report.skipped)
        return [reports[index] for index in sorted(reports)]

    def _column(self) -> Tensor:
        """One value a slot, ``(slot, 1)``."""
        return torch.zeros(self.stack.num_slots, 1, device=self.device)


def _run_step(slot: Slot, settings: StepSettings, step: int, values: list[float]) -> RunStep:
    task, total, norm, tokens = values
    skipped = not (math.isfinite(norm) and math.isfinite(total))
    return RunStep(
        run=slot.run.name,
        step=step,
        num_steps=slot.num_steps,
        stage=settings.stage_name,
        loss=task,
        total_loss=total,
        learning_rate=settings.learning_rate,
        grad_norm=norm,
        num_tokens=int(tokens),
        skipped=skipped,
        logged=slot.course.logged(settings),
        examples=slot.examples(step) if skipped else (),
    )


def _cache_limit(device: torch.device) -> int:
    """Bytes that the states below the first part may take."""
    if device.type == "cuda":
        return int(CACHE_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(CACHE_SHARE * psutil.virtual_memory().available)
