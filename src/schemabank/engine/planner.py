"""Which runs train together, in how many slots, and in which order.

Runs share a cohort when their steps have equal shapes. A run that ends leaves its slot to another.
So fewer slots than runs may well be faster: a step costs what all its slots cost, used or not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemabank.config.base import Settings
from schemabank.config.methods import METHODS
from schemabank.config.naming import dotted
from schemabank.config.settings import RunConfig
from schemabank.engine.schedule import plan, steps_before_lora
from schemabank.engine.seating import CACHED_COST, Journey, count_steps

# Settings in which all runs of a cohort agree, whatever their methods. METHODS names those in which
# runs of a method must agree, too.
SHARED = (
    *("train.batch_size", "train.max_buckets", "train.epoch_orders"),
    *("lora.target_modules", "lora.layers_to_transform"),
)
OVERHEAD_SLOTS = 4  # a step of n slots takes about n + 4: results/benchmarks/nvidia-h200.json


@dataclass(frozen=True)
class CohortPlan:
    """Runs that share a cohort, longest first, and what sets them apart from the other cohorts.

    Attributes:
        runs: the longest first.
        reason: settings, passes over a batch and sizes of targets that these runs share and other
            cohorts do not; empty for one cohort.
    """

    runs: tuple[RunConfig, ...]
    reason: str = ""


def plan_cohorts(runs: Sequence[RunConfig], *, epoch: int = 1) -> list[CohortPlan]:
    """Group runs by what a cohort has in common.

    Args:
        runs: in any order; those of equal length keep it.
        epoch: steps of an epoch.
    """
    groups: dict[tuple[tuple[str, object], ...], list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(tuple(_shared_settings(run).items()), []).append(run)
    commons = [dict(key) for key in groups]
    plans = []
    for common, group in zip(commons, groups.values(), strict=True):
        differing = [n for n in common if any(c.get(n, common[n]) != common[n] for c in commons)]
        reason = ", ".join(f"{name} = {_as_written(common[name])}" for name in differing)
        longest_first = sorted(group, key=lambda r: -num_steps(r, epoch=epoch))
        plans.append(CohortPlan(runs=tuple(longest_first), reason=reason))
    return plans


def num_steps(run: RunConfig, *, epoch: int) -> int:
    """Return how many steps a run has, given those of an epoch."""
    method = METHODS[run.arm]
    own = None if method.settings is None else run.own(method.settings)
    return method.length(own, _steps_of_train(run, epoch))


def journey(run: RunConfig, *, epoch: int) -> Journey:
    """Return how long a run is, given the steps of an epoch."""
    cached = 0
    if run.uses("curriculum"):  # whose stages share the steps that train gives
        cached = steps_before_lora(plan(run.stages(), _steps_of_train(run, epoch)))
    return Journey(num_cached=cached, num_steps=num_steps(run, epoch=epoch))


def best_slots(runs: Sequence[Journey], *, cycle: int, at_most: int) -> int:
    """Return the number of slots with which a GPU should finish runs first; of equals the fewest.

    Args:
        runs: how long each is.
        cycle: steps after which the shapes of steps repeat.
        at_most: slots that there is room for.
    """

    def cost(slots: int) -> float:
        return expected_cost(*count_steps(runs, num_slots=slots, cycle=cycle), slots=slots)

    return min(range(1, min(at_most, len(runs)) + 1), key=cost)


def expected_cost(cached: int, others: int, *, slots: int) -> float:
    """Return what steps cost on a GPU, in no unit: it is for comparing plans.

    Args:
        cached: number of steps whose trunk is the base model's.
        others: number of all other steps.
        slots: slots of the cohort.
    """
    return (others + CACHED_COST * cached) * (slots + OVERHEAD_SLOTS)


def times_products(slots: int) -> float:
    """Return how many times as long as its matrix products a step on a GPU takes.

    Args:
        slots: of the step. The fewer, the smaller its operations, and the longer the GPU waits.
    """
    return (slots + OVERHEAD_SLOTS) / slots


def _shared_settings(run: RunConfig) -> Mapping[str, object]:
    """Return the settings that all runs of a run's cohort share, by dotted name.

    Runs of all arms may train together. Runs that do not train evaluate the untouched model and may
    differ in the examples in their prompts, so they stay apart.
    """
    parts: dict[str, Settings] = {"model": run.model, "task": run.task, "eval": run.evaluation()}
    common: dict[str, object] = {
        "arm": "any that trains" if run.trains else run.arm,
        **dotted({name: part.model_dump() for name, part in parts.items()}),
        "eval.routing": run.eval.routing,
    }
    if run.trains:
        settings = dotted(run.model_dump())
        shared = dict.fromkeys([*SHARED, *(n for m in METHODS.values() for n in m.shared)])
        common |= {name: settings[name] for name in shared}
        # Steps of two passes are a program of their own, which computes all slots of the cohort:
        # beside runs of one pass it would be a third pass for everybody.
        common["passes over a batch"] = run.passes
        # For the same reason: the loss of soft targets is another program than that of labels.
        common["tokens in a label's target"] = run.distill.top_k if run.num_teachers else 1
    return common


def _steps_of_train(run: RunConfig, epoch: int) -> int:
    """Return the steps that ``train`` gives a run, before its method adds any."""
    return run.train.max_steps or run.train.num_train_epochs * epoch


def _as_written(value: object) -> str:
    """Return a setting as a user writes it, in one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text
