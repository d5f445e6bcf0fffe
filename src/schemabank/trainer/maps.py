"""The maps of ``experts`` in a trainer: several B's over one A, of which PEFT's is the mean.

A layer's maps stand in the place of its B while a step trains; A stays PEFT's own. Which map a row
or a token uses is said by the method's course, as in the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from schemabank.common.errors import InputError
from schemabank.engine.flat import seeded_generator
from schemabank.engine.lora import Maps, drawn_router
from schemabank.engine.loralayers import MIX, NEXT_MIX, ROUTED
from schemabank.trainer.adapter import ADAPTER, PeftAdapter
from schemabank.trainer.standins import Pair, StandIns


@dataclass
class Mix:
    """What the layers of a model use of their maps in a forward pass.

    Attributes:
        shares: ``(row, token or 1, layer, map)``; a single row stands for all.
        routed: ``()``, what the routers' shares are multiplied by.
        num_tokens: of the rows, where these are not alike; 0: they are.
    """

    shares: Tensor
    routed: Tensor
    num_tokens: int = 0


class MappedB(nn.Module):
    """The B's of one layer.

    Args:
        like: PEFT's own B, ``(out, rank)``.
        width: of the layer's input.
        layer: number of the layer.
        maps: how many B's, and whether a router weighs them.
        shared: the mix of all layers, as the only item of a list.

    Attributes:
        inputs: what the layer got, for the router.
    """

    def __init__(
        self, like: Tensor, *, width: int, layer: int, maps: Maps, shared: list[Mix]
    ) -> None:
        super().__init__()
        self._layer, self._count, self._shared = layer, maps.count, shared
        out, rank = like.shape
        self.weight = nn.Parameter(like.new_zeros(out, maps.count * rank))
        self.router = nn.Parameter(like.new_zeros(maps.count, width)) if maps.routed else None
        self.inputs: Tensor | None = None

    def forward(self, low: Tensor) -> Tensor:
        """Apply the maps to the product with A, ``(..., rank)``."""
        (mix,) = self._shared
        num_tokens = low.shape[:-1].numel()
        if mix.num_tokens not in {0, num_tokens}:
            raise InputError(
                f"a layer with an adapter sees {num_tokens} tokens of a batch of {mix.num_tokens}, "
                "so nothing says which expert each uses: allowed are layers that see the whole "
                "batch in target_modules, or experts.routing 'random' or 'learned' and "
                "experts.consistency_weight 0"
            )
        shares = mix.shares[..., self._layer, :].to(low.device)
        if self.router is not None:
            routes = self._routes().view(len(shares), -1, self._count)
            shares = shares + mix.routed.to(low.device) * routes
        rows = low.reshape(len(shares), -1, 1, low.shape[-1])
        mixed = (rows * shares[..., None].to(low.dtype)).flatten(-2)
        found: Tensor = functional.linear(mixed, self.weight)
        return found.view(*low.shape[:-1], -1)

    def mean(self) -> Tensor:
        """Return the B that the maps fold to, ``(out, rank)``."""
        found: Tensor = self.weight.unflatten(1, (self._count, -1)).mean(1)
        return found

    def _routes(self) -> Tensor:
        """Return the router's share of every map, ``(token, map)``, as the engine computes it."""
        assert self.router is not None
        assert self.inputs is not None
        inputs, self.inputs = self.inputs, None
        scores = functional.linear(inputs, self.router.to(inputs.dtype)).flatten(0, -2)
        shares: Tensor = scores.float().softmax(-1)
        return shares


class ExpertMaps(StandIns):
    """The maps of one run.

    Args:
        model: a ``peft.PeftModel``.
        adapter: the model's.
        maps: those of a layer.
    """

    def __init__(self, model: Any, adapter: PeftAdapter, maps: Maps) -> None:  # noqa: ANN401
        self._maps = maps
        self._shared = [Mix(torch.zeros(1, 1, len(adapter.layers), maps.count), torch.zeros(()))]
        self._mapped: list[MappedB] = []
        super().__init__(model, adapter)

    @property
    def a(self) -> list[nn.Parameter]:
        """All A's and routers, which have one rate."""
        return [*super().a, *(b.router for b in self._mapped if b.router is not None)]

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the first weights from a seed, the same as the engine's."""
        self.adapter.initialise(seed)
        generator = seeded_generator(seed, "lora_router")
        for mapped in self._mapped:
            mapped.weight.zero_()
            if mapped.router is not None:
                count, width = mapped.router.shape
                mapped.router.copy_(drawn_router(count, width, generator))
        self.stale = True

    def use(
        self, values: Mapping[str, Any], lengths: Sequence[int] | None, num_tokens: int
    ) -> None:
        """Take what a step's course says of the rows of a batch.

        Args:
            values: of the course; in a step of two passes the second's rows follow the first's.
            lengths: of the examples, if all lie in one row.
            num_tokens: of the batch, with padding.
        """
        passes = [values[name] for name in (MIX, NEXT_MIX) if name in values]
        shares = torch.cat([torch.tensor(each, dtype=torch.float32) for each in passes])[:, None]
        if len(shares) > 1 and lengths is not None:
            of_examples = torch.tensor([*lengths] * len(passes))
            shares = shares[:, 0].repeat_interleave(of_examples, dim=0)[None]
        alike = shares.shape[:2] == (1, 1)
        routed = torch.tensor(values.get(ROUTED, 0.0), dtype=torch.float32)
        self._shared[0] = Mix(shares.to(self._device), routed, 0 if alike else num_tokens)

    def _before(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        super()._before(layer, args)
        mapped = layer.get_submodule(f"lora_B.{ADAPTER}")
        if isinstance(mapped, MappedB) and mapped.router is not None:
            mapped.inputs = args[0]

    def _made(self, layer: Any) -> Pair:  # noqa: ANN401 -- PEFT's
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        number, width = len(self._mapped), a.weight.shape[1]
        made = MappedB(b.weight, width=width, layer=number, maps=self._maps, shared=self._shared)
        self._mapped.append(made)
        return a, made

    def _folded(self, a: nn.Module, b: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(b, MappedB)
        return a.get_parameter("weight"), b.mean()

    @property
    def _device(self) -> torch.device:
        return self._mapped[0].weight.device
