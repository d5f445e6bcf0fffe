"""Stages of a training run: who trains, how fast, with which tags and how much of the bank.

A curriculum is any list of stages whose ratios sum to 1. This module turns it into the settings of
every single step; nothing here touches a tensor. The document's three stages are the default of
the configuration, the hand-over (bank scale or use probability annealed, then a bare tail) follows
BERT-of-Theseus (arXiv 2002.02925) and VanillaNet (arXiv 2305.12972).
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from schemabank.config.train import Stage
from schemabank.methods.tags import keep_probability

Group = Literal["router", "schemas", "lora"]
GROUPS: tuple[Group, ...] = ("router", "schemas", "lora")
BANK_GROUPS: tuple[Group, ...] = ("router", "schemas")


@dataclass(frozen=True)
class StepSettings:
    """Everything that one step of one run needs to know.

    Attributes:
        stage: index of the stage.
        stage_name: its name.
        first: whether the stage starts here, with a fresh optimizer.
        trained: the groups this step updates.
        learning_rate: after warm-up and decay.
        tag_keep: probability that an example's tags are shown.
        bank_scale: ``β``; 0 where the step runs bare.
    """

    stage: int
    stage_name: str
    first: bool
    trained: frozenset[Group]
    learning_rate: float
    tag_keep: float
    bank_scale: float


@dataclass(frozen=True)
class StagePlan:
    """A stage placed on the run's steps: ``start <= step < stop``."""

    stage: Stage
    start: int
    stop: int


def plan(stages: tuple[Stage, ...], num_steps: int) -> tuple[StagePlan, ...]:
    """Divide ``num_steps`` among the stages by their ratios.

    Boundaries are rounded cumulatively, so they sum to ``num_steps`` exactly; a stage may come out
    empty when there are fewer steps than stages.
    """
    shares = list(accumulate(stage.ratio for stage in stages))
    # Ratios such as three times 0.333333 sum to nearly 1; the last share over itself is exactly 1.
    bounds = [0, *(round(num_steps * (share / shares[-1])) for share in shares)]
    return tuple(
        StagePlan(stage=stage, start=start, stop=stop)
        for stage, (start, stop) in zip(stages, pairwise(bounds), strict=True)
    )


def trained_groups(stages: tuple[Stage, ...]) -> frozenset[Group]:
    """Return the groups that some step updates; a stage without its bank trains none of it."""
    found: set[Group] = set()
    for stage in stages:
        bare = (0.0, 0.0) in (stage.bank_scale, stage.bank_probability)
        found |= set(stage.train) - set(BANK_GROUPS if bare else ())
    return frozenset(found)


def step_settings(plans: tuple[StagePlan, ...], step: int, *, seed: int) -> StepSettings:
    """Return the settings of ``step`` (from 0).

    Args:
        plans: the run's stages on its steps.
        step: the step that is about to run.
        seed: the run's seed; it decides which steps use the bank when a probability says so.
    """
    index = next(i for i, p in enumerate(plans) if p.start <= step < p.stop)
    placed = plans[index]
    scale = _bank_scale(placed, step, seed=seed)
    trained: frozenset[Group] = frozenset(placed.stage.train)
    if scale == 0:
        trained -= frozenset(BANK_GROUPS)
    length = placed.stop - placed.start
    return StepSettings(
        stage=index,
        stage_name=placed.stage.name,
        first=step == placed.start,
        trained=trained,
        learning_rate=learning_rate(placed.stage, step - placed.start, length),
        tag_keep=keep_probability(placed.stage.tag_keep, (step - placed.start) / length),
        bank_scale=scale,
    )


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """Learning rate of a stage's step (from 0): linear warm-up, then the stage's schedule.

    As in transformers' schedules, the first warm-up step is one warm-up share of the peak here
    (not 0, which would waste the step) and the decay ends at 0 after the last step.
    """
    warmup = math.ceil(stage.warmup_ratio * num_steps)
    if step < warmup:
        return stage.learning_rate * (step + 1) / (warmup + 1)
    if stage.lr_scheduler_type == "constant":
        return stage.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    if stage.lr_scheduler_type == "cosine":
        return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * (1 - progress)


def keyed_uniform(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _bank_scale(placed: StagePlan, step: int, *, seed: int) -> float:
    """The bank scale of a step: annealed, then dropped by chance, and 0 in the bare tail."""
    stage = placed.stage
    length = placed.stop - placed.start
    bare_from = placed.stop - round(stage.bare_tail_ratio * length)
    if step >= bare_from:
        return 0.0
    progress = (step - placed.start) / max(1, bare_from - placed.start - 1)
    probability = _between(stage.bank_probability, progress)
    if probability < 1 and keyed_uniform(f"bank/{seed}/{step}") >= probability:
        return 0.0
    return _between(stage.bank_scale, progress)


def _between(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress
