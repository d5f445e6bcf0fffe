"""The trainable weights of all slots: one flat float32 row a slot for each group.

LoRA layers and banks see their weights as views into the rows, so one optimizer call updates a
whole group of all slots, and a slot is loaded, saved or cleared as a row.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.attach import AttachedBanks, attach_banks, bank_layers
from schemabank.bank import Routing, SchemaBank
from schemabank.cohort.lora import SlotDropout, StackedLora, install_lora, remove_lora
from schemabank.cohort.loss import Head
from schemabank.config import BankSettings, LoraSettings
from schemabank.curriculum import Group
from schemabank.errors import InputError
from schemabank.models import decoder_blocks

HEAD_TOLERANCE = 1e-3


class FlatGroup:
    """The weights of one group, ``(slot, size)``, which its parameters are views of."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, num_slots: int) -> None:
        self.parameters = dict(parameters)
        size = sum(p[0].numel() for p in self.parameters.values())
        device = next(iter(self.parameters.values())).device
        self.weights = torch.zeros(num_slots, size, device=device)
        start = 0
        for parameter in self.parameters.values():
            shape, stop = parameter.shape, start + parameter[0].numel()
            self.weights[:, start:stop].view(shape).copy_(parameter.data)
            parameter.data = self.weights[:, start:stop].view(shape)
            start = stop

    def is_whole(self) -> bool:
        """Whether the parameters still are views of the rows; moving or casting ends that."""
        storage = self.weights.untyped_storage().data_ptr()
        return all(p.untyped_storage().data_ptr() == storage for p in self.parameters.values())

    @property
    def size(self) -> int:
        """Weights of one slot."""
        return self.weights.shape[1]

    def require_grad(self, wanted: bool) -> None:
        """Say whether the next backward pass reaches this group, and forget older gradients."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(wanted)
            parameter.grad = None

    def grads(self) -> Tensor:
        """Return the last backward pass's gradients, ``(slot, size)``; zero where none came."""
        return torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten(1)
                for p in self.parameters.values()
            ],
            dim=1,
        )


