"""Weights of our own that train in the place of PEFT's, which hold what ours fold to.

Where a method trains more than one A and one B of the adapter's rank, its modules stand in PEFT's
layers while a step goes forward and backward. At all other times PEFT's own modules are there, as
plain LoRA. Their weights are computed when somebody asks for them: before a forward pass, and
before they are saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schemabank.common.errors import InputError
from schemabank.engine.run import Course
from schemabank.trainer.adapter import ADAPTER, PeftAdapter

NAME = "stand_ins"  # in the model; a name with `lora_` in it would be saved by PEFT

Pair = tuple[nn.Module, nn.Module]  # in the place of A and of B


class StandIns(ABC):
    """Modules of one run.

    Args:
        model: a ``peft.PeftModel``, until :meth:`remove`.
        adapter: the model's.

    Attributes:
        stale: whether ours have changed since PEFT's weights were computed from them.
    """

    def __init__(self, model: Any, adapter: PeftAdapter) -> None:  # noqa: ANN401 -- PEFT's
        self._model, self.adapter = model, adapter
        self._layers = list(adapter.layers.values())
        self._theirs: list[Pair] = [(x.lora_A[ADAPTER], x.lora_B[ADAPTER]) for x in self._layers]
        self._ours: list[Pair] = [self._made(layer) for layer in self._layers]
        self.stale, self._acts = True, False
        self.freeze()
        # Registered, so that the trainer clips their gradients and moves them to its device.
        model.add_module(NAME, self._new())
        self._handles = [layer.register_forward_pre_hook(self._before) for layer in self._layers]

    @property
    def a(self) -> list[nn.Parameter]:
        """The weights that train at the rate of A's."""
        return [module.get_parameter("weight") for module, _ in self._ours]

    @property
    def b(self) -> list[nn.Parameter]:
        """The weights that train at the rate of B's."""
        return [module.get_parameter("weight") for _, module in self._ours]

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All modules, ours and PEFT's."""
        yield from self._of(self._ours)
        yield from self._of(self._theirs)

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Draw the first weights from a seed, the same as the engine's."""

    def freeze(self) -> None:
        """Let PEFT's weights get no gradient where ours stand; loading a checkpoint thaws them."""
        kept = {id(module) for module in self._of(self._ours)}
        for module in self._of(self._theirs):
            if id(module) not in kept:
                module.requires_grad_(False)

    def begin_step(self, number: int, course: Course) -> None:
        """Change the weights where the course does so before a step."""
        del number, course

    def act(self) -> None:
        """Put ours into PEFT's layers."""
        self._put(self._ours)
        self._acts = True

    def rest(self) -> None:
        """Put PEFT's own back."""
        self._put(self._theirs)
        self._acts = False

    @torch.no_grad()
    def fold(self) -> None:
        """Set PEFT's weights to what ours come to, if they have changed."""
        if not self.stale:
            return
        for ours, theirs in zip(self._ours, self._theirs, strict=True):
            for module, folded in zip(theirs, self._folded(*ours), strict=True):
                if (weight := module.get_parameter("weight")) is not folded:
                    weight.copy_(folded)
        self.stale = False

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of our weights by their names."""
        named = self._model.get_submodule(NAME).named_parameters()
        return {name: weight.detach().clone() for name, weight in named}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set our weights from :meth:`tensors`.

        Raises:
            InputError: they are others.
        """
        own = dict(self._model.get_submodule(NAME).named_parameters())
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise InputError(
                "the checkpoint's weights beside its adapter do not fit the method: allowed are "
                "those that the run itself wrote, name another checkpoint"
            )
        for name, weight in own.items():
            weight.copy_(tensors[name])
        self.stale = True

    def remove(self) -> None:
        """Leave PEFT's weights alone in the model, with what ours have come to."""
        self.rest()
        self.fold()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(self._model, NAME)

    @abstractmethod
    def _made(self, layer: Any) -> Pair:  # noqa: ANN401 -- PEFT's
        """Return what stands in a layer's place of A and B."""

    @abstractmethod
    def _folded(self, a: nn.Module, b: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the weights of plain LoRA that a layer's modules come to."""

    def _before(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Compute PEFT's weights before they act."""
        del layer, args
        if not self._acts:
            self.fold()

    def _new(self) -> nn.ModuleList:
        theirs = {id(module) for module in self._of(self._theirs)}
        return nn.ModuleList(m for m in self._of(self._ours) if id(m) not in theirs)

    def _put(self, pairs: Sequence[Pair]) -> None:
        for layer, (a, b) in zip(self._layers, pairs, strict=True):
            layer.lora_A[ADAPTER], layer.lora_B[ADAPTER] = a, b

    @staticmethod
    def _of(pairs: Sequence[Pair]) -> list[nn.Module]:
        return [module for pair in pairs for module in pair]
