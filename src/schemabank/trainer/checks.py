"""Settings that a trainer cannot honour, each refused by one sentence before anything is computed.

A trainer takes steps, rates, batches and the adapter from its own arguments and PEFT's
configuration, and everything else from the method. What both could say, one alone may.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import LoraConfig, PeftModel
from transformers import EarlyStoppingCallback, TrainingArguments

from schemabank.common.errors import InputError
from schemabank.config.base import OF_LORA
from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.engine.run import Course
from schemabank.engine.schedule import steps_before_lora
from schemabank.runs.effects import idle_settings, sentences, stated
from schemabank.trainer.adapter import ADAPTER, PeftAdapter
from schemabank.trainer.courses import COURSES, OF_TRAIN, SCHEDULES, scheduler_of

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# Of PEFT's configuration: what plain LoRA has, and what says nothing of training.
PLAIN_LORA = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "task_type", "peft_type"),
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
}
PACKED = ("packing", "padding_free")  # of TRL
PROCESSES = (
    *(DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU),
    DistributedType.FSDP,  # `sharded` checks which
)
BY_ARGUMENTS = {
    "seed": "args.seed",
    "lora": "peft.LoraConfig",
    "train": "the trainer's arguments, if they have it",
}


def check_class(kind: type) -> None:
    """Refuse TRL's other trainers, whose steps call the model more than once or let it generate.

    Raises:
        InputError: naming the first.
    """
    for base in kind.__mro__:
        of_trl = base.__module__.startswith("trl.") and base.__name__.endswith("Trainer")
        if of_trl and base.__name__ != "SFTTrainer" and not base.__name__.startswith("_"):
            raise InputError(
                f"{kind.__name__} is a {base.__name__}, whose steps are not those of supervised "
                "training: allowed are transformers' Trainer and TRL's SFTTrainer"
            )


def check_method(method: RunConfig) -> None:
    """Refuse a method, or a setting of it, that no trainer can honour.

    Raises:
        InputError: naming it.
    """
    if not isinstance(method, RunConfig):
        raise InputError(
            f"method is {method!r:.80}: allowed is a schemabank.RunConfig, such as "
            'RunConfig(arm="coto")'
        )
    if method.arm not in COURSES:
        raise InputError(
            f"method.arm is {method.arm!r}, which trains in SchemaBank's own engine alone: allowed "
            f"in a trainer are {', '.join(COURSES)}; or use schemabank.Tuner"
        )
    own = {*METHODS[method.arm].sections, "arm"} - set(OF_LORA)
    allowed = {*own, *(f"train.{name}" for name in OF_TRAIN)}
    for name in stated(method):
        section = name.partition(".")[0]
        if section in allowed or name in allowed:
            continue
        place = BY_ARGUMENTS.get(section)
        mend = f"set it in {place}" if place else "leave it out, or use schemabank.Tuner"
        raise InputError(
            f"method states {name}, which has no effect in a trainer: allowed are settings of "
            f"{', '.join(sorted(allowed))}; {mend}"
        )
    for sentence in sentences(idle_settings(stated(method), [method])):
        raise InputError(f"method: {sentence}; leave it out")
    if method.is_tagged and method.tags.delivery != "loss":
        raise InputError(
            f"tags.delivery is {method.tags.delivery!r}, but a trainer's examples are tokens "
            "already: allowed is loss"
        )
    if method.is_tagged and method.tags.tagger == "cluster":
        raise InputError(
            "tags.tagger is 'cluster', which reads the base model before training: allowed in a "
            "trainer are content, field, hash, none and random"
        )


def check_arguments(args: TrainingArguments, method: RunConfig) -> None:
    """Refuse arguments of a trainer under which a method's steps would be others.

    Raises:
        InputError: naming the first.
    """
    unfit = (*_unfit(args, method), *_unfit_in_processes(args), *_unfit_with_banks(args, method))
    for name, value, allowed in (*unfit, *_unfit_in_rows(args)):
        raise InputError(
            f"args.{name} is {value!r}, which the arm {method.arm} in a trainer cannot honour: "
            f"allowed is {allowed}"
        )


def _unfit(args: TrainingArguments, method: RunConfig) -> Iterator[tuple[str, object, str]]:
    optimizer, schedule = str(getattr(args.optim, "value", args.optim)), scheduler_of(args)
    counted = args.warmup_steps >= 1 and len(method.stages()) > 1
    wrapper = "DDP, which torchrun and accelerate launch start without further settings"
    rules: list[tuple[str, object, bool, str]] = [
        ("optim", optimizer, optimizer not in OPTIMIZERS, " or ".join(OPTIMIZERS)),
        ("fp16", args.fp16, args.fp16, "False, train in bf16 or float32"),
        ("lr_scheduler_type", schedule, schedule not in SCHEDULES, ", ".join(SCHEDULES)),
        ("lr_scheduler_kwargs", args.lr_scheduler_kwargs, bool(args.lr_scheduler_kwargs), "none"),
        ("learning_rate", args.learning_rate, args.learning_rate <= 0, "a rate above 0"),
        ("warmup_steps", args.warmup_steps, counted, "a share of every stage's steps, below 1"),
        ("auto_find_batch_size", args.auto_find_batch_size, args.auto_find_batch_size, "False"),
        ("torch_compile", args.torch_compile, args.torch_compile, "False: what acts changes"),
        ("n_gpu", args.n_gpu, args.n_gpu > 1, "one visible GPU a process, start one for each"),
        ("deepspeed", args.deepspeed, bool(args.deepspeed), wrapper),
        ("parallelism_config", "given", args.parallelism_config is not None, wrapper),
    ]
    return ((name, value, allowed) for name, value, unfit, allowed in rules if unfit)


def _unfit_in_rows(args: TrainingArguments) -> Iterator[tuple[str, object, str]]:
    """What TRL may put into one row: examples that stay whole, without padding behind them."""
    if not any(getattr(args, name, False) for name in PACKED):
        return
    strategy, multiple = (
        getattr(args, "packing_strategy", ""),
        getattr(args, "pad_to_multiple_of", 0),
    )
    if getattr(args, "packing", False) and strategy == "wrapped":
        which = "bfd or bfd_split: wrapped lets examples see each other"
        yield "packing_strategy", strategy, which
    if multiple:
        which = "None with packing or padding_free, in which padding looks like examples"
        yield "pad_to_multiple_of", multiple, which


def _unfit_in_processes(args: TrainingArguments) -> Iterator[tuple[str, object, str]]:
    if args.world_size == 1:
        return
    if not args.average_tokens_across_devices:
        which = "True in several processes, whose batches hold different numbers of tokens"
        yield "average_tokens_across_devices", False, which
    if not getattr(args.accelerator_config, "even_batches", True):  # its type has other forms
        which = "even_batches True in several processes: one without a batch lets others wait"
        yield "accelerator_config", {"even_batches": False}, which
    kwargs = args.gradient_checkpointing_kwargs
    if args.gradient_checkpointing and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
        which = "use_reentrant False in several processes, since DDP looks for unused weights"
        yield "gradient_checkpointing_kwargs", {"use_reentrant": True}, which


def _unfit_with_banks(
    args: TrainingArguments, method: RunConfig
) -> Iterator[tuple[str, object, str]]:
    if not method.uses("bank"):
        return
    kwargs = args.gradient_checkpointing_kwargs
    if isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
        yield "gradient_checkpointing_kwargs", {"use_reentrant": True}, "use_reentrant False"
    whole = "1 with bank.load_balance_weight, whose term needs the whole batch at once"
    for name in ("gradient_accumulation_steps", "world_size"):
        if method.bank.load_balance_weight and getattr(args, name) > 1:
            yield name, getattr(args, name), whole
    for name, value in (("ddp_find_unused_parameters", False), ("ddp_static_graph", True)):
        if args.world_size > 1 and getattr(args, name) is value:
            yield name, value, f"{not value}, since a stage leaves out weights of another"


def check_processes(accelerator: Accelerator) -> None:
    """Refuse what launchers set beside a trainer's arguments, if it splits weights or batches.

    Raises:
        InputError: naming what it is.
    """
    kind = accelerator.distributed_type
    # Older versions of accelerate have no such attribute.
    if kind not in PROCESSES or getattr(accelerator, "parallelism_config", None) is not None:
        raise InputError(
            f"the trainer's processes are started as {kind.value}, in which weights are split or "
            "wrapped: allowed is one process, or FSDP2, or DDP, which torchrun and accelerate "
            "launch start without further settings"
        )


def by_name(
    function: Callable[..., object], args: Sequence[object], options: Mapping[str, object]
) -> dict[str, Any]:
    """Return a call's arguments by their names, those that stand by their places too.

    Raises:
        InputError: the function takes any number by their places, so that these have no names.
    """
    found = inspect.signature(function).bind_partial(*args, **options)
    placed: dict[str, Any] = {}
    for name, value in found.arguments.items():
        kind = found.signature.parameters[name].kind
        if kind == inspect.Parameter.VAR_POSITIONAL:
            raise InputError(
                "options were given to the trainer by their places, but its class does not name "
                "them: allowed are options by their names"
            )
        if kind != inspect.Parameter.VAR_KEYWORD:
            placed[name] = value
    return {**placed, **options}


def check_options(options: Mapping[str, object]) -> None:
    """Refuse what a trainer was given besides its arguments.

    Raises:
        InputError: naming the first.
    """
    for name in ("optimizers", "optimizer_cls_and_kwargs", "model_init", "compute_loss_func"):
        value = options.get(name)
        if value is not None and value != (None, None):
            raise InputError(
                f"{name} was given to the trainer, but a method has its own stages, rates and "
                "penalties: allowed is none, leave it out"
            )


def check_trained(model: object, adapter: PeftAdapter) -> None:
    """Refuse weights that are to be trained, and that no stage knows: none would change.

    Raises:
        InputError: naming the first.
    """
    assert isinstance(model, PeftModel)
    own = {id(weight) for weight in (*adapter.a, *adapter.b)}
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in own:
            raise InputError(
                f"{name} is to be trained, but a method trains LoRA on linear layers alone: "
                "allowed is requires_grad_(False), and linear layers in target_modules"
            )


def check_warm_up(args: TrainingArguments, num_steps: int) -> None:
    """Refuse a warm-up that is not over by the last step: no stage can have one.

    Raises:
        InputError: naming both numbers.
    """
    _, warms_up = SCHEDULES[scheduler_of(args)]
    if warms_up and (args.warmup_steps or 0) > num_steps:
        raise InputError(
            f"args.warmup_steps is {args.warmup_steps}, but the run has {num_steps} steps: allowed "
            "are no more than those, or a share of them below 1"
        )


def check_early_stopping(callbacks: Sequence[object], course: Course) -> None:
    """Refuse to stop early where evaluation says nothing at first.

    Raises:
        InputError: there is such a callback, and a first stage leaves the adapter untouched.
    """
    idle = steps_before_lora(course.plans)
    if idle and any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        raise InputError(
            f"there is an EarlyStoppingCallback, but the first {idle} of {course.num_steps} steps "
            "leave the adapter untouched, so that evaluation cannot improve: allowed is none, "
            "remove it"
        )


def check_adapter(model: object, adapter: PeftAdapter) -> None:
    """Refuse an adapter that is not plain LoRA in float32.

    Raises:
        InputError: naming what it is instead.
    """
    assert isinstance(model, PeftModel)
    config = model.peft_config[ADAPTER]
    plain = LoraConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in PLAIN_LORA and value != getattr(plain, field.name, None):
            raise InputError(
                f"LoraConfig's {field.name} is {value!r:.80}, but SchemaBank trains plain LoRA: "
                f"allowed is {getattr(plain, field.name, None)!r:.80}, leave it out"
            )
    if not adapter.layers:
        raise InputError("the model's adapter has no linear layers: name some in target_modules")
    for layer in adapter.layers.values():
        for state, is_so, mend in (
            ("merged into the base model", layer.merged, "unmerge_adapter"),
            ("disabled", layer.disable_adapters, "base_model.enable_adapter_layers"),
        ):
            if is_so:
                raise InputError(
                    f"the adapter is {state}, so training would not change it: allowed is one that "
                    f"acts, call model.{mend}() first"
                )
    wide = torch.float32.itemsize
    other = next((w.dtype for w in (*adapter.a, *adapter.b) if w.itemsize < wide), None)
    if other is not None:
        raise InputError(
            f"the adapter's weights are {other}, which swallows small updates: allowed is float32, "
            "as PEFT makes them (autocast_adapter_dtype) unless the base model is quantised"
        )


def check_model(model: object) -> None:
    """Refuse a model without the one LoRA adapter that a method trains.

    Raises:
        InputError: saying what it is instead.
    """
    if not isinstance(model, PeftModel):
        raise InputError(
            f"the trainer's model is a {type(model).__name__}: allowed is a peft.PeftModel, make "
            "one by peft.get_peft_model(model, LoraConfig(...)), or give SFTTrainer a peft_config"
        )
    found = dict(model.peft_config)
    if list(found) != [ADAPTER] or not isinstance(found[ADAPTER], LoraConfig):
        kinds = ", ".join(f"{n} ({type(c).__name__})" for n, c in found.items())
        raise InputError(
            f"the model's adapters are {kinds}: allowed is one LoraConfig under the name {ADAPTER}"
        )
