"""Adapters on disk for tests: stacks of two slots, their folders, and logits to compare."""

from pathlib import Path

import torch
from torch import Tensor

from cohorts import with_banks
from schemabank.adapters.files import model_card, save_adapter
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.stack import AdapterStack
from tiny import tiny_model

TARGETS = ("q_proj", "v_proj", "down_proj")
LORA = [
    LoraSettings(r=4, lora_alpha=10, lora_dropout=0.2, target_modules=TARGETS),
    LoraSettings(r=2, lora_alpha=7, lora_dropout=0.0, target_modules=TARGETS),
]
TOKENS = torch.tensor([[5, 9, 200, 33, 12, 99, 4, 4]])


def drawn_stack(bank: BankSettings | None = None) -> AdapterStack:
    """Two slots of different rank and alpha on a tiny model, with drawn weights."""
    stack = AdapterStack(tiny_model("llama"), lora=LORA, attach=with_banks(bank))
    generator = torch.Generator().manual_seed(0)
    for slot in range(2):
        stack.initialise(slot, slot)
        drawn = {
            path: (a, torch.randn(b.shape, generator=generator) / 4)
            for path, (a, b) in stack.lora.tensors(slot).items()
        }
        stack.lora.load(slot, drawn)
    return stack


def logits(model: torch.nn.Module) -> Tensor:
    """A model's logits of ``TOKENS``."""
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


def stack_logits(stack: AdapterStack) -> Tensor:
    """Every slot's logits with the banks off."""
    with stack.evaluating("off"):
        return stack.head(stack.hidden(TOKENS.expand(stack.num_slots, 1, -1)))


def export(stack: AdapterStack, slot: int, folder: Path, *, base_name: str = "tiny") -> Path:
    """Save a slot's adapter."""
    settings = stack.lora.settings[slot]
    card = model_card(base_name, settings, training="Trained in a test.")
    save_adapter(folder, stack.lora.tensors(slot), settings, base_name=base_name, card=card)
    return folder
