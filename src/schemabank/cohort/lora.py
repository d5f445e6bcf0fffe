"""Stacked LoRA: the adapters of all slots in one module, applied with batched matrix products.

``y = W x + (lora_alpha / r) B A dropout(x)`` (arXiv 2106.09685) for every slot at once, ``A: (slot,
rank, in)``, ``B: (slot, out, rank)``. A slot of a smaller rank is padded with zeros, which stay
zero: each of A and B gets its gradient through the other.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.config import LoraSettings
from schemabank.errors import InputError

LANES = 4  # 16-bit random numbers in one 64-bit draw
LANE_RANGE = 2**16


class SlotDropout:
    """Dropout masks keyed by run seed, step and layer, so that no neighbour or order matters.

    Args:
        rates: dropout probability of each slot.
        device: where the masks are drawn.
    """

    def __init__(self, rates: Sequence[float], *, device: torch.device) -> None:
        self.rates = list(rates)
        self.keys: list[int] | None = None
        self._generator = torch.Generator(device)

    def begin_step(self, keys: Sequence[tuple[int, int]] | None) -> None:
        """Start a training step with a key ``(run seed, step)`` a slot; ``None``: evaluation."""
        self.keys = None if keys is None else [_key(seed, step) for seed, step in keys]

    def __call__(self, inputs: Tensor, *, layer: int) -> Tensor:
        """Drop entries of ``inputs``: ``(slot, row, feature)``; the kept ones are scaled up."""
        if self.keys is None or not any(self.rates):
            return inputs
        masks = [
            self._mask(inputs[slot], rate, (key + layer * 0x9E3779B97F4A7C15) % 2**63)
            for slot, (rate, key) in enumerate(zip(self.rates, self.keys, strict=True))
        ]
        return inputs * torch.stack(masks)

    def _mask(self, like: Tensor, rate: float, key: int) -> Tensor:
        """0 where dropped, ``1 / (1 - rate)`` elsewhere; the rate is rounded to 1/65536."""
        dropped = round(rate * LANE_RANGE)
        if dropped == 0:
            return torch.ones_like(like)
        draws = torch.empty(math.ceil(like.numel() / LANES), dtype=torch.int64, device=like.device)
        draws.random_(-(2**63), None, generator=self._generator.manual_seed(key))
        lanes = draws.view(torch.int16)[: like.numel()].view_as(like)
        kept = lanes >= dropped - LANE_RANGE // 2
        return kept.to(like.dtype) * (LANE_RANGE / (LANE_RANGE - dropped))


class StackedLora(nn.Module):
    """A frozen linear layer with one LoRA adapter a slot.

    Args:
        base: the frozen layer.
        layer: index of this adapter in the model, part of the dropout's key.
        settings: the adapter of each slot.
        dropout: the stack's common source of masks.
    """

    def __init__(
        self, base: nn.Linear, *, layer: int, settings: Sequence[LoraSettings], dropout: SlotDropout
    ) -> None:
        super().__init__()
        self.base, self.layer, self.dropout = base, layer, dropout
        self.ranks = [s.r for s in settings]
        num_slots, rank = len(settings), max(self.ranks)
        device = base.weight.device
        self.scaling = torch.tensor([s.lora_alpha / s.r for s in settings], device=device)
        self.A = nn.Parameter(torch.zeros(num_slots, rank, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(num_slots, base.out_features, rank, device=device))

    @torch.no_grad()
    def initialise(self, slot: int, generator: torch.Generator) -> None:
        """Draw A as PEFT does (Kaiming uniform, ``a = √5``) from a CPU generator; B is zero."""
        rank, width = self.ranks[slot], self.base.in_features
        bound = 1 / math.sqrt(width)
        self.A[slot].zero_()
        self.A[slot, :rank].copy_((torch.rand(rank, width, generator=generator) * 2 - 1) * bound)
        self.B[slot].zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply base layer and adapters to ``inputs``: ``(slot * batch, token, in)``."""
        output: Tensor = self.base(inputs)
        num_slots = self.A.shape[0]
        rows = inputs.reshape(num_slots, -1, inputs.shape[-1])
        low = self.dropout(rows, layer=self.layer) @ self.A.to(inputs.dtype).transpose(1, 2)
        low = low * self.scaling.to(inputs.dtype)[:, None, None]
        return output + (low @ self.B.to(inputs.dtype).transpose(1, 2)).view_as(output)


def install_lora(
    model: PreTrainedModel, settings: Sequence[LoraSettings], *, dropout: SlotDropout
) -> dict[str, StackedLora]:
    """Replace the targeted linear layers of a model.

    Args:
        model: the frozen base model; changed in place until :func:`remove_lora`.
        settings: one a slot; all with the same target modules.
        dropout: the stack's common source of masks.

    Returns:
        The new layers by the path of the layer they replaced.

    Raises:
        InputError: a target that matches no linear layer.
    """
    targets = settings[0].target_modules
    assert all(s.target_modules == targets for s in settings)
    # The engine applies the output layer to labelled positions itself, so it takes no adapter.
    head = model.get_output_embeddings()
    linear = {
        path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head
    }
    for target in targets:
        if not any(_matches(path, target) for path in linear):
            names = sorted({path.rpartition(".")[2] for path in linear})
            raise InputError(
                f"lora.target_modules names {target!r}, which matches no linear layer: "
                f"allowed are {', '.join(names)}, name some of those"
            )
    chosen = [path for path in linear if any(_matches(path, t) for t in targets)]
    layers = {}
    for index, path in enumerate(chosen):
        layers[path] = StackedLora(linear[path], layer=index, settings=settings, dropout=dropout)
        model.set_submodule(path, layers[path])
    return layers


def remove_lora(model: nn.Module, layers: dict[str, StackedLora]) -> None:
    """Put the original linear layers back; the model is then what it was, bit for bit."""
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)


def _matches(path: str, target: str) -> bool:
    """PEFT's rule for a list of targets: the whole path or its last names."""
    return path == target or path.endswith("." + target)


def _key(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"dropout/{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
