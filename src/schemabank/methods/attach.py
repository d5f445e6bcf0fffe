"""Schema banks on and off the decoder blocks of a causal language model.

A bank is a forward hook on its block. Removing the hook leaves the very model there was before,
so detaching restores the unrouted logits bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schemabank.common.errors import InputError
from schemabank.methods.bank import Routed, Routing, SchemaBank


@dataclass
class AttachedBanks:
    """Banks that sit on a model's blocks.

    Attributes:
        banks: bank of each block index.
        routing: ``off`` skips the banks, ``on`` routes, ``dense`` averages all schemas.
        scale: ``(slot,)``, bank scale of every slot.
        only: the one slot whose rows are run; ``None``: all.
        routed: what the routers did in the last forward pass, in block order.
    """

    banks: Mapping[int, SchemaBank]
    scale: Tensor
    routing: Routing = "off"
    only: int | None = None
    routed: list[Routed] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def detach(self) -> None:
        """Remove the banks from the model for good."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.routed.clear()


def bank_layers(num_blocks: int, *, last_n: int, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the indices of the blocks that get a bank.

    Raises:
        InputError: more banks than blocks, or an index that the model does not have.
    """
    if layers is None:
        if last_n > num_blocks:
            raise InputError(
                f"bank.last_n is {last_n}, but the model has {num_blocks} blocks: "
                f"allowed is 1 to {num_blocks}, lower it"
            )
        return tuple(range(num_blocks - last_n, num_blocks))
    unknown = [index for index in layers if index >= num_blocks]
    if unknown:
        raise InputError(
            f"bank.layers names block {unknown[0]}, but the model has {num_blocks} blocks: "
            f"allowed are 0 to {num_blocks - 1}, name those"
        )
    return tuple(sorted(layers))


def attach_banks(
    blocks: list[nn.Module], banks: Mapping[int, SchemaBank], *, num_slots: int
) -> AttachedBanks:
    """Put banks on decoder blocks.

    Args:
        blocks: all decoder blocks of the model, in order.
        banks: bank for each block index.
        num_slots: runs whose rows stand one after another in every batch.
    """
    device = next(blocks[0].parameters()).device
    attached = AttachedBanks(banks=banks, scale=torch.ones(num_slots, device=device))
    for index, bank in sorted(banks.items()):
        attached.handles.append(blocks[index].register_forward_hook(_hook(attached, bank)))
    if banks:
        first = blocks[min(banks)]
        attached.handles.append(first.register_forward_pre_hook(lambda *_: attached.routed.clear()))
    return attached


def _hook(attached: AttachedBanks, bank: SchemaBank):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """A forward hook; blocks return the hidden state alone or first in a tuple."""

    def hook(_block: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if attached.routing == "off":
            return None
        hidden = output if isinstance(output, Tensor) else output[0]
        rows, only = len(hidden), attached.only
        given = hidden if only is None else hidden.repeat(len(attached.scale), 1, 1)
        moved, routed = bank(given, scale=attached.scale, dense=attached.routing == "dense")
        attached.routed.append(routed)
        if only is not None:  # the bank holds all slots' weights and computes all of them
            moved = moved[only * rows : (only + 1) * rows]
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    return hook
