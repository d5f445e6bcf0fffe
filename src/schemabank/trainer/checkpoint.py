"""What a trainer's checkpoint has beside its own files: a method's weights, and the course.

The trainer keeps the adapter, the optimizer's moments, the step and its random numbers. Everything
that a method draws depends on seed and step alone.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from schemabank.adapters.files import load_bank, save_bank
from schemabank.adapters.tensorfiles import read_tensors
from schemabank.common.errors import InputError
from schemabank.common.files import inside, read_json
from schemabank.common.writing import write_json, writing_tensors
from schemabank.config.naming import dotted_settings
from schemabank.config.settings import RunConfig
from schemabank.trainer.adapter import PeftAdapter
from schemabank.trainer.banks import BlockBanks
from schemabank.trainer.standins import StandIns

STATE, BANK = "schemabank.json", "schemabank_bank"  # a file, and a folder
WEIGHTS = "schemabank_weights.safetensors"  # what trains in the place of PEFT's

Parts = tuple[BlockBanks | None, StandIns | None]

ARGUMENTS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    "label_smoothing_factor",
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
)
OF_LORA = ("r", "lora_alpha", "lora_dropout", "use_rslora")


def course_settings(config: RunConfig) -> dict[str, object]:
    """Return all settings on which a run's course depends, by dotted name."""
    sections = ("task.", "lora.", "average.", "rescale.", "eval.", "engine.", "model.", "preset")
    # How many steps may be skipped changes none of them; earlier checkpoints do not say it.
    others = (*sections, "train.max_skipped")
    found = dotted_settings(config)
    own = {name: value for name, value in found.items() if not name.startswith(others)}
    return {"arm": config.arm, **own}


def given_settings(args: TrainingArguments, adapter: PeftAdapter) -> dict[str, object]:
    """Return what a run's steps depend on besides its course: arguments, and the adapter's form.

    A trainer would take some of them from the checkpoint, and others anew, without a word.
    """
    arguments = {f"args.{name}": getattr(args, name) for name in ARGUMENTS}
    form = {f"LoraConfig's {name}": getattr(adapter.config, name) for name in OF_LORA}
    return {**arguments, **form, "the adapter's list of layers": list(adapter.layers)}


def save_state(
    folder: Path,
    config: RunConfig,
    parts: Parts,
    *,
    given: Mapping[str, object],
    skipped: int,
) -> None:
    """Write what :func:`load_state` reads into a checkpoint's folder.

    As trainers do, it writes over an old one: a run that goes on comes to later checkpoints again.
    """
    banks, stand_ins = parts
    if banks is not None:
        if (folder / BANK).exists():
            shutil.rmtree(folder / BANK)
        save_bank(folder / BANK, banks.tensors())
    if stand_ins is not None:
        with writing_tensors(folder / WEIGHTS) as path:
            save_file({name: own.cpu() for name, own in stand_ins.tensors().items()}, path)
    settings = {**course_settings(config), **given}
    write_json(folder / STATE, {"settings": settings, "skipped": skipped})


def check_checkpoint(folder: Path, given: Mapping[str, object]) -> None:
    """Refuse a checkpoint from which a run would not go on as it was, before it is loaded.

    Raises:
        InputError: it lacks files, or was written under other arguments or by another adapter.
    """
    settings, _ = _read(folder)
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if not (folder / name).exists():
            raise InputError(
                f"{str(folder)!r} has no {name}, so a run cannot go on from it: allowed are whole "
                "checkpoints, set args.save_only_model to False in the run that writes them"
            )
    _check_same(folder, settings, given)


def load_state(folder: Path, config: RunConfig, parts: Parts) -> int:
    """Set a method's weights from a checkpoint; return how many steps were skipped before it.

    Raises:
        InputError: it is of another kind of run.
    """
    settings, skipped = _read(folder)
    _check_same(folder, settings, course_settings(config))
    banks, stand_ins = parts
    if banks is not None:
        banks.load(load_bank(folder / BANK))
    if stand_ins is not None:
        mend = "allowed is a whole checkpoint, name another"
        path = inside(folder, WEIGHTS)
        stand_ins.load(read_tensors(path, mend=mend, check=lambda _: None))
    return skipped


def _read(folder: Path) -> tuple[Mapping[str, object], int]:
    if not (folder / STATE).exists():
        raise InputError(
            f"{str(folder)!r} has no {STATE}, so it was not written under a method of SchemaBank: "
            "allowed are checkpoints of this class of trainer, name one or train from the beginning"
        )
    state = read_json(folder / STATE)
    settings, skipped = state.get("settings"), state.get("skipped")
    if not isinstance(settings, Mapping) or not isinstance(skipped, int):
        raise InputError(f"{str(folder / STATE)!r} is damaged: name another checkpoint")
    return settings, skipped


def _check_same(folder: Path, settings: Mapping[str, object], own: Mapping[str, object]) -> None:
    for name, value in own.items():
        if settings.get(name) != value:
            raise InputError(
                f"{name} is {value!r:.80}, but the checkpoint {str(folder)!r} was trained with "
                f"{settings.get(name)!r:.80}: allowed is the same, set it so or train from the "
                "beginning"
            )
