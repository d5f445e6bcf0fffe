"""Which methods train inside a trainer, and the course of each: the engine's own, step for step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import SchedulerType, TrainingArguments

from schemabank.config.methods import CoToSettings, ExpertsSettings, ShrinkSettings
from schemabank.config.settings import RunConfig
from schemabank.config.train import TrainSettings
from schemabank.engine.batches import Schedule
from schemabank.engine.run import Course, Run, TrainingData
from schemabank.methods.coto import CoToCourse, check_blocks
from schemabank.methods.experts import ExpertsCourse, check_fading, check_passes
from schemabank.methods.molf import check_slices
from schemabank.methods.schemabank.course import Banked
from schemabank.methods.schemabank.tagging import check_tags, tag_plan
from schemabank.methods.shrink import ShrinkCourse
from schemabank.tasks import Example
from schemabank.trainer.adapter import PeftAdapter

# Ours by transformers' names, and whether theirs warms up.
SCHEDULES = {
    "linear": ("linear", True),
    "cosine": ("cosine", True),
    "constant_with_warmup": ("constant", True),
    "constant": ("constant", False),
}
# Settings of ``train`` that no argument of a trainer has.
OF_TRAIN = ("loraplus_lr_ratio", "max_skipped_ratio")
NO_SCHEDULE = Schedule(buckets=(), orders=((),), batch_size=0)  # the trainer makes the batches

NewCourse = Callable[[RunConfig, Run, TrainingData, PeftAdapter], Course]


def resolved(
    method: RunConfig, args: TrainingArguments, num_steps: int, lora: LoraConfig
) -> RunConfig:
    """Return the method's settings with what a trainer's arguments and PEFT say of the others."""
    schedule, warms_up = SCHEDULES[scheduler_of(args)]
    train = TrainSettings.model_validate(
        {
            "max_steps": num_steps,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": schedule,
            "warmup_ratio": warmup_ratio(args, num_steps) if warms_up else 0.0,
            **{name: getattr(method.train, name) for name in OF_TRAIN},
        }
    )
    whole = {name: getattr(method, name) for name in RunConfig.model_fields}
    given = {"r": lora.r, "lora_dropout": lora.lora_dropout}
    own = method.lora.model_copy(update=given)
    return RunConfig.model_validate({**whole, "train": train, "seed": args.seed, "lora": own})


def check_length(config: RunConfig, num_steps: int) -> None:
    """Refuse what is over within the first of so many steps.

    Raises:
        InputError: naming it.
    """
    if config.uses("experts"):
        check_fading(config, num_steps)


def scheduler_of(args: TrainingArguments) -> str:
    """Return the name of the schedule that a trainer's arguments ask for."""
    return str(SchedulerType(args.lr_scheduler_type).value)


def warmup_ratio(args: TrainingArguments, num_steps: int) -> float:
    """Return the share of the steps that warm up; ``warmup_steps`` is one, or a number of steps."""
    steps = float(args.warmup_steps or 0)
    if steps < 1:
        return steps
    # A stage warms up for the next whole number of steps. Half a step less is safe from rounding.
    return min(1.0, (int(steps) - 0.5) / num_steps)


def new_course(
    config: RunConfig,
    examples: Sequence[Example],
    tokenizer: Any,  # noqa: ANN401 -- whatever a trainer takes
    adapter: PeftAdapter,
) -> Course:
    """Return what a run's steps do.

    Args:
        config: from :func:`resolved`.
        examples: what tags or experts go by; empty for a run in which nothing does.
        tokenizer: the trainer's.
        adapter: what is trained.

    Raises:
        InputError: the method can do nothing here, or its tags do not fit the examples.
    """
    data = TrainingData(examples, encoded=(), schedule=NO_SCHEDULE, tokenizer=tokenizer)
    parts = (config.arm, config.seed, config.stages(), config.train, config.lora)
    run = Run(*parts, passes=config.passes)
    return COURSES[config.arm](config, run, data, adapter)


def _of_lora(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    del config, adapter
    return Course(run, data)


def _of_molf(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    del adapter
    check_slices(config)
    return Course(run, data)


def _of_coto(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    check_blocks(config, adapter.num_blocks)
    return CoToCourse(run, data, coto=config.own(CoToSettings), num_blocks=adapter.num_blocks)


def _of_schemabank(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    del adapter
    check_tags(config, data.examples)
    return Banked(config.bank, tag_plan(config, data.tokenizer, _no_embeddings)).course(run, data)


def _of_experts(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    check_passes(config)
    own = config.own(ExpertsSettings)
    sizes = {"num_layers": len(adapter.layers), "room": own.num_experts}
    return ExpertsCourse(run, data, experts=own, **sizes)


def _of_shrink(config: RunConfig, run: Run, data: TrainingData, adapter: PeftAdapter) -> Course:
    del adapter
    return ShrinkCourse(run, data, ratio=config.own(ShrinkSettings).ratio)


def _no_embeddings() -> Mapping[str, np.ndarray]:
    raise AssertionError("the tagger cluster was refused")


COURSES: Mapping[str, NewCourse] = {
    "lora": _of_lora,
    "molf": _of_molf,
    "coto": _of_coto,
    "schemabank": _of_schemabank,
    "experts": _of_experts,
    "shrink": _of_shrink,
}
