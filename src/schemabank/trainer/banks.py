"""Schema banks on the blocks of a model that PEFT wraps, while its trainer trains.

The banks are the engine's own module with one slot. They are registered in the model, so that the
trainer clips their gradients and moves them to its device; PEFT saves LoRA's weights alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings
from schemabank.engine.flat import seeded_generator
from schemabank.methods.schemabank.attach import OF_SCHEMAS, bank_layers, new_bank
from schemabank.methods.schemabank.bank import Routed, SchemaBank
from schemabank.methods.schemabank.penalties import Seen
from schemabank.models.architecture import decoder_blocks

NAME = "schema_banks"  # in the model


class BlockBanks:
    """Banks of one run.

    Args:
        model: a ``peft.PeftModel``, until :meth:`remove`.
        settings: the banks'.

    Attributes:
        scale: of what the banks add; 0: they are skipped.
        banks: by the index of their block.
    """

    def __init__(self, model: Any, settings: BankSettings) -> None:  # noqa: ANN401 -- PEFT's
        base = model.get_base_model()
        blocks = decoder_blocks(base)
        where = bank_layers(len(blocks), last_n=settings.last_n, layers=settings.layers)
        self._model, self._settings = model, settings
        self.scale = 0.0
        # A model with a device map is not moved as a whole, and its banks would not be either.
        self.banks = {
            index: new_bank(base, settings, 1).to(next(blocks[index].parameters()).device)
            for index in where
        }
        self._routed: list[Routed] = []
        self._noting = False
        model.add_module(NAME, nn.ModuleDict({str(i): bank for i, bank in self.banks.items()}))
        self._handles = [
            blocks[index].register_forward_hook(self._hook(bank))
            for index, bank in self.banks.items()
        ]

    def initialise(self, seed: int) -> None:
        """Draw the weights from a seed, the same as the engine's."""
        generator = seeded_generator(seed, "bank")
        for bank in self.banks.values():
            bank.initialise(0, generator, init_std=self._settings.init_std)

    @property
    def groups(self) -> Mapping[str, list[nn.Parameter]]:
        """The weights by the name of what a stage may train."""
        of_names = {"router": ("router",), "schemas": OF_SCHEMAS}
        return {
            group: [bank.get_parameter(name) for bank in self.banks.values() for name in names]
            for group, names in of_names.items()
        }

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what the routers do, for :meth:`seen`.

        A checkpointed block runs once more in the backward pass, when nobody notes it.
        """
        self._routed.clear()
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def seen(self) -> Seen:
        """Return what the penalties are computed from, and forget it.

        Raises:
            InputError: the forward pass gave the routers no gradient, or ran more than once.
        """
        routed = tuple(self._routed)
        self._routed.clear()
        if len(routed) != len(self.banks):
            raise InputError(
                f"a training step called the banks of {len(self.banks)} blocks with a gradient "
                f"{len(routed)} times: allowed is once each, use the trainer's own loss and "
                "checkpointing with use_reentrant=False"
            )
        return Seen(tuple(self.banks.values()), routed)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by ``layers.INDEX.NAME``, as the engine saves a bank."""
        return {
            f"layers.{index}.{name}": tensor
            for index, bank in self.banks.items()
            for name, tensor in bank.tensors(0).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the weights from :meth:`tensors`.

        Raises:
            InputError: they are those of other settings.
        """
        if {n: t.shape for n, t in tensors.items()} != {
            n: t.shape for n, t in self.tensors().items()
        }:
            raise InputError(
                "the checkpoint's bank does not fit the settings in bank: allowed are those that "
                "the checkpoint was trained with, use them"
            )
        for index, bank in self.banks.items():
            start = f"layers.{index}."
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            bank.load(0, own)

    def remove(self) -> None:
        """Take the banks off; the model is then PEFT's alone."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(self._model, NAME)

    def _hook(self, bank: SchemaBank) -> Callable[[nn.Module, object, object], object]:
        """Return a bank's forward hook; blocks return hidden states alone or first in a tuple."""

        def hook(_block: nn.Module, _args: object, output: object) -> object:
            if self.scale == 0:
                return None
            assert isinstance(output, Tensor | tuple)
            hidden: Tensor = output if isinstance(output, Tensor) else output[0]
            scale = torch.full((1,), self.scale, device=hidden.device)
            # Autocast would route in bfloat16, in which rounding chooses between close schemas.
            with torch.autocast(hidden.device.type, enabled=False):
                moved, routed = bank(hidden, scale=scale)
            if self._noting and torch.is_grad_enabled():
                self._routed.append(routed)
            return moved if isinstance(output, Tensor) else (moved, *output[1:])

        return hook
