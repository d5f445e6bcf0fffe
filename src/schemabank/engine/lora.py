"""Stacked LoRA: the adapters of all slots in one module, applied with batched matrix products.

``y = W x + scaling B A dropout(x)`` (arXiv 2106.09685; ``LoraSettings.scaling``) for every slot at
once. Both are kept transposed, ``A: (slot, in, rank)`` and ``B: (slot, rank, out)``:
so their gradients come out of a matrix product the way they are stored. A slot of a smaller rank is
padded with zeros, which stay zero: each of A and B gets its gradient through the other.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.config.settings import LoraSettings
from schemabank.engine.dropout import SlotDropout
from schemabank.engine.execute import can_compile
from schemabank.engine.joined import SIBLINGS
from schemabank.engine.targets import Linear, blocks_of, target_layers
from schemabank.models.architecture import linear_sizes


@dataclass(frozen=True)
class Maps:
    """The B's that a layer's adapter has over one A while a run trains.

    Attributes:
        count: how many; an adapter ends as their mean.
        routed: whether a router may weigh them for each token.
    """

    count: int = 1
    routed: bool = False


ONE_MAP = Maps()


class StackedLora(nn.Module):
    """A frozen linear layer with one LoRA adapter a slot.

    Args:
        base: the frozen layer.
        layer: index of this adapter in the model, part of the dropout's key.
        block: position of its decoder block among those with adapters.
        settings: the adapter of each slot.
        dropout: the stack's common source of masks.
        maps: the most that a slot has room for.

    Attributes:
        shares: ``(slot, map)``, what each map counts in the mean that an adapter ends as.
    """

    def __init__(
        self,
        base: Linear,
        *,
        layer: int,
        block: int = 0,
        settings: Sequence[LoraSettings],
        dropout: SlotDropout,
        maps: Maps = ONE_MAP,
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
        self.layer = torch.tensor([layer], device=device)
        self.block = torch.tensor([block], device=device)
        self.num_maps = maps.count
        self.shares = torch.zeros(num_slots, maps.count, device=device)
        self.shares[:, 0] = 1
        self.scaling = torch.tensor([s.scaling for s in settings], device=device)
        self.in_features, self.out_features = linear_sizes(base)
        self.A = nn.Parameter(torch.zeros(num_slots, self.in_features, rank, device=device))
        self.B = nn.Parameter(
            torch.zeros(num_slots, maps.count * rank, self.out_features, device=device)
        )
        shape = (num_slots, self.in_features, maps.count)
        self.router = nn.Parameter(torch.zeros(shape, device=device)) if maps.routed else None
        share_input([self])

    def configure(self, slot: int, settings: LoraSettings, *, num_maps: int = 1) -> None:
        """Give a slot another adapter; its rank and its maps fit into the stack's."""
        assert settings.r <= self.A.shape[2]
        assert num_maps <= self.num_maps
        self.shares[slot] = (torch.arange(self.num_maps) < num_maps) / num_maps
        self.ranks[slot] = settings.r
        self.scaling[slot] = settings.scaling

    def initial_a(self, rank: int, generator: torch.Generator) -> Tensor:
        """Draw A as PEFT does (Kaiming uniform, ``a = √5``) from a CPU generator; B is zero."""
        drawn = torch.zeros(self.A.shape[1:])
        drawn[:, :rank] = drawn_a(rank, self.in_features, generator).T
        return drawn

    def initial_router(self, num_maps: int, generator: torch.Generator) -> Tensor:
        """Draw a router, ``(in, map)``, from a CPU generator."""
        assert self.router is not None
        drawn = torch.zeros(self.router.shape[1:])
        drawn[:, :num_maps] = drawn_router(num_maps, self.in_features, generator).T
        return drawn

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply base layer and adapters.

        Args:
            inputs: ``(slot * batch, token, in)``, or with rows and tokens in one dimension, as a
                mixture of experts gives them to its shared expert, or ``(row, 1, token, in)``, as
                DeepSeek's attention gives its one compressed head.
        """
        output: Tensor = self.base(inputs)
        if inputs.dim() == 4:
            inputs = inputs.flatten(1, 2)
        if not self.dropout.adapters:
            return output
        if self.dropout.keys is not None and self.shared.in_kernel:
            low = self.shared.low(self, inputs, self.dropout.keys)
        else:
            low = self._low(inputs)
        low = low if self.num_maps == 1 else self._mixed(low, inputs)
        return output + (low @ self._of_slots(self.B).to(inputs.dtype)).view(output.shape)

    def strength(self) -> Tensor:
        """Return what the update is multiplied by, ``(slot,)``."""
        strengths = self.dropout.strengths
        if strengths is None:
            return self.scaling
        return self.scaling * strengths.index_select(1, self.block)[:, 0]

    def by_slot(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` as ``(slot, batch, token, in)``."""
        num_slots = len(self.ranks) if self.dropout.only is None else 1
        if inputs.dim() == 2:
            # Without dropout nobody asks which token is which.
            width = 1 if self.dropout.keys is None else self.dropout.width
            inputs = inputs.view(-1, width, inputs.shape[-1])
        return inputs.view(num_slots, -1, *inputs.shape[1:])

    def _low(self, inputs: Tensor) -> Tensor:
        """Return the scaled product with A, ``(slot, batch * token, rank)``."""
        kept, factor = self.dropout(self.by_slot(inputs), self.layer_key)
        scaling = self.strength()
        scaling = self._of_slots(scaling if factor is None else scaling * factor)
        low = kept.flatten(1, 2) @ self._of_slots(self.A).to(inputs.dtype)
        return (low * scaling[:, None, None]).to(inputs.dtype)

    def _mixed(self, low: Tensor, inputs: Tensor) -> Tensor:
        """Weigh the product with A for each map: ``(slot, batch * token, map * rank)``."""
        mixes, routed = self.dropout.mixes, self.dropout.routed
        if mixes is None:
            mix = self._of_slots(self.shares)[:, None, None]
        else:
            mix = self._of_slots(mixes).index_select(2, self.layer)
        if routed is not None:
            routes = self._routes(inputs).view(len(low), mix.shape[1], -1, self.num_maps)
            mix = mix + self._of_slots(routed)[:, None, None, None] * routes
        rows = low.view(len(low), mix.shape[1], -1, 1, low.shape[-1])
        return (rows * mix[..., None].to(low.dtype)).flatten(-2).flatten(1, 2)

    def _routes(self, inputs: Tensor) -> Tensor:
        """Return the router's share of every map, ``(slot, batch * token, map)``.

        As in HydraLoRA (arXiv 2404.19245, section 3.2): the softmax of a linear map of the layer's
        input. Maps that a slot does not have get none.
        """
        assert self.router is not None
        routers = self._of_slots(self.router).to(inputs.dtype)
        scores = inputs.reshape(len(routers), -1, self.in_features) @ routers
        lacking = self._of_slots(self.shares)[:, None] == 0
        shares: Tensor = scores.float().masked_fill(lacking, -torch.inf).softmax(-1)
        return shares

    def _of_slots(self, values: Tensor) -> Tensor:
        """What belongs to the slots that are run, ``(slot, ...)``."""
        only = self.dropout.only
        return values if only is None else values[only : only + 1]


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

    def low(self, adapter: StackedLora, inputs: Tensor, keys: Tensor) -> Tensor:
        """Return an adapter's product with A under dropout; all are computed with the first."""
        from schemabank.engine.kernels.lora import masked_down  # noqa: PLC0415 -- needs Triton

        if self._inputs is not inputs:
            first = self.adapters[0]
            lows = masked_down(
                first.by_slot(inputs),
                [a.A.to(inputs.dtype) for a in self.adapters],
                keys=keys,
                layers=self.layer_keys,
                least=first.dropout.least,
                scale=first.strength() * first.dropout.factor,
            )
            self._inputs, self._lows = inputs, lows.unbind()
        low = self._lows[adapter.position]
        if adapter.position == len(self.adapters) - 1:
            self._inputs, self._lows = None, ()
        return low


