"""The programs of a cohort: one for every kind of step and shape, made when first needed."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from schemabank.common.waiting import waiting
from schemabank.engine.batches import Batch, Encoded, fill_rows
from schemabank.engine.dropout import dropout_keys
from schemabank.engine.execute import Executor, Fetch, Staging
from schemabank.engine.slots import Kind, Slot, Tags, TrainingData
from schemabank.engine.step import PENALTIES, StepInput, Training, train_step
from schemabank.engine.trunk import TrunkRow, TrunkStates
from schemabank.methods.curriculum import GROUPS, StepSettings
from schemabank.models.architecture import hidden_size

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
        training: what is trained.
        data: the training examples.
        num_tags: tags an example has where it has any.
        executor: runs programs.
        limit_bytes: memory for the states below the first bank.
    """

    def __init__(
        self,
        training: Training,
        *,
        data: TrainingData,
        num_tags: int,
        executor: Executor,
        limit_bytes: int,
    ) -> None:
        self._training, self._data, self._executor = training, data, executor
        self._leading = (training.stack.num_slots, data.schedule.batch_size)
        self._num_tags = num_tags
        self._programs: dict[tuple[Kind, tuple[int, int]], _Program] = {}
        self._widths = data.schedule.widths()
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
            The report of :func:`train_step`.
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
        stack = self._training.stack
        staging = Staging(self._fields(*shape), self._executor.device)
        given = _step_input(staging.device)
        slots, batch_size = self._leading
        what = f"a step of {slots} x {batch_size} x {shape[0]} tokens"
        if not kind.cached:
            step = self._executor.program(
                lambda: train_step(self._training, kind, given, None), what
            )
            return _Program(staging, step)
        assert self._trunk is not None
        size = (slots * batch_size, shape[0], hidden_size(stack.model))
        states = torch.zeros(size, dtype=stack.model.dtype, device=self._executor.device)
        step = self._executor.program(lambda: train_step(self._training, kind, given, states), what)
        self._trunk.prepare(shape[0])
        return _Program(staging, step, states)

    def _trunk_states(self, limit_bytes: int) -> TrunkStates:
        """What computes the states below the first bank, and keeps them."""
        model = self._training.stack.model
        ahead = {
            bucket.width: (self._trunk_row(i, self._data.encoded[i]) for i in bucket.members)
            for bucket in self._data.schedule.buckets
        }
        return TrunkStates(
            self._training.stack.trunk,
            num_rows=math.prod(self._leading),
            like=torch.empty(0, hidden_size(model), dtype=model.dtype, device=model.device),
            executor=self._executor,
            limit_bytes=limit_bytes,
            ahead=ahead,
        )

    def _trunk_row(
        self, index: int, row: Encoded, *, room: int = 0, seen: Tags = (), lasting: bool = True
    ) -> TrunkRow:
        """An example's row, whose text shows some tags and has room for them."""
        return TrunkRow((room, index, seen), row.tokens, self._widths[index] + room, lasting)

    def _fields(
        self, width: int, num_labels: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        slots, batch_size = self._leading
        return {
            **Batch.shapes(self._leading, width=width, num_labels=num_labels),
            "tags": ((slots, batch_size, self._num_tags), torch.int64),
            "tagged": ((slots, batch_size), torch.float32),
            "dropout_keys": ((slots,), torch.int32),
            "bank_scale": ((slots,), torch.float32),
            "learning_rate": ((slots,), torch.float32),
            "fresh": ((slots,), torch.bool),
            "active": ((slots, len(GROUPS)), torch.bool),
            "penalties": ((slots, len(PENALTIES)), torch.float32),
            "loss_scale": ((slots,), torch.float32),
        }

    def _fill(
        self, host: Mapping[str, np.ndarray], kind: Kind, working: Working
    ) -> list[TrunkRow | None]:
        """Write a step's input; return what tells every row's states below the first bank."""
        for name, array in host.items():
            if name not in Batch.__dataclass_fields__:
                array.fill(0)
        batch_size = self._leading[1]
        nothing: list[Encoded | None] = [None] * batch_size
        rows = [nothing] * self._leading[0]
        trunk: list[TrunkRow | None] = [None] * math.prod(self._leading)
        for index, (slot, settings) in working.items():
            _write_settings(host, index, slot, settings)
            indices, tags, rows[index] = slot.rows(settings)
            host["loss_scale"][index] = slot.loss_scale(rows[index])
            for row, (example, shown) in enumerate(zip(indices, tags, strict=True)):
                if shown:
                    host["tags"][index, row] = shown
                    host["tagged"][index, row] = 1
                encoded = rows[index][row]
                if encoded is not None and kind.cached:
                    seen = shown if kind.prefix_room else ()
                    trunk[index * batch_size + row] = self._trunk_row(
                        example,
                        encoded,
                        room=kind.prefix_room,
                        seen=seen,
                        lasting=not seen or slot.has_fixed_tags,
                    )
        fill_rows(host, rows)
        return trunk


def _write_settings(
    host: Mapping[str, np.ndarray], index: int, slot: Slot, settings: StepSettings
) -> None:
    penalties = slot.penalty_weights(settings)
    host["dropout_keys"][index] = dropout_keys([(slot.run.seed, slot.step)])[0]
    host["bank_scale"][index] = slot.bank_scale(settings)
    host["learning_rate"][index] = settings.learning_rate
    host["fresh"][index] = settings.first
    host["active"][index] = [name in settings.trained for name in GROUPS]
    host["penalties"][index] = [penalties.get(name, 0.0) for name in PENALTIES]


def _step_input(tensors: Mapping[str, Tensor]) -> StepInput:
    batch = Batch(**{name: tensors[name] for name in Batch.__dataclass_fields__})
    others = [f.name for f in fields(StepInput) if f.name != "batch"]
    return StepInput(batch=batch, **{name: tensors[name] for name in others})
