"""Between which maps of an adapter routers choose: a layer's B's over one A."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from schemabank.engine.lora import Maps
from schemabank.engine.part import Choice

MEND = "lower experts.annealing_ratio or experts.num_experts, or set experts.routing to random"


def choices_of(
    paths: Iterable[str], *, group: str, room: Maps, maps: Sequence[Maps]
) -> list[Choice]:
    """Return the choices of layers; none where no slot has room for a router.

    Args:
        paths: of the layers.
        group: of their weights.
        room: for B's over one A.
        maps: those of each slot's run, which change as it changes.
    """

    def norms(of_b: Tensor) -> Tensor:
        by_map = of_b.unflatten(1, (room.count, -1))  # (slot, map, rank, out)
        return torch.linalg.vector_norm(by_map, dim=(2, 3))

    def count(slot: int) -> int:
        return maps[slot].count if maps[slot].routed else 0

    return [
        Choice(group, f"{path}.B", path, "maps", MEND, room.count, count, norms)
        for path in (paths if room.routed else ())
    ]
