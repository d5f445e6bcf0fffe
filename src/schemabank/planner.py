"""Which runs train together, in how many slots, and in which order.

Runs share a cohort when their steps have equal shapes. Slots are reused as runs end, so the fewest
slots that finish as early as the most allowed ones keep the device busiest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemabank.cohort.batches import last_step
from schemabank.config import RunConfig


@dataclass(frozen=True)
class CohortPlan:
    """Runs that share a cohort, longest first, and what sets them apart from the other cohorts.

    Attributes:
        runs: in the order in which they get slots.
        reason: the settings that these runs and no others have in common; empty for one cohort.
    """

    runs: tuple[RunConfig, ...]
    reason: str = ""


def plan_cohorts(runs: Sequence[RunConfig]) -> list[CohortPlan]:
    """Group runs by what a cohort has in common."""
    groups: dict[tuple[tuple[str, object], ...], list[RunConfig]] = {}
    for run in runs:
        groups.setdefault(tuple(_common(run).items()), []).append(run)
    commons = [dict(key) for key in groups]
    plans = []
    for common, group in zip(commons, groups.values(), strict=True):
        differing = [n for n in common if any(c.get(n) != common[n] for c in commons)]
        reason = ", ".join(f"{name} {common[name]}" for name in differing)
        longest_first = sorted(group, key=lambda r: -_length(r))
        plans.append(CohortPlan(runs=tuple(longest_first), reason=reason))
    return plans


def fewest_slots(lengths: Sequence[int], *, epoch: int, at_most: int) -> int:
    """Return the fewest slots in which runs end as early as in ``at_most``.

    Args:
        lengths: steps of every run, in the order in which they get slots.
        epoch: steps of an epoch, at whose ends runs begin.
        at_most: slots that there is room for.
    """
    at_most = min(at_most, len(lengths))
    best = last_step(lengths, epoch=epoch, slots=at_most)
    return next(
        slots
        for slots in range(1, at_most + 1)
        if last_step(lengths, epoch=epoch, slots=slots) == best
    )


def _common(run: RunConfig) -> Mapping[str, object]:
    """What all runs of a cohort have in common; ``base`` trains nothing and may have shots."""
    evaluation = run.evaluation()
    common: dict[str, object] = {
        "arm base": run.arm == "base",
        "model": (run.model.name, run.model.revision, run.model.dtype),
        "task": run.task,
        "eval": (evaluation.split, evaluation.limit, evaluation.few_shot),
        "eval.max_new_tokens": evaluation.max_new_tokens,
        "eval.batch_size": evaluation.batch_size,
        "eval.routing": run.eval.routing,
    }
    if run.arm != "base":
        common["train.batch_size"] = run.train.batch_size
        common["train.max_buckets"] = run.train.max_buckets
        common["lora.target_modules"] = run.lora.target_modules
        bank, tags = run.bank, run.tags
        shape = (bank.num_schemas, bank.rank, bank.top_k, bank.attribute_dim, bank.residual)
        common["bank"] = (*shape, bank.last_n, bank.layers)
        common["tags.num_tags"] = tags.num_tags
    return common


def _length(run: RunConfig) -> float:
    """Something that grows with the number of steps."""
    return run.train.max_steps or 1e9 * run.train.num_train_epochs
