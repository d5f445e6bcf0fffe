"""The LoRA adapter of a model that PEFT wraps: its first weights, and which blocks' layers act.

The layers stay PEFT's own, so what is saved is plain LoRA. A block is left out by the public
``set_scale`` of its layers: at a scale of 0 they have no effect, and a gradient of zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from schemabank.engine.flat import seeded_generator
from schemabank.engine.lora import drawn_a
from schemabank.engine.loralayers import LORA
from schemabank.engine.targets import blocks_of

ADAPTER = "default"  # PEFT's own name


class PeftAdapter:
    """The adapter ``default`` of a model.

    Args:
        model: a ``peft.PeftModel``.

    Attributes:
        config: its ``peft.LoraConfig``.
        layers: by the path of the layer in the base model, in the order of its modules.
        num_blocks: decoder blocks with adapters; layers outside of all count as one more.
        is_quantised: whether the base model's weights have few bits.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 -- PEFT ships no types
        base = model.get_base_model()
        self.config = model.peft_config[ADAPTER]
        self.layers: dict[str, Any] = {
            path: module
            for path, module in base.named_modules()
            if isinstance(module, LoraLayer) and ADAPTER in module.lora_A
        }
        self.is_quantised = getattr(base, "is_quantized", False)  # transformers sets it so alone
        blocks = blocks_of(base, self.layers)
        places = sorted(set(blocks.values()))
        self.num_blocks = len(places)
        self._blocks = {path: places.index(block) for path, block in blocks.items()}

    @property
    def a(self) -> list[nn.Parameter]:
        """All A's."""
        return [layer.lora_A[ADAPTER].weight for layer in self.layers.values()]

    @property
    def b(self) -> list[nn.Parameter]:
        """All B's."""
        return [layer.lora_B[ADAPTER].weight for layer in self.layers.values()]

    @property
    def is_fresh(self) -> bool:
        """Whether it has not been trained: all B's are zero."""
        return not any(bool(weight.any()) for weight in self.b)

    def initialise(self, seed: int) -> None:
        """Draw the first weights from a seed, the same as the engine's."""
        draw(zip(self.a, self.b, strict=True), seed)

    def widen(self) -> None:
        """Make the weights on a quantised base model float32 again.

        TRL rounds those to bfloat16, which swallows small updates. Nothing is lost by that: they
        have not been trained yet.
        """
        if self.is_quantised and self.is_fresh:
            for weight in (*self.a, *self.b):
                weight.data = weight.data.float()

    def use(self, strengths: Sequence[float] | None) -> None:
        """Multiply every block's update by its strength; ``None``: let all act in full."""
        for path, layer in self.layers.items():
            block = self._blocks[path]
            layer.set_scale(ADAPTER, 1.0 if strengths is None else float(strengths[block]))

    def tensors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return copies of ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer."""
        pairs = zip(self.layers, self.a, self.b, strict=True)
        return {path: (a.detach().clone(), b.detach().clone()) for path, a, b in pairs}


@torch.no_grad()
def draw(pairs: Iterable[tuple[Tensor, Tensor]], seed: int) -> None:
    """Give the layers' A and B their first weights from a seed, the same as the engine's.

    Args:
        pairs: ``A: (rank, in)`` and ``B: (out, rank)`` in the order of the layers.
        seed: the run's.
    """
    generator = seeded_generator(seed, LORA)
    for a, b in pairs:
        rank, width = a.shape
        a.copy_(drawn_a(rank, width, generator))
        b.zero_()
