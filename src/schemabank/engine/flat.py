"""The trainable weights of all slots: one flat float32 row a slot for each group.

The layers' parameters are views into the rows. So one optimizer call updates a whole group of all
slots, and loading, saving or clearing a slot is copying a row. The rows' addresses never change,
because captured graphs hold them: weights are only ever copied into place.
"""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class FlatGroup:
    """The weights of one group, ``(slot, size)`` in float32, and the model's copy of them.

    Rounding to a narrow type would swallow the optimizer's small updates. So it updates float32
    weights, and a model in a narrower type computes with a rounded copy.

    Args:
        parameters: the group's parameters, slots outermost; they become views of what the model
            computes with.
        num_slots: number of rows.
        dtype: the type that the model computes in; one narrower than float32 gets a rounded copy.
        own_rate: names of parameters that may have a learning rate of their own.

    Attributes:
        weights: ``(slot, size)``, float32, the optimizer's.
        rounded: the copy that the model computes with; ``None``: it computes with ``weights``.
        master: views of ``weights`` by the name of their parameter.
        faster: ``(size,)``, bool, true for the weights of ``own_rate``; ``None``: there are none.
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
        self._shapes = {name: p.shape[1:] for name, p in self.parameters.items()}
        sizes = [shape.numel() for shape in self._shapes.values()]
        device = next(iter(self.parameters.values())).device
        self.weights = torch.zeros(num_slots, sum(sizes), device=device)
        narrow = dtype.itemsize < self.weights.dtype.itemsize
        self.rounded = self.weights.to(dtype) if narrow else None
        self._computed = self.weights if self.rounded is None else self.rounded
        self.master: dict[str, Tensor] = self.views(self.weights)
        computed = self.views(self._computed)
        for name, parameter in self.parameters.items():
            self.master[name].copy_(parameter.data)
            # The layers keep their parameter objects, which from now on look into the rows.
            parameter.data = computed[name]
        own = torch.tensor([name in own_rate for name in self.parameters])
        self.faster = own.repeat_interleave(torch.tensor(sizes)).to(device) if own_rate else None
        self.publish()

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Return rows ``(..., size)`` as views ``(..., *shape)`` by the name of their parameter."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = rows.split(sizes, dim=-1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}

    def publish(self) -> None:
        """Copy the weights as they are now to where the model reads them."""
        if self.rounded is not None:
            self.rounded.copy_(self.weights)

    def is_whole(self) -> bool:
        """Whether the parameters are still views; moving or casting the model ends that."""
        storage = self._computed.untyped_storage().data_ptr()
        return all(p.untyped_storage().data_ptr() == storage for p in self.parameters.values())

    @property
    def size(self) -> int:
        """The number of weights of one slot."""
        return self.weights.shape[1]

    def require_grad(self, wanted: bool) -> None:
        """Set whether this group gets gradients."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(wanted)


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
