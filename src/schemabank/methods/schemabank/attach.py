"""Putting schema banks on the decoder blocks of a causal language model, and taking them off.

A bank is a forward hook on its block. Removing the hook leaves the very model that was there
before, so detaching restores the unrouted logits bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings
from schemabank.engine.flat import FlatGroup, seeded_generator
from schemabank.engine.part import Choice, Field, Part, StepInput
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.bank import Routed, Routing, SchemaBank
from schemabank.methods.schemabank.course import BANK
from schemabank.methods.schemabank.penalties import PENALTIES, Seen
from schemabank.models.architecture import decoder_blocks, hidden_size

OF_SCHEMAS = ("U", "V", "attributes", "query")


class AttachedBanks(Part):
    """Banks of all slots on a model's blocks.

    Args:
        blocks: all decoder blocks of the model, in order.
        banks: bank of each block index.
        settings: the largest rank and top k of any slot; slots without a bank have these settings.
        num_slots: runs whose rows stand one after another in every batch.
        num_tags: number of tags of an example that has tags.

    Attributes:
        routing: ``off`` skips the banks, ``on`` routes, ``dense`` averages all schemas.
        scale: ``(slot,)``, bank scale of every slot.
        only: the one slot whose rows are run; ``None``: all.
        routed: what the routers did in the last forward pass, in block order.
        of_slots: each slot's own settings; ``None`` for a run without a bank.
        handles: of the hooks; empty after :meth:`detach`.
    """

    name = BANK
    penalties = PENALTIES

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        banks: Mapping[int, SchemaBank],
        settings: BankSettings,
        *,
        num_slots: int,
        num_tags: int = 1,
    ) -> None:
        device = next(blocks[0].parameters()).device
        self.banks, self.settings = dict(sorted(banks.items())), settings
        self.modules: list[SchemaBank] = list(self.banks.values())
        self.first_block = min(banks)
        self.scale = torch.ones(num_slots, device=device)
        self.routing: Routing = "off"
        self.routed: list[Routed] = []
        self.fields = {
            "bank_scale": Field(),
            "tags": Field((num_tags,), torch.int64, by_row=True),
            "tagged": Field(by_row=True),
        }
        self.groups = {
            # In float32 whatever the model's type: a bank casts its weights to what it computes in.
            name: FlatGroup(self._bank_weights(weights), num_slots=num_slots, dtype=torch.float32)
            for name, weights in (("router", ["router"]), ("schemas", OF_SCHEMAS))
        }
        self.of_slots: list[BankSettings | None] = [settings] * num_slots
        self.choices = [self._choice(index) for index in self.banks]
        self.handles: list[RemovableHandle] = [
            blocks[index].register_forward_hook(self._routing_hook(bank))
            for index, bank in self.banks.items()
        ]
        # Each forward pass reaches the first block with a bank once, so `routed` never grows from
        # pass to pass, even where nobody reads it.
        first = blocks[self.first_block]
        self.handles.append(first.register_forward_pre_hook(lambda *_: self.routed.clear()))

    def configure(self, slot: int, settings: BankSettings | None) -> None:
        """Give a slot another run's settings, whose rank and top k may not exceed the largest."""
        self.of_slots[slot] = settings
        own = settings or self.settings
        for bank in self.modules:
            bank.configure(slot, rank=own.rank, top_k=own.top_k)

    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed."""
        generator = seeded_generator(seed, "bank")
        init_std = (self.of_slots[slot] or self.settings).init_std
        for bank in self.modules:
            bank.initialise(slot, generator, init_std=init_std)

    def num_weights(self, group: str, settings: BankSettings | None) -> int:
        """Return how many weights a group has in a slot, without the padding of smaller ranks."""
        size = self.groups[group].size
        if group == "router" or settings is None:
            return size
        padding = self.settings.num_schemas * (self.settings.rank - settings.rank)
        hidden = self.modules[0].router.shape[2]
        return size - 2 * padding * hidden * len(self.modules)  # U and V of every bank

    def begin_step(self, given: StepInput) -> None:
        """Route at the step's scales; a scale of 0 leaves a slot without its bank."""
        self.scale, self.routing = given["bank_scale"], "on"

    def seen(self) -> Seen:
        """Return the banks and what their routers did, which penalties are computed from."""
        return Seen(tuple(self.modules), tuple(self.routed))

    def end_step(self) -> None:
        """Drop what the routers did, which holds the step's autograd graph and its memory."""
        self.routed.clear()

    def rest(self) -> None:
        """Skip the banks."""
        self.routing = "off"

    @contextmanager
    def evaluating(self, mode: str) -> Iterator[None]:
        """Route in some way for a while, at full scale in the slots whose runs have a bank."""
        own = torch.tensor([s is not None for s in self.of_slots], device=self.scale.device)
        with self._routing(mode):
            self.scale = own.float()
            yield

    def absent(self) -> AbstractContextManager[None]:
        """Skip the banks for a while."""
        return self._routing("off")

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """Return a slot's bank weights by ``layers.INDEX.NAME``."""
        return {
            f"layers.{index}.{name}": tensor
            for index, bank in self.banks.items()
            for name, tensor in bank.tensors(slot).items()
        }

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's bank weights from :meth:`tensors`.

        Raises:
            InputError: the weights are those of other bank settings.
        """
        own = self.tensors(slot)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise InputError(
                f"the saved bank, {_key_shapes(tensors)}, does not fit the settings in bank, which "
                f"give {_key_shapes(own)}: allowed are those of the training, leave bank settings "
                "out"
            )
        for index, bank in self.banks.items():
            prefix = f"layers.{index}."
            named = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            bank.load(slot, named)

    def detach(self) -> None:
        """Remove the banks from the model for good."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.routed.clear()

    @contextmanager
    def _routing(self, mode: str) -> Iterator[None]:
        assert mode in {"off", "on", "dense"}
        before, self.routing = self.routing, mode  # type: ignore[assignment]  # one of the three
        try:
            yield
        finally:
            self.routing = before

    def _bank_weights(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Return the banks' parameters of these names, by ``layers.INDEX.NAME``."""
        return {
            f"layers.{index}.{name}": bank.get_parameter(name)
            for index, bank in self.banks.items()
            for name in names
        }

    def _choice(self, index: int) -> Choice:
        """The schemas of a block, told by U: V gets gradients from its orthonormality, too."""
        num_schemas = self.settings.num_schemas
        return Choice(
            "schemas",
            f"layers.{index}.U",
            layer=f"block {index}",
            kind="schemas",
            mend="raise bank.load_balance_weight, or lower bank.num_schemas",
            room=num_schemas,
            count=lambda slot: 0 if self.of_slots[slot] is None else num_schemas,
            norms=lambda u: torch.linalg.vector_norm(u.unflatten(2, (num_schemas, -1)), dim=(1, 3)),
        )

    def _routing_hook(self, bank: SchemaBank) -> Callable[[nn.Module, object, object], object]:
        """Return a bank's forward hook; blocks return hidden states alone or first in a tuple."""

        def hook(_block: nn.Module, _args: object, output: object) -> object:
            if self.routing == "off":
                return None
            assert isinstance(output, Tensor | tuple)
            hidden: Tensor = output if isinstance(output, Tensor) else output[0]
            rows, only = len(hidden), self.only
            # A bank computes all slots. To run one slot alone, every slot gets its rows, and the
            # other slots' results are thrown away.
            given = hidden if only is None else hidden.repeat(len(self.scale), 1, 1)
            moved, routed = bank(given, scale=self.scale, dense=self.routing == "dense")
            self.routed.append(routed)
            if only is not None:
                moved = moved[only * rows : (only + 1) * rows]
            return moved if isinstance(output, Tensor) else (moved, *output[1:])

        return hook


def banks_for(
    settings: BankSettings, *, num_tags: int = 1
) -> Callable[[PreTrainedModel, int], AttachedBanks]:
    """Return a function that puts banks on a model, for a number of slots.

    Args:
        settings: the banks' settings; no slot has a larger rank or top k.
        num_tags: number of tags of an example that has tags.
    """

    def attach(model: PreTrainedModel, num_slots: int) -> AttachedBanks:
        blocks = decoder_blocks(model)
        where = bank_layers(len(blocks), last_n=settings.last_n, layers=settings.layers)
        banks = {index: new_bank(model, settings, num_slots) for index in where}
        return AttachedBanks(blocks, banks, settings, num_slots=num_slots, num_tags=num_tags)

    return attach


def banks_of(stack: AdapterStack) -> AttachedBanks:
    """Return a stack's banks."""
    return next(part for part in stack.parts if isinstance(part, AttachedBanks))


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


def new_bank(model: PreTrainedModel, settings: BankSettings, num_slots: int) -> SchemaBank:
    """Return a bank of these settings for a block of a model, with weights of zero."""
    return SchemaBank(
        num_slots=num_slots,
        hidden_size=hidden_size(model),
        num_schemas=settings.num_schemas,
        rank=settings.rank,
        top_k=settings.top_k,
        attribute_dim=settings.attribute_dim,
        residual=settings.residual,
    ).to(model.device)


def _key_shapes(bank: Mapping[str, Tensor]) -> str:
    """Name the tensors that show a bank's settings, with their shapes."""
    return ", ".join(
        f"{n} {list(t.shape)}" for n, t in bank.items() if n.endswith((".U", "router"))
    )
