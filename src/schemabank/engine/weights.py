"""What a stack trains: banks made for a model, parameters by group, and what seeds draw them."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from schemabank.config.settings import BankSettings
from schemabank.engine.lora import StackedLora
from schemabank.methods.attach import bank_layers
from schemabank.methods.bank import SchemaBank
from schemabank.methods.curriculum import Group
from schemabank.models.architecture import hidden_size


def new_banks(
    model: PreTrainedModel, blocks: list[nn.Module], bank: BankSettings | None, num_slots: int
) -> dict[int, SchemaBank]:
    """Make the banks that the settings ask for, by the index of their block."""
    if bank is None:
        return {}
    return {
        index: SchemaBank(
            num_slots=num_slots,
            hidden_size=hidden_size(model),
            num_schemas=bank.num_schemas,
            rank=bank.rank,
            top_k=bank.top_k,
            attribute_dim=bank.attribute_dim,
            residual=bank.residual,
        ).to(model.device)
        for index in bank_layers(len(blocks), last_n=bank.last_n, layers=bank.layers)
    }


def named_groups(
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


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
