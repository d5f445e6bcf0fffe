"""The programs of a cohort: one for every kind of step and shape, made when first needed."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemabank.common.waiting import waiting
from schemabank.engine.batches import Batch, Encoded, fill_rows
from schemabank.engine.execute import Executor, Fetch, Staging
from schemabank.engine.part import Field, StepInput
from schemabank.engine.run import Row, TrainingData
from schemabank.engine.schedule import StepSettings
from schemabank.engine.slots import FIELDS, Kind, Slot
from schemabank.engine.softtargets import soft_shapes
from schemabank.engine.stack import AdapterStack
from schemabank.engine.trunk import TrunkRow, TrunkStates
from schemabank.models.architecture import hidden_size

Step = Callable[[Kind, StepInput, Tensor | None], Tensor]
Working = Mapping[int, tuple[Slot, StepSettings]]  # by position in the stack


@dataclass(frozen=True)
class _Program:
    """A kind of step at one shape: its input, and how to run it."""

    staging: Staging
    run: Callable[[], Tensor]
    states: Tensor | None = None


class Programs:
    """Takes steps with the slots of a stack.

    Args:
        step: computes a step, as :func:`schemabank.engine.step.train_step` does.
        stack: what it trains.
        data: the training examples.
        executor: runs programs.
        limit_bytes: memory for the states below the first part.
    """

    def __init__(
        self,
        step: Step,
        stack: AdapterStack,
        *,
        data: TrainingData,
        executor: Executor,
        limit_bytes: int,
    ) -> None:
        self._step, self._stack, self._data, self._executor = step, stack, data, executor
        self._leading = (stack.num_slots, data.schedule.batch_size)
        self._fields = _fields_of(stack)
        self._penalties = [p for part in stack.parts for p in part.penalties]
        self._programs: dict[tuple[Kind, tuple[int, int]], _Program] = {}
        self._widths = data.schedule.widths()
        self._active: dict[frozenset[str], npt.NDArray[np.bool_]] = {}
        self._trunk: TrunkStates | None = self._trunk_states(limit_bytes)

    def has(self, kind: Kind) -> bool:
        """Whether there is any program of a kind."""
        return any(made == kind for made, _ in self._programs)

    def prepare(self, kind: Kind, shapes: Sequence[tuple[int, int]]) -> None:
        """Compile and capture what :meth:`launch` will need; changes no weight."""
        missing = [shape for shape in shapes if (kind, shape) not in self._programs]
        if not missing:
            return
        with waiting("compiling steps", self._executor.explain):
            for shape in missing:
                if (kind, shape) not in self._programs:
                    self._programs[kind, shape] = self._make(kind, shape)

    def drop_trunk(self) -> None:
        """Give back what cached kinds of steps need; none of them can be taken any more."""
        if self._trunk is None:
            return
        on_gpu = self._executor.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self._executor.device)  # a program may still run
        self._trunk = None
        self._programs = {key: p for key, p in self._programs.items() if not key[0].cached}
        gc.collect()  # programs hold what they run in a circle
        if on_gpu:
            torch.cuda.empty_cache()  # captured programs have memory of their own

    def launch(self, kind: Kind, shape: tuple[int, int], working: Working) -> Fetch:
        """Take one step of some slots, all of one kind; the others stay as they are.

        Args:
            kind: of the step.
            shape: tokens and labels a row.
            working: the slots that take a step.

        Returns:
            What the step reports.
        """
        self.prepare(kind, [shape])
        program = self._programs[kind, shape]
        rows = self._fill(program.staging.host(), kind, working)
        program.staging.send()
        if program.states is not None:
            assert self._trunk is not None
            self._trunk.write(rows, program.states)
        return Fetch(program.run())

    def _make(self, kind: Kind, shape: tuple[int, int]) -> _Program:
        """Lay out a program's input, compile and capture it."""
        staging = Staging(self._layout(kind, *shape), self._executor.device)
        given = _step_input(staging.device)
        slots, batch_size = self._leading
        what = f"a step of {slots} x {batch_size} x {shape[0]} tokens"
        states: Tensor | None = None
        if kind.cached:
            assert self._trunk is not None, "no cached step after drop_trunk"
            model = self._stack.model
            size = (slots * batch_size, shape[0], hidden_size(model))
            states = torch.zeros(size, dtype=model.dtype, device=self._executor.device)
        run = self._executor.program(lambda: self._step(kind, given, states), what)
        if kind.cached:
            assert self._trunk is not None
            self._trunk.prepare(shape[0])
        return _Program(staging, run, states)

    def _trunk_states(self, limit_bytes: int) -> TrunkStates:
        """What computes the states below the first part, and keeps them."""
        model = self._stack.model
        ahead = {
            bucket.width: (self._trunk_row(Row(i, self._data.encoded[i])) for i in bucket.members)
            for bucket in self._data.schedule.buckets
        }
        return TrunkStates(
            self._stack.trunk,
            num_rows=math.prod(self._leading),
            like=torch.empty(0, hidden_size(model), dtype=model.dtype, device=model.device),
            executor=self._executor,
            limit_bytes=limit_bytes,
            ahead=ahead,
        )

    def _trunk_row(self, row: Row, *, room: int = 0) -> TrunkRow:
        """A row of a step that has room for a prefix."""
        width = int(self._widths[row.index]) + room
        return TrunkRow((room, row.key), row.encoded.tokens, width, row.lasting)

    def _layout(
        self, kind: Kind, width: int, num_labels: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of all that a step is given."""
        (slots, _), groups = self._leading, len(self._stack.groups)
        shapes = {
            name: ((*(self._leading if field.by_row else (slots,)), *field.shape), field.dtype)
            for name, field in self._fields.items()
        }
        active = {"active": ((slots, groups), torch.bool)}  # which groups a slot's step updates
        return {
            **Batch.shapes(self._leading, width=width, num_labels=num_labels),
            **soft_shapes(self._leading, num_labels=num_labels, width=kind.soft),
            **shapes,
            **active,
        }

    def _fill(
        self, host: Mapping[str, np.ndarray], kind: Kind, working: Working
    ) -> list[TrunkRow | None]:
        """Write a step's input; return what tells every row's states below the first part."""
        host["active"].fill(False)
        for name, field in self._fields.items():
            host[name][...] = field.default
        for name in soft_shapes(self._leading, num_labels=0, width=kind.soft):
            host[name].fill(0)
        batch_size = self._leading[1]
        nothing: list[Encoded | None] = [None] * batch_size
        encoded = [nothing] * self._leading[0]
        trunk: list[TrunkRow | None] = [None] * math.prod(self._leading)
        for index, (slot, settings) in working.items():
            rows = slot.rows(settings)
            self._write_values(host, index, slot, settings, slot.values(settings, rows))
            if slot.run.soft is not None:
                slot.run.soft.write(host, index, [row and row.index for row in rows])
            encoded[index] = [None if row is None else row.encoded for row in rows]
            if kind.cached:
                start = index * batch_size
                trunk[start : start + batch_size] = [
                    None if row is None else self._trunk_row(row, room=kind.room) for row in rows
                ]
        fill_rows(host, encoded)
        return trunk

    def _write_values(
        self,
        host: Mapping[str, np.ndarray],
        index: int,
        slot: Slot,
        settings: StepSettings,
        values: Mapping[str, npt.ArrayLike],
    ) -> None:
        """Write a slot's values; a penalty on weights that the step does not train counts 0."""
        host["active"][index] = self._active_groups(settings.trained)
        for name, value in values.items():
            host[name][index] = value
        declared = slot.course.penalties
        for penalty in self._penalties:
            if penalty.group is not None and penalty.group not in settings.trained:
                host[penalty.name][index] = 0
            # An undeclared one would count or not as some neighbour declares it.
            assert penalty.name in declared or not values.get(penalty.name), penalty.name

    def _active_groups(self, trained: frozenset[str]) -> npt.NDArray[np.bool_]:
        """Which groups a step updates, ``(group,)``; the same few answers in every step."""
        if trained not in self._active:
            self._active[trained] = np.array([name in trained for name in self._stack.groups])
        return self._active[trained]


def _fields_of(stack: AdapterStack) -> dict[str, Field]:
    """The fields of a step's input: the engine's, those of parts, and the penalties' weights."""
    found = dict(FIELDS)
    for part in stack.parts:
        found |= part.fields
        found |= {penalty.name: Field() for penalty in part.penalties}
    return found


def _step_input(tensors: Mapping[str, Tensor]) -> StepInput:
    batch = Batch(**{name: tensors[name] for name in Batch.__dataclass_fields__})
    others = {n: t for n, t in tensors.items() if n not in Batch.__dataclass_fields__}
    return StepInput(batch, others)
