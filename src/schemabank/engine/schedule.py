"""When a run trains what: its stages on its steps, and each one's learning rate; no tensors."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from schemabank.config.train import Stage


@dataclass(frozen=True)
class StepSettings:
    """What one step of one run needs to know.

    Attributes:
        step: its number, from 0.
        stage: index of the stage.
        stage_name: its name.
        first: whether the stage starts here, with a fresh optimizer.
        trained: the groups of weights that this step updates.
        learning_rate: after warm-up and decay.
    """

    step: int
    stage: int
    stage_name: str
    first: bool
    trained: frozenset[str]
    learning_rate: float


@dataclass(frozen=True)
class StagePlan:
    """A stage placed on the run's steps: ``start <= step < stop``."""

    stage: Stage
    start: int
    stop: int

    @property
    def num_steps(self) -> int:
        """How many steps the stage has."""
        return self.stop - self.start


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


def stage_index(plans: Sequence[StagePlan], step: int) -> int:
    """Return the index of the stage that a step (from 0) belongs to."""
    return next(i for i, p in enumerate(plans) if p.start <= step < p.stop)


def step_settings(plans: Sequence[StagePlan], step: int) -> StepSettings:
    """Return the settings of ``step`` (from 0), which updates all that its stage trains."""
    index = stage_index(plans, step)
    placed = plans[index]
    return StepSettings(
        step=step,
        stage=index,
        stage_name=placed.stage.name,
        first=step == placed.start,
        trained=frozenset(placed.stage.train),
        learning_rate=learning_rate(placed.stage, step - placed.start, placed.num_steps),
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


def steps_before_lora(plans: Sequence[StagePlan]) -> int:
    """Return how many of a run's first steps leave its adapter untouched."""
    trained = (p.start for p in plans if p.stop > p.start and "lora" in p.stage.train)
    return next(trained, plans[-1].stop)


def keyed_uniform(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
