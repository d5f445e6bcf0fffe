"""A trainer's steps as a method's course has them: what acts, what trains, and the penalties.

Everything is the engine's: the course says what a step does, and the penalties are those that the
engine computes, with one slot.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from schemabank.config.methods import ExpertsSettings, MoLFSettings, ShrinkSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.batches import Batch, Encoded
from schemabank.engine.lora import Maps
from schemabank.engine.loralayers import STRENGTH
from schemabank.engine.part import StepInput
from schemabank.engine.run import Course, Row
from schemabank.engine.schedule import StepSettings, steps_before_lora
from schemabank.engine.slots import most_skipped
from schemabank.engine.step import penalise
from schemabank.methods.schemabank.course import BankCourse
from schemabank.methods.schemabank.penalties import PENALTIES
from schemabank.trainer.adapter import PeftAdapter
from schemabank.trainer.banks import BlockBanks
from schemabank.trainer.maps import ExpertMaps
from schemabank.trainer.packed import lengths_of, mask_of, unpacked
from schemabank.trainer.passes import Consistency, num_labels, twice
from schemabank.trainer.slices import MovedSlices
from schemabank.trainer.standins import StandIns
from schemabank.trainer.wide import WideAdapter

NO_TOKENS = Encoded(id="", tokens=(), label_start=1)  # the trainer has them
Save = Callable[..., None]


class Steps:
    """The steps of one call of ``train``.

    Args:
        model: a ``peft.PeftModel``; it has the method's own parts until :meth:`remove`.
        adapter: the model's.
        method: what trains.
        epsilon: AdamW's.

    Attributes:
        banks: ``None`` for a method without.
        stand_ins: what trains in the place of PEFT's weights; ``None``: these themselves.
        at: the step whose parts act; ``None`` outside of its forward and backward passes.
        skipped: steps that changed nothing because loss or gradient was not finite.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 -- PEFT ships no types
        adapter: PeftAdapter,
        method: RunConfig,
        *,
        epsilon: float,
    ) -> None:
        self._adapter = adapter
        self._slices: MovedSlices | None = None
        if method.uses("molf"):
            count = method.own(MoLFSettings).num_adapters
            self._slices = MovedSlices(adapter, count=count, epsilon=epsilon)
        self.banks = BlockBanks(model, method.bank) if method.uses("bank") else None
        self.stand_ins = _stand_ins(model, adapter, method)
        self._consistency = Consistency(model.get_base_model()) if method.passes == 2 else None
        self.at: StepSettings | None = None
        self.skipped = 0
        self._logged: Mapping[str, float] = {}
        self._config: RunConfig
        self._course: Course
        self._step: StepSettings
        self._num_real = self._num_labels = 0.0
        self._mean: Callable[[float], float] = float
        self._lost: Tensor | None = None

    @property
    def of_lora(self) -> PeftAdapter | StandIns:
        """What has the weights of the group ``lora``."""
        return self.stand_ins or self._adapter

    @property
    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights, each with the group that a stage trains or freezes."""
        groups = {"lora": [*self.of_lora.a, *self.of_lora.b]}
        if self.banks is not None:
            groups |= self.banks.groups
        return ((name, weight) for name, own in groups.items() for weight in own)

    @property
    def modules(self) -> Iterator[nn.Module]:
        """The modules of all weights."""
        for layer in self._adapter.layers.values():
            yield from (layer.lora_A, layer.lora_B)
        yield from () if self.stand_ins is None else self.stand_ins.modules
        yield from () if self.banks is None else self.banks.banks.values()

    @property
    def logged(self) -> dict[str, float]:
        """What the course says of the last step, and how many steps were left out, if any."""
        return {**self._logged, **({"skipped_steps": self.skipped} if self.skipped else {})}

    def begin(self, config: RunConfig, course: Course) -> None:
        """Take the course of the run."""
        self._config, self._course = config, course

    def initialise(self) -> None:
        """Draw the first weights from the run's seed, as the engine does."""
        self.of_lora.initialise(self._config.seed)
        if self.banks is not None:
            self.banks.initialise(self._config.seed)

    def begin_step(self, number: int) -> bool:
        """Let a step's parts train; say whether the optimizer starts anew."""
        self._step = self._course.step(number)
        if self.stand_ins is not None:
            self.stand_ins.begin_step(number, self._course)
        for group, weight in self.weights:
            weight.requires_grad_(group in self._step.trained)
        self._logged = self._course.logged(self._step)
        return self._step.first

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Let a step's parts act. Whatever else looks at the model sees the adapter alone."""
        self.at = self._step
        if self.stand_ins is not None:
            self.stand_ins.act()
        else:
            values = self._course.values(self.at, ())
            self._adapter.use(cast(Sequence[float] | None, values.get(STRENGTH)))
            if self.banks is not None:
                self.banks.scale = cast(float, values["bank_scale"])
        try:
            yield
        finally:
            self._rest()

    def warn_if_unfinished(self, steps: int) -> None:
        """Warn of a course that has been ended early, as a callback may do."""
        if steps >= self._course.num_steps:
            return
        idle = steps_before_lora(self._course.plans)
        never = "; the adapter has never been trained" if steps <= idle else ""
        warnings.warn(
            f"the run was ended after {steps} of {self._course.num_steps} steps, so the course of "
            f"{self._config.arm} is not over{never}",
            stacklevel=3,
        )

    def begin_batches(
        self, batches: Sequence[Mapping[str, Any]], mean: Callable[[float], float]
    ) -> None:
        """Begin a step: count its batches' real tokens, over which penalties are means.

        Args:
            batches: of this process.
            mean: of a number over all processes. DDP takes the mean of their gradients, so a
                process counts its penalties over the mean number of tokens.
        """
        self._mean, self._lost = mean, None
        if self.banks is not None:
            masks = [mask_of(batch) for batch in batches]
            self._num_real = mean(float(sum(mask.sum() for mask in masks)))
        if self._consistency is not None:
            self._num_labels = mean(float(sum(num_labels(batch) for batch in batches)))

    def shown(self, batch: dict[str, Any], indices: Tensor | None) -> dict[str, Any]:
        """Return what the model gets of a batch, and tell its layers of the rows."""
        found = batch if self._consistency is None else twice(batch)
        if isinstance(self.stand_ins, ExpertMaps):
            assert self.at is not None
            lengths = lengths_of(batch)
            values = self._course.values(self.at, self._rows(batch, lengths, indices))
            self.stand_ins.use(values, lengths, found["input_ids"].numel())
        return found

    def noting(self) -> AbstractContextManager[None]:
        """Note what routers do in a forward pass."""
        return nullcontext() if self.banks is None else self.banks.noting()

    def total_loss(self, task: Tensor, batch: Mapping[str, Any], indices: Tensor | None) -> Tensor:
        """Return a batch's share of the loss that is minimised.

        Args:
            task: the trainer's loss of the batch.
            batch: what the model got, from :meth:`shown`.
            indices: ``(example,)``, numbers of the examples.
        """
        if self.banks is not None and self.banks.scale != 0:
            task = task + self._penalties(batch, indices)
        if self._consistency is not None:
            weight = self._config.own(ExpertsSettings).consistency_weight / self._num_labels
            task = task + weight * self._consistency.inconsistency(batch)
        lost = ~task.detach().isfinite()
        self._lost = lost if self._lost is None else self._lost | lost
        # A step that trains nothing still goes backward.
        return task if task.requires_grad else task.detach().requires_grad_()

    def before_update(self) -> None:
        """Keep what an update may have to put back."""
        self._skip_unless_finite()
        if self._slices is not None:
            self._slices.keep()

    def after_update(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Put back what a step does not move; ``state`` is the optimizer's."""
        if self._slices is not None:
            self._slices.undo_others(state)

    def _skip_unless_finite(self) -> None:
        """Leave out an update whose loss or gradient is not finite, in any process.

        Raises:
            RuntimeError: too many steps had none.
        """
        weights = [weight for _, weight in self.weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        # Processes share gradients, but not losses: one may be infinite whose gradient is finite.
        lost = self._lost is not None and bool(self._lost.any())
        if norm.isfinite() and self._mean(float(lost)) == 0:
            return
        for weight in weights:
            weight.grad = None
        self.skipped += 1
        num_steps, ratio = self._course.num_steps, self._config.train.max_skipped_ratio
        if self.skipped > most_skipped(num_steps, ratio):
            raise RuntimeError(
                f"loss or gradient not finite in {self.skipped} of {num_steps} steps: lower the "
                "learning rate, or look at the examples"
            )

    def save(self, folder: Path, save_state: Save, given: Mapping[str, object]) -> None:
        """Write into a checkpoint what its run goes on with."""
        parts = (self.banks, self.stand_ins)
        save_state(folder, self._config, parts, given=given, skipped=self.skipped)

    def moved(self, *_: object) -> None:
        """Note that the optimizer has moved weights; it calls this after each of its steps."""
        if self.stand_ins is not None:
            self.stand_ins.stale = True

    def fold(self) -> None:
        """Let PEFT's weights be what the run would end with now."""
        if self.stand_ins is not None:
            self.stand_ins.fold()

    def remove(self) -> None:
        """Take the method's own parts off for good."""
        self._rest()
        if self.stand_ins is not None:
            self.stand_ins.remove()
        if self._consistency is not None:
            self._consistency.remove()
        if self.banks is not None:
            self.banks.remove()
        for weight in (*self._adapter.a, *self._adapter.b):
            weight.requires_grad_()

    def _rest(self) -> None:
        """Let the adapter act alone and in full, as what is saved."""
        self.at = None
        if self.stand_ins is not None:
            self.stand_ins.rest()
        self._adapter.use(None)
        if self.banks is not None:
            self.banks.scale = 0.0

    def _rows(
        self, batch: Mapping[str, Any], lengths: Sequence[int] | None, indices: Tensor | None
    ) -> Sequence[Row | None]:
        """Return a batch's rows as the course knows them; one for all, where they are alike."""
        if indices is not None:
            return [Row(index, NO_TOKENS) for index in indices.tolist()]
        if self._consistency is None:
            return [None]
        return [None] * len(batch["input_ids"] if lengths is None else lengths)

    def _penalties(self, batch: Mapping[str, Any], indices: Tensor | None) -> Tensor:
        """The batch's share of the weighted penalties.

        A term over tokens is a mean over all tokens of the step: a batch counts by its share of
        them. A term over weights counts once, by the same shares.
        """
        assert self.banks is not None
        assert self.at is not None
        mask = mask_of(batch)
        seen, names, trained = self.banks.seen(), self._course.penalties, self.at.trained
        if (lengths := lengths_of(batch)) is not None:
            seen = replace(seen, routed=[unpacked(routed, lengths) for routed in seen.routed])
        terms: list[tuple[Any, object]] = [
            (penalty, seen)
            for penalty in PENALTIES
            if penalty.name in names and (penalty.group is None or penalty.group in trained)
        ]
        if not terms:
            return mask.new_zeros(())
        found = penalise(terms, self._given(mask, indices))[0]
        return found * mask.sum() / self._num_real

    def _given(self, mask: Tensor, indices: Tensor | None) -> StepInput:
        """The engine's form of a step's input, as far as penalties read it."""
        assert self.at is not None
        assert isinstance(self._course, BankCourse)
        rows = [
            Row(index, NO_TOKENS, self._course.shown_tags(self.at, index))
            for index in ([] if indices is None else indices.tolist())
        ]
        values = dict(self._course.values(self.at, rows))
        none = ((0,) * self._config.tags.num_tags,) * len(mask)
        tags, tagged = values.pop("tags", none), values.pop("tagged", (False,) * len(mask))
        weights = {name: values.get(name, 0.0) for name in self._course.penalties}
        fields = {n: torch.tensor([cast(float, v)], device=mask.device) for n, v in weights.items()}
        fields["tags"] = torch.tensor([tags], device=mask.device)
        fields["tagged"] = torch.tensor([tagged], dtype=torch.float32, device=mask.device)
        empty = mask.new_zeros(0)
        real = mask.float()[None]
        return StepInput(Batch(empty, real, empty, empty, empty), fields)


def _stand_ins(model: object, adapter: PeftAdapter, method: RunConfig) -> StandIns | None:
    """Put on a model what a method trains in the place of PEFT's weights, if anything."""
    if method.uses("shrink"):
        return WideAdapter(model, adapter, factor=method.own(ShrinkSettings).factor)
    if method.uses("experts"):
        experts = method.own(ExpertsSettings)
        maps = Maps(count=experts.num_experts, routed=experts.routing == "learned")
        return ExpertMaps(model, adapter, maps)
    return None