def share_input(adapters: Sequence[StackedLora]) -> None:
    """Tell adapters that their layers read the same input."""
    shared = SharedInput(adapters)
    for position, adapter in enumerate(adapters):
        adapter.shared, adapter.position = shared, position


def _fits_a_kernel(adapter: StackedLora) -> bool:
    weight = adapter.base.weight
    if not can_compile(weight.device):
        return False
    from schemabank.engine.kernels.lora import fits  # noqa: PLC0415 -- needs Triton

    return fits(weight.device, rank=adapter.A.shape[2], itemsize=weight.itemsize)


def drawn_a(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the first A of a layer, ``(rank, in)``, as PEFT does, from a CPU generator."""
    bound = 1 / math.sqrt(width)
    return (torch.rand(rank, width, generator=generator) * 2 - 1) * bound


def drawn_router(num_maps: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a layer's router, ``(map, in)``, from a CPU generator.

    As ``torch.nn.Linear`` does: were it zero, all maps would stay alike.
    """
    bound = 1 / math.sqrt(width)
    return (torch.rand(num_maps, width, generator=generator) * 2 - 1) * bound


def install_lora(
    model: PreTrainedModel,
    settings: Sequence[LoraSettings],
    *,
    dropout: SlotDropout,
    maps: Maps = ONE_MAP,
) -> dict[str, StackedLora]:
    """Replace the targeted linear layers of a model.

    Args:
        model: the frozen base model; changed in place until :func:`remove_lora`.
        settings: one a slot; all with the same target modules on the same blocks.
        dropout: the stack's common source of masks.
        maps: the most that a slot has room for.

    Returns:
        The new layers by the path of the layer they replaced.

    Raises:
        InputError: a block that the model does not have, or a target that matches no linear layer.
    """
    first = settings[0]
    assert {(s.target_modules, s.layers_to_transform) for s in settings} == {
        (first.target_modules, first.layers_to_transform)
    }
    chosen = target_layers(model, first)
    blocks = blocks_of(model, chosen)
    layers: dict[str, StackedLora] = {}
    with ExitStack() as undo:
        undo.callback(remove_lora, model, layers)
        for index, (path, base) in enumerate(chosen.items()):
            block = sorted(set(blocks.values())).index(blocks[path])
            layer = StackedLora(
                base,
                layer=index,
                block=block,
                settings=settings,
                dropout=dropout,
                maps=maps,
            )
            model.set_submodule(path, layer)
            layers[path] = layer
        undo.pop_all()
    for group in _siblings(layers):
        share_input(group)
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
