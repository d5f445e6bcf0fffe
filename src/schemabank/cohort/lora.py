"""Stacked LoRA: the adapters of all slots in one module, applied with batched matrix products.

``y = W x + (lora_alpha / r) B A dropout(x)`` (arXiv 2106.09685) for every slot at once. Both are
kept transposed, ``A: (slot, in, rank)`` and ``B: (slot, rank, out)``: so their gradients come out
of a matrix product the way they are stored. A slot of a smaller rank is padded with zeros, which
stay zero: each of A and B gets its gradient through the other.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.architecture import decoder_blocks
from schemabank.cohort.execute import can_compile
from schemabank.cohort.joined import SIBLINGS, JoinedLinear
from schemabank.config import LoraSettings
from schemabank.errors import InputError

MIX_IN, MIX_OUT = 0x2C1B3C6D, 0x297A2D39  # odd constants of a 32-bit integer hash (lowbias32)
BATCH_STRIDE = 2**20  # more tokens than any row has
INT32_RANGE = 2**32


class SlotDropout:
    """Dropout masks as a pure function of run, step, layer and position.

    A mask entry is a hash of its slot's key, the layer, the row of the batch, the token and the
    feature, so neither neighbours nor the padded width change it, and a captured step draws new
    masks from new keys.

    Args:
        rates: dropout probability of each slot.
        device: where the masks are made.

    Attributes:
        keys: ``(slot,)``, int32, one for every run and step; ``None`` in evaluation.
        adapters: whether adapters act at all; without them the model is the base model.
    """

    def __init__(self, rates: Sequence[float], *, device: torch.device) -> None:
        self.rates = [0.0] * len(rates)
        self.keys: Tensor | None = None
        self.adapters = True
        self.least = torch.zeros(len(rates), dtype=torch.int32, device=device)
        self.factor = torch.ones(len(rates), device=device)
        for slot, rate in enumerate(rates):
            self.set_rate(slot, rate)

    def set_rate(self, slot: int, rate: float) -> None:
        """Change a slot's probability of being dropped, rounded to a multiple of 2⁻³²."""
        self.rates[slot] = rate
        self.least[slot] = min(round(rate * INT32_RANGE), INT32_RANGE - 1) - INT32_RANGE // 2
        self.factor[slot] = 1 / (1 - rate)

    def begin_step(self, keys: Tensor | None) -> None:
        """Start a training step with :func:`dropout_keys`; ``None``: evaluation."""
        self.keys = keys

    def __call__(self, inputs: Tensor, layer: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zero entries of ``inputs``: ``(slot, batch, token, feature)``.

        Returns:
            What is kept, not scaled, and the factor ``(slot,)`` that scales it, ``1 / (1 - rate)``;
            ``None`` for no dropout. Scaling later, in float32, spares bfloat16 a bias of 0.2 %.
        """
        if self.keys is None:
            return inputs, None
        _, batch, token, feature = inputs.shape
        rows = torch.arange(batch, dtype=torch.int32, device=inputs.device)[:, None] * BATCH_STRIDE
        rows = rows + torch.arange(token, dtype=torch.int32, device=inputs.device)
        row = mix(mix(self.keys + layer)[:, None, None] ^ rows)
        columns = mix(torch.arange(feature, dtype=torch.int32, device=inputs.device))
        kept = mix(row[..., None] ^ columns) >= self.least[:, None, None, None]
        # As a number: on a CPU much faster than choosing by a truth value. Compilers know that, and
        # refuse the view.
        bits = kept if torch.compiler.is_compiling() else kept.view(torch.uint8)
        return inputs * bits.to(inputs.dtype), self.factor


def dropout_keys(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the key of every ``(run seed, step)``, a signed 32-bit number."""
    digests = (hashlib.sha256(f"dropout/{seed}/{step}".encode()).digest() for seed, step in runs)
    return [int.from_bytes(digest[:4], "big", signed=True) for digest in digests]


def mix(value: Tensor) -> Tensor:
    """Hash int32 values; the high bits of the result are the good ones."""
    value = value * MIX_IN
    value ^= value >> 15
    value *= MIX_OUT
    return value


class StackedLora(nn.Module):
    """A frozen linear layer with one LoRA adapter a slot.

    Args:
        base: the frozen layer.
        layer: index of this adapter in the model, part of the dropout's key.
        settings: the adapter of each slot.
        dropout: the stack's common source of masks.
    """

    def __init__(
        self,
        base: nn.Linear | JoinedLinear,
        *,
        layer: int,
        settings: Sequence[LoraSettings],
        dropout: SlotDropout,
    ) -> None:
        super().__init__()
        self.base, self.dropout = base, dropout
        self.shared: SharedInput
        self.position: int
        self.ranks = [s.r for s in settings]
        num_slots, rank = len(settings), max(self.ranks)
        device = base.weight.device
        # Tensors, not numbers: compiled code is shared by all layers.
        self.layer_key = torch.tensor(
            int.from_bytes(hashlib.sha256(str(layer).encode()).digest()[:4], "big", signed=True),
            dtype=torch.int32,
            device=device,
        )
        self.scaling = torch.tensor([s.lora_alpha / s.r for s in settings], device=device)
        self.A = nn.Parameter(torch.zeros(num_slots, base.in_features, rank, device=device))
        self.B = nn.Parameter(torch.zeros(num_slots, rank, base.out_features, device=device))
        SharedInput([self])

    def configure(self, slot: int, settings: LoraSettings) -> None:
        """Give a slot another adapter; its rank fits into the stack's."""
        assert settings.r <= self.A.shape[2]
        self.ranks[slot] = settings.r
        self.scaling[slot] = settings.lora_alpha / settings.r

    def initial_a(self, slot: int, generator: torch.Generator) -> Tensor:
        """Draw A as PEFT does (Kaiming uniform, ``a = √5``) from a CPU generator; B is zero."""
        rank, width = self.ranks[slot], self.base.in_features
        drawn = torch.zeros(self.A.shape[1:])
        bound = 1 / math.sqrt(width)
        drawn[:, :rank] = (torch.rand(rank, width, generator=generator) * 2 - 1).T * bound
        return drawn

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply base layer and adapters to ``inputs``: ``(slot * batch, token, in)``."""
        output: Tensor = self.base(inputs)
        if not self.dropout.adapters:
            return output
        if self.dropout.keys is not None and self.shared.in_kernel:
            low = self.shared.low(self, inputs, self.dropout.keys)
        else:
            low = self._low(inputs)
        return output + (low @ self.B.to(inputs.dtype)).view(output.shape)

    def _low(self, inputs: Tensor) -> Tensor:
        """Return the scaled product with A, ``(slot, batch * token, rank)``."""
        kept, factor = self.dropout(inputs.unflatten(0, (len(self.ranks), -1)), self.layer_key)
        scaling = self.scaling if factor is None else self.scaling * factor
        low = kept.flatten(1, 2) @ self.A.to(inputs.dtype)
        return (low * scaling[:, None, None]).to(inputs.dtype)


class SharedInput:
    """Adapters whose layers read the same input, so that a GPU reads it once for all of them.

    Args:
        adapters: at most three, in the order in which the model calls them.

    Attributes:
        in_kernel: whether a GPU's kernel takes the product.
    """

    def __init__(self, adapters: Sequence[StackedLora]) -> None:
        self.adapters = list(adapters)
        self.layer_keys = torch.stack([adapter.layer_key for adapter in adapters])
        self.in_kernel = _fits_a_kernel(adapters[0])
        self._inputs: Tensor | None = None
        self._lows: tuple[Tensor, ...] = ()
        for position, adapter in enumerate(adapters):
            adapter.shared, adapter.position = self, position

    def low(self, adapter: StackedLora, inputs: Tensor, keys: Tensor) -> Tensor:
        """Return an adapter's product with A under dropout; all are computed with the first."""
        from schemabank.cohort.kernels import masked_down  # noqa: PLC0415 -- needs Triton

        if self._inputs is not inputs:
            first = self.adapters[0]
            lows = masked_down(
                inputs.unflatten(0, (len(first.ranks), -1)),
                [a.A.to(inputs.dtype) for a in self.adapters],
                keys=keys,
                layers=self.layer_keys,
                least=first.dropout.least,
                scale=first.scaling * first.dropout.factor,
            )
            self._inputs, self._lows = inputs, lows.unbind()
        low = self._lows[adapter.position]
        if adapter.position == len(self.adapters) - 1:
            self._inputs, self._lows = None, ()
        return low


def _fits_a_kernel(adapter: StackedLora) -> bool:
    weight = adapter.base.weight
    if not can_compile(weight.device):
        return False
    from schemabank.cohort.kernels import fits  # noqa: PLC0415 -- needs Triton

    return fits(weight.device, rank=adapter.A.shape[2], itemsize=weight.itemsize)


def install_lora(
    model: PreTrainedModel, settings: Sequence[LoraSettings], *, dropout: SlotDropout
) -> dict[str, StackedLora]:
    """Replace the targeted linear layers of a model.

    Args:
        model: the frozen base model; changed in place until :func:`remove_lora`.
        settings: one a slot; all with the same target modules on the same blocks.
        dropout: the stack's common source of masks.

    Returns:
        The new layers by the path of the layer they replaced.

    Raises:
        InputError: a block that the model does not have, or a target that matches no linear layer.
    """
    targets, indices = settings[0].target_modules, settings[0].layers_to_transform
    assert all((s.target_modules, s.layers_to_transform) == (targets, indices) for s in settings)
    inside = _inside(model, indices)
    # The engine applies the output layer to labelled positions itself, so it takes no adapter.
    head = model.get_output_embeddings()
    linear = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, nn.Linear | JoinedLinear) and m is not head and ".base" not in path
    }
    for target in targets:
        if not any(_matches(path, target, inside) for path in linear):
            names = sorted({p.rpartition(".")[2] for p in linear if p.startswith(inside)})
            of_blocks = "" if indices is None else f" of the blocks {_listed(indices)}"
            raise InputError(
                f"lora.target_modules names {target!r}, which matches no linear layer{of_blocks}: "
                f"allowed are {', '.join(names)}, name some of those"
            )
    chosen = [path for path in linear if any(_matches(path, t, inside) for t in targets)]
    layers: dict[str, StackedLora] = {}
    with ExitStack() as undo:
        undo.callback(remove_lora, model, layers)
        for index, path in enumerate(chosen):
            layer = StackedLora(linear[path], layer=index, settings=settings, dropout=dropout)
            model.set_submodule(path, layer)
            layers[path] = layer
        undo.pop_all()
    for group in _siblings(layers):
        SharedInput(group)
    return layers