class AdapterStack:
    """LoRA adapters and banks of ``num_slots`` runs on one frozen model.

    Args:
        model: the base model; it is changed in place until :meth:`remove`.
        lora: LoRA settings of each slot; all with the same target modules.
        bank: the banks' settings, or ``None`` for no banks.
        banked: which slots' runs use the banks; all of them without it.

    Raises:
        InputError: targets or layers that the model does not have, or an output layer that is more
            than a linear map with an optional soft cap.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lora: Sequence[LoraSettings],
        bank: BankSettings | None,
        banked: Sequence[bool] | None = None,
    ) -> None:
        self.model, self.num_slots = model.requires_grad_(False).eval(), len(lora)
        self.lora_settings, self.bank_settings = list(lora), bank
        self.banked = [bank is not None] * len(lora) if banked is None else list(banked)
        self.head = output_head(model)
        blocks = decoder_blocks(model)
        banks = _new_banks(model, blocks, bank, self.num_slots)
        self.dropout = SlotDropout([s.lora_dropout for s in lora], device=model.device)
        self.lora = install_lora(model, lora, dropout=self.dropout)
        self.attached = True
        self.banks: AttachedBanks = attach_banks(blocks, banks, num_slots=self.num_slots)
        self.groups: dict[Group, FlatGroup] = {
            name: FlatGroup(parameters, num_slots=self.num_slots)
            for name, parameters in _named_groups(self.lora, banks).items()
            if parameters
        }
        self.freeze()

    def initialise(self, slot: int, seed: int) -> None:
        """Draw a slot's weights from a run's seed: LoRA's the same with and without banks."""
        generator = seeded_generator(seed, "lora")
        for layer in self.lora.values():
            layer.initialise(slot, generator)
        if self.bank_settings is not None:
            generator = seeded_generator(seed, "bank")
            for _, bank in sorted(self.banks.banks.items()):
                bank.initialise(slot, generator, init_std=self.bank_settings.init_std)

    def is_whole(self) -> bool:
        """Whether the layers on the model still share their weights with the groups."""
        return all(group.is_whole() for group in self.groups.values())

    def freeze(self) -> None:
        """Train nothing: the state in which a stack is evaluated."""
        for group in self.groups.values():
            group.require_grad(False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Run all slots' models up to the final norm.

        Args:
            tokens: ``(slot, batch, token)``, right-padded.

        Returns:
            ``(slot * batch, token, hidden)``.
        """
        trunk = self.model.base_model
        output: Tensor = trunk(input_ids=tokens.flatten(0, 1), use_cache=False).last_hidden_state
        return output

    @contextmanager
    def evaluating(self, routing: Routing) -> Iterator[None]:
        """Freeze everything, switch dropout off and set the banks to ``routing`` at full scale."""
        before = self.banks.routing
        self.freeze()
        self.dropout.begin_step(None)
        self.banks.routing = routing
        self.banks.scale = torch.tensor(self.banked, device=self.model.device).float()
        try:
            with torch.no_grad():
                yield
        finally:
            self.banks.routing = before

    def lora_tensors(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a slot's ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer."""
        rank = self.lora_settings[slot].r
        return {
            path: (
                layer.A.detach()[slot, :rank].clone().contiguous(),
                layer.B.detach()[slot, :, :rank].clone().contiguous(),
            )
            for path, layer in self.lora.items()
        }

    def load_lora(self, slot: int, tensors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set a slot's adapters; layers that are not named stay untouched by an adapter.

        Raises:
            InputError: weights of a layer that the model does not have, or has in another size.
        """
        for path, (a, b) in tensors.items():
            self._check_fits(path, a, b)
        with torch.no_grad():
            for path, layer in self.lora.items():
                layer.A[slot].zero_()
                layer.B[slot].zero_()
                if path in tensors:
                    a, b = tensors[path]
                    layer.A[slot, : a.shape[0]].copy_(a)
                    layer.B[slot, :, : b.shape[1]].copy_(b)

    def bank_tensors(self, slot: int) -> dict[str, Tensor]:
        """Return a slot's bank weights by ``layers.INDEX.NAME``."""
        return {
            f"layers.{index}.{name}": parameter.detach()[slot].clone().contiguous()
            for index, bank in sorted(self.banks.banks.items())
            for name, parameter in bank.named_parameters()
        }

    def load_bank(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's bank weights from :meth:`bank_tensors`.

        Raises:
            InputError: the weights are those of other bank settings.
        """
        own = self.bank_tensors(slot)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise InputError(
                f"the saved bank, {_sizes(tensors)}, does not fit the settings in bank, which give "
                f"{_sizes(own)}: allowed are those of the training, leave bank settings out"
            )
        with torch.no_grad():
            for index, bank in self.banks.banks.items():
                for name, parameter in bank.named_parameters():
                    parameter[slot].copy_(tensors[f"layers.{index}.{name}"])

    def detach_banks(self) -> None:
        """Take the banks off; the adapters stay."""
        self.banks.detach()

    def remove(self) -> None:
        """Take banks and adapters off; the model is the base model again, bit for bit."""
        self.banks.detach()
        if self.attached:
            remove_lora(self.model, self.lora)
            self.attached = False

    def _check_fits(self, path: str, a: Tensor, b: Tensor) -> None:
        layer = self.lora.get(path)
        size = None if layer is None else (layer.base.in_features, layer.base.out_features)
        if size != (a.shape[1], b.shape[0]):
            found = "no such layer" if size is None else f"{size[0]} to {size[1]} there"
            raise InputError(
                f"the adapter has weights for {path!r}, {a.shape[1]} to {b.shape[0]}, but the "
                f"model has {found}: allowed is the base model that it was trained on, name that"
            )


def output_head(model: PreTrainedModel) -> Head:
    """Return the map from final hidden states to logits.

    Raises:
        InputError: the map reproduces the model's own logits in no known form.
    """
    layer = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = layer(hidden)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    tokens = torch.arange(1, 5, device=model.device)[None]
    with torch.no_grad():
        ours = head(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state).float()
        theirs = model(input_ids=tokens, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE):
        raise InputError(
            f"the model {type(model).__name__} changes its logits after the output layer: allowed "
            "are a linear output layer and final_logit_softcapping, use a model of that kind"
        )
    return head


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _new_banks(
    model: PreTrainedModel, blocks: list[nn.Module], bank: BankSettings | None, num_slots: int
) -> dict[int, SchemaBank]:
    if bank is None:
        return {}
    return {
        index: SchemaBank(
            num_slots=num_slots,
            hidden_size=model.config.hidden_size,
            num_schemas=bank.num_schemas,
            rank=bank.rank,
            top_k=bank.top_k,
            attribute_dim=bank.attribute_dim,
            residual=bank.residual,
        ).to(model.device)
        for index in bank_layers(len(blocks), last_n=bank.last_n, layers=bank.layers)
    }


def _sizes(bank: Mapping[str, Tensor]) -> str:
    return ", ".join(
        f"{n} {list(t.shape)}" for n, t in bank.items() if n.endswith((".U", "router"))
    )


def _named_groups(
    lora: Mapping[str, StackedLora], banks: Mapping[int, SchemaBank]
) -> dict[Group, dict[str, nn.Parameter]]:
    """The three groups that a stage may train, with their parameters in a fixed order."""

    def of_banks(names: Iterable[str]) -> dict[str, nn.Parameter]:
        return {
            f"layers.{index}.{name}": bank.get_parameter(name)
            for index, bank in sorted(banks.items())
            for name in names
        }

    adapters = {
        f"{path}.{name}": layer.get_parameter(name)
        for path, layer in lora.items()
        for name in ("A", "B")
    }
    return {
        "router": of_banks(["router"]),
        "schemas": of_banks(["U", "V", "attributes", "query"]),
        "lora": adapters,
    }
