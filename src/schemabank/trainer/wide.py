"""The adapter of ``shrink`` in a trainer: wide at first, and reduced to PEFT's rank on the way.

It has room for the higher rank until its end. From the step on that reduces it, what is beyond
PEFT's rank is zero and stays so: each of A and B gets its gradient through the other.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from schemabank.engine.reduction import nearest
from schemabank.engine.run import Course
from schemabank.trainer.adapter import ADAPTER, PeftAdapter, draw
from schemabank.trainer.standins import Pair, StandIns


class WideAdapter(StandIns):
    """The wide adapter of one run.

    Args:
        model: a ``peft.PeftModel``.
        adapter: the model's.
        factor: the rank at the beginning, as a multiple of PEFT's.
    """

    def __init__(self, model: Any, adapter: PeftAdapter, *, factor: int) -> None:  # noqa: ANN401
        self._factor = factor
        super().__init__(model, adapter)

    def initialise(self, seed: int) -> None:
        """Draw the first weights from a seed, the same as the engine's."""
        draw(zip(self.a, self.b, strict=True), seed)
        self.stale = True

    @torch.no_grad()
    def begin_step(self, number: int, course: Course) -> None:
        """Reduce the adapter before the step that the course names."""
        if number != course.reduced_at:
            return
        for a, b in zip(self.a, self.b, strict=True):
            low_a, low_b = self._low(a, b)
            a.zero_()[: len(low_a)] = low_a
            b.zero_()[:, : len(low_a)] = low_b
            # Other processes may round otherwise, and nothing would tell them apart later.
            if distributed.is_available() and distributed.is_initialized():
                distributed.broadcast(a, 0)
                distributed.broadcast(b, 0)
        self.stale = True

    def _made(self, layer: Any) -> Pair:  # noqa: ANN401 -- PEFT's
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        rank = len(a) * self._factor
        return _linear(a.shape[1], rank, like=a), _linear(rank, len(b), like=b)

    def _folded(self, a: nn.Module, b: nn.Module) -> tuple[Tensor, Tensor]:
        return self._low(a.get_parameter("weight"), b.get_parameter("weight"))

    def _low(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest weights of PEFT's rank; those that are of it already, as they are."""
        rank = len(a) // self._factor
        if not a[rank:].any():
            return a[:rank], b[:, :rank]
        low_a, low_b = nearest(a.T, b.T, rank)
        return low_a.T, low_b.T


def _linear(width: int, rows: int, *, like: Tensor) -> nn.Linear:
    """A layer whose weights are not drawn, since that would move the trainer's own draws."""
    options = {"bias": False, "device": like.device, "dtype": like.dtype}
    made = nn.utils.skip_init(nn.Linear, width, rows, **options)
    assert isinstance(made, nn.Linear)
    return made