def _siblings(layers: dict[str, StackedLora]) -> list[list[StackedLora]]:
    """Group the adapters by common input, as far as ``SIBLINGS`` knows."""
    groups: dict[str, list[StackedLora]] = {}
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        family = next((names[0] for names in SIBLINGS if name in names), name)
        groups.setdefault(f"{parent}.{family}", []).append(layer)
    return list(groups.values())


def remove_lora(model: nn.Module, layers: dict[str, StackedLora]) -> None:
    """Put the original linear layers back; the model is then what it was, bit for bit."""
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)


def _inside(model: PreTrainedModel, indices: Sequence[int] | None) -> tuple[str, ...]:
    """Return how paths of the layers in these blocks begin; without indices, those of all."""
    if indices is None:
        return ("",)
    blocks = decoder_blocks(model)
    unknown = [index for index in indices if index >= len(blocks)]
    if unknown:
        raise InputError(
            f"lora.layers_to_transform names block {unknown[0]}, but the model has {len(blocks)} "
            f"blocks: allowed are 0 to {len(blocks) - 1}, name those"
        )
    paths = {module: path for path, module in model.named_modules()}
    return tuple(f"{paths[blocks[index]]}." for index in indices)


def _matches(path: str, target: str, inside: tuple[str, ...]) -> bool:
    """PEFT's rule for a list of targets: the whole path, or its last names in a chosen block."""
    return path == target or (path.endswith("." + target) and path.startswith(inside))


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
