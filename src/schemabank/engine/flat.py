"""The trainable weights of all slots: one flat float32 row a slot for each group.

Layers see their weights as views into the rows, so one optimizer call updates a whole group of all
slots, and a slot is loaded, saved or cleared as a row.
"""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class FlatGroup:
    """The weights of one group, ``(slot, size)`` in float32, and what the model computes with.

    Args:
        parameters: the group's, slots outermost; they become views of :attr:`compute`.
        num_slots: rows.
        dtype: what the model computes in; another one than float32 gets a rounded copy.
        own_rate: names of parameters that may have a learning rate of their own.

    Attributes:
        weights: ``(slot, size)``, float32; the optimizer's.
        compute: the same in ``dtype``; ``weights`` itself where that is float32.
        master: views of ``weights`` by the name of their parameter.
        faster: ``(size,)``, bool, the weights of ``own_rate``; ``None``: none.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        num_slots: int,
        dtype: torch.dtype,
        own_rate: Collection[str] = (),
    ) -> None:
        self.parameters = dict(parameters)
        size = sum(p[0].numel() for p in self.parameters.values())
        device = next(iter(self.parameters.values())).device
        self.weights = torch.zeros(num_slots, size, device=device)
        narrow = dtype.itemsize < self.weights.dtype.itemsize
        self.compute = self.weights.to(dtype) if narrow else self.weights
        self._shapes = {name: p.shape[1:] for name, p in self.parameters.items()}
        self.master: dict[str, Tensor] = self.views(self.weights)
        computed = self.views(self.compute)
        for name, parameter in self.parameters.items():
            self.master[name].copy_(parameter.data)
            parameter.data = computed[name]
        sizes = [(name in own_rate, p[0].numel()) for name, p in self.parameters.items()]
        self.faster = (
            torch.cat([torch.full((size,), own, device=device) for own, size in sizes])
            if own_rate
            else None
        )
        self.publish()

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Return rows ``(..., size)`` as views ``(..., *shape)`` by the name of their parameter."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = rows.split(sizes, dim=-1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}

    def publish(self) -> None:
        """Let the model see the weights as they are now."""
        if self.rounded is not None:
            self.rounded.copy_(self.weights)

    @property
    def rounded(self) -> Tensor | None:
        """The copy that the model computes with, where it is one."""
        return None if self.compute is self.weights else self.compute

    def is_whole(self) -> bool:
        """Whether the parameters still are views of the rows; moving or casting ends that."""
        storage = self.compute.untyped_storage().data_ptr()
        return all(p.untyped_storage().data_ptr() == storage for p in self.parameters.values())

    @property
    def size(self) -> int:
        """Weights of one slot."""
        return self.weights.shape[1]

    def require_grad(self, wanted: bool) -> None:
        """Say whether gradients are to reach this group."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(wanted)


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
