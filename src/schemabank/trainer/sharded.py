"""FSDP2: processes split the base model's weights, and each has adapter and banks as a whole.

These are small. Their stages freeze and thaw single groups, and the slices of ``molf`` are compared
as a whole, which split weights do not allow. So FSDP leaves them out, and takes no mean of their
gradients: that is done here, as DDP does it. Checkpoints, too, are those of DDP.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import TrainingArguments

from schemabank.common.errors import InputError


def is_split(accelerator: Accelerator) -> bool:
    """Whether the processes split the base model's weights."""
    # As transformers asks; `distributed_type` is reset whenever accelerate's state is made anew.
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def check_split(
    accelerator: Accelerator, args: TrainingArguments, *, quantised: bool, passes: int = 1
) -> None:
    """Refuse forms of FSDP under which a method's steps would be others, or nothing be saved.

    Raises:
        InputError: naming the first, or FSDP is asked for and has no effect.
    """
    kind = accelerator.distributed_type
    if not is_split(accelerator):
        # Accelerate has it on accelerators alone, and elsewhere says nothing.
        if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise InputError(
                f"FSDP is asked for, but the processes are {kind.value}, in which accelerate "
                "leaves it out: allowed is DDP, leave args.fsdp, use_fsdp and fsdp_config out"
            )
        return
    for name, value, allowed in _unfit(accelerator.state.fsdp_plugin, quantised=quantised):
        raise InputError(f"FSDP's {name} is {value!r:.80}: allowed in a trainer is {allowed}")
    if passes > 1:
        raise InputError(
            "experts.consistency_weight is above 0, but FSDP splits the output layer, behind which "
            "both passes are compared: allowed is 0, or DDP"
        )


def _unfit(plugin: Any, *, quantised: bool) -> Iterator[tuple[str, object, str]]:  # noqa: ANN401
    saved = str(getattr(plugin.state_dict_type, "name", plugin.state_dict_type))
    loaded, again = plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing
    off = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    rules: list[tuple[str, object, bool, str]] = [
        ("version", plugin.fsdp_version, plugin.fsdp_version != 2, "2"),
        (
            "state_dict_type",
            saved,
            saved != "FULL_STATE_DICT",
            "FULL_STATE_DICT, since transformers saves no adapter under others",
        ),
        ("cpu_ram_efficient_loading", loaded, bool(loaded), "False, which keeps the adapter whole"),
        ("cpu_offload", off, off, "False"),
        (
            "activation_checkpointing",
            again,
            bool(again),
            "False, set args.gradient_checkpointing in its place",
        ),
        ("base model", "quantised", quantised, "one that is not, or use DDP"),
    ]
    return ((name, value, allowed) for name, value, unfit, allowed in rules if unfit)


@contextmanager
def as_whole(trainer: Any) -> Iterator[None]:  # noqa: ANN401 -- of transformers
    """Let a trainer write and read what it trains as under DDP, since every process has all of it.

    FSDP would write the optimizer's state in a form of its own, which knows no weights but split
    ones.
    """
    was, trainer.is_fsdp_enabled = trainer.is_fsdp_enabled, False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled = was


def keep_whole(accelerator: Accelerator, modules: Iterable[nn.Module]) -> None:
    """Let FSDP leave out modules of a model that is not split yet."""
    if is_split(accelerator):
        own = [module.to(accelerator.device) for module in modules]
        accelerator.state.fsdp_plugin.ignored_modules = own


@torch.no_grad()
def average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter]) -> None:
    """Take the mean of whole weights' gradients over the processes, once a step."""
    if is_split(accelerator) and accelerator.sync_gradients:
        for weight in weights:  # each process has the same ones, and they are few
            if weight.grad is not None:
                distributed.all_reduce(weight.grad)
                weight.grad /= accelerator.num_processes
