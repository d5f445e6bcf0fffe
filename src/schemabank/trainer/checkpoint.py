"""What a trainer's checkpoint has beside its own files: the bank, and what the course is.

The trainer keeps the adapter, the optimizer's moments, the step and its random numbers. Everything
that a method draws depends on seed and step alone.
"""

from collections.abc import Mapping
from pathlib import Path

from schemabank.adapters.files import load_bank, save_bank
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.config.naming import dotted_settings
from schemabank.config.settings import RunConfig
from schemabank.trainer.banks import BlockBanks

STATE, BANK = "schemabank.json", "schemabank_bank"  # a file, and a folder


def course_settings(config: RunConfig) -> dict[str, object]:
    """Return all settings on which a run's course depends, by dotted name."""
    sections = ("task.", "lora.", "average.", "rescale.", "eval.", "engine.", "model.", "preset")
    found = dotted_settings(config)
    own = {name: value for name, value in found.items() if not name.startswith(sections)}
    return {"arm": config.arm, **own}


def save_state(folder: Path, config: RunConfig, banks: BlockBanks | None, *, skipped: int) -> None:
    """Write what :func:`load_state` reads into a checkpoint's folder."""
    if banks is not None:
        save_bank(folder / BANK, banks.tensors())
    write_json(folder / STATE, {"settings": course_settings(config), "skipped": skipped})


def load_state(folder: Path, config: RunConfig, banks: BlockBanks | None) -> int:
    """Set the banks from a checkpoint, and return how many steps were skipped before it.

    Raises:
        InputError: it is of another kind of run.
    """
    if not (folder / STATE).exists():
        raise InputError(
            f"{str(folder)!r} has no {STATE}, so it was not written under a method of SchemaBank: "
            "allowed are checkpoints of this class of trainer, name one or train from the beginning"
        )
    state = read_json(folder / STATE)
    settings, skipped = state.get("settings"), state.get("skipped")
    if not isinstance(settings, Mapping) or not isinstance(skipped, int):
        raise InputError(f"{str(folder / STATE)!r} is damaged: name another checkpoint")
    own = course_settings(config)
    other = [name for name in {**own, **settings} if own.get(name) != settings.get(name)]
    if other:
        name = other[0]
        raise InputError(
            f"{name} is {own.get(name)!r}, but the checkpoint {str(folder)!r} was trained with "
            f"{settings.get(name)!r}: allowed is the same, set it so or train from the beginning"
        )
    if banks is not None:
        banks.load(load_bank(folder / BANK))
    return skipped
