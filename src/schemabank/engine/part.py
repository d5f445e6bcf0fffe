"""What acts on a model while it trains, for all slots at once: LoRA itself, and what methods add.

A part owns its weights and says what it needs: fields of a step's input, penalties on the loss,
modules to compile. The stack and the step ask these questions and know no part by its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.engine.batches import Batch
from schemabank.engine.flat import FlatGroup


@dataclass(frozen=True)
class Field:
    """A tensor of a step's input, ``(slot, *shape)``, or ``(slot, batch, *shape)``.

    Attributes:
        shape: behind the slot, or the row.
        dtype: of the tensor.
        by_row: whether every row of a batch has its own.
        default: of slots whose run does not give a value, as wide as ``shape`` or a number.
    """

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    by_row: bool = False
    default: float | tuple[float, ...] = 0


@dataclass(frozen=True)
class StepInput:
    """What changes from step to step, on the device.

    Attributes:
        batch: the rows of every slot.
        fields: all other tensors, by name: the engine's own (``schemabank.engine.slots.FIELDS``),
            those of the parts, and the weight of every penalty.
    """

    batch: Batch
    fields: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]


@dataclass(frozen=True)
class Penalty:
    """A term that a part adds to the loss.

    Attributes:
        name: of the field ``(slot,)`` that holds its weight; a run whose weight is always 0 does
            not compute it.
        value: from :meth:`Part.seen` and the step's input to ``(slot,)``.
        group: counts only while this group of weights trains; ``None``: always.
    """

    name: str
    value: Callable[[Any, StepInput], Tensor]
    group: str | None = None


@dataclass(frozen=True)
class Choice:
    """Weights of one layer in parts, of which a router chooses some for every token.

    Attributes:
        group, parameter: where the weights are.
        layer: its name, for messages.
        kind: what the parts are called, in the plural.
        mend: what helps where the router uses only some of them.
        room: the most parts that a slot may have.
        count: from a slot to the number of parts of its run; 0 without a router.
        norms: from the weights' ``(slot, *shape)``, or what has their shape, to the norms of all
            parts, ``(slot, part)``.
    """

    group: str
    parameter: str
    layer: str
    kind: str
    mend: str
    room: int
    count: Callable[[int], int]
    norms: Callable[[Tensor], Tensor]


class Part(ABC):
    """What sits on a model and trains. A part overrides only the defaults that do not fit it.

    Attributes:
        name: by which runs give their settings.
        groups: its weights, by the name of what a stage may train.
        fields: what it needs of a step's input, beside its penalties' weights.
        penalties: terms of the loss.
        modules: what is compiled beside the decoder blocks.
        choices: between which of its weights routers choose.
        first_block: index of the first block whose output the part changes, beside LoRA;
            ``None``: it changes no block's output.
        only: the one slot whose rows are run; ``None``: all.
    """

    name: str
    groups: Mapping[str, FlatGroup]
    fields: Mapping[str, Field] = {}
    penalties: Sequence[Penalty] = ()
    modules: Sequence[nn.Module] = ()
    choices: Sequence[Choice] = ()
    first_block: int | None = None
    only: int | None = None

    @abstractmethod
    def configure(self, slot: int, settings: Any | None) -> None:  # noqa: ANN401 -- the part's own
        """Give a slot a run's settings; ``None``: its run does not use this part."""

    @abstractmethod
    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed."""

    def num_weights(self, group: str, settings: Any | None) -> int:  # noqa: ANN401
        """Weights of a group in a slot with these settings, without padding."""
        del settings
        return self.groups[group].size

    @abstractmethod
    def begin_step(self, given: StepInput) -> None:
        """Prepare a training step."""

    def next_pass(self, given: StepInput) -> None:
        """Draw anew whatever is drawn, for a step's second pass over the same batch."""
        del given

    def seen(self) -> object:
        """What penalties are computed from, after the step's forward pass."""
        return None

    def end_step(self) -> None:
        """Let go of the step's tensors, and with them of the memory of its graph."""
        return

    @abstractmethod
    def rest(self) -> None:
        """Act as in :meth:`evaluating` ``off``, until the next step begins."""

    @abstractmethod
    def evaluating(self, mode: str) -> AbstractContextManager[None]:
        """Act as in evaluation: ``off`` is the adapter alone, other modes are the part's own."""

    @abstractmethod
    def absent(self) -> AbstractContextManager[None]:
        """Act as if it were not there."""

    @abstractmethod
    def detach(self) -> None:
        """Come off the model for good."""


Attach = Callable[[PreTrainedModel, int], Part]
"""Puts a part for so many slots on a model."""
