"""The curriculum of a run with a bank: which tags and how much of the bank each step has.

A curriculum is any list of stages whose ratios sum to 1; nothing here touches a tensor. The default
of the configuration is the document's three stages. The hand-over anneals the bank's scale, or the
probability that a step uses the bank, and ends in a bare tail. It follows BERT-of-Theseus (arXiv
2002.02925) and VanillaNet (arXiv 2305.12972).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schemabank.config.train import Stage
from schemabank.engine.schedule import StagePlan, StepSettings, keyed_uniform
from schemabank.engine.schedule import step_settings as plain_settings
from schemabank.methods.schemabank.tags import keep_probability

BANK_GROUPS = frozenset({"router", "schemas"})


@dataclass(frozen=True)
class BankStep(StepSettings):
    """The settings of one step of a run with a bank.

    Attributes:
        tag_keep: probability that an example's tags are shown.
        bank_scale: ``β``; 0 if the step runs bare.
    """

    tag_keep: float
    bank_scale: float


def trained_groups(stages: Sequence[Stage]) -> frozenset[str]:
    """Return the groups that some step updates; a stage without its bank trains none of it."""
    found: set[str] = set()
    for stage in stages:
        # Bare from its first step to its last: the bank never has any scale, or is never used.
        bare = (0.0, 0.0) in (stage.bank_scale, stage.bank_probability)
        found |= set(stage.train) - (BANK_GROUPS if bare else frozenset())
    return frozenset(found)


def step_settings(plans: Sequence[StagePlan], step: int, *, seed: int) -> BankStep:
    """Return the settings of ``step`` (from 0).

    Args:
        plans: the run's stages on its steps.
        step: the step that is about to run.
        seed: the run's seed; it decides which steps use the bank where that is left to chance.
    """
    plain = plain_settings(plans, step)
    placed = plans[plain.stage]
    scale = _bank_scale(placed, step, seed=seed)
    if scale == 0:
        plain = replace(plain, trained=plain.trained - BANK_GROUPS)
    tag_keep = keep_probability(placed.stage.tag_keep, (step - placed.start) / placed.num_steps)
    return BankStep(**vars(plain), tag_keep=tag_keep, bank_scale=scale)


def _bank_scale(placed: StagePlan, step: int, *, seed: int) -> float:
    """Return the bank scale of a step: annealed, 0 if chance drops the bank or in the bare tail."""
    stage = placed.stage
    bare_from = placed.stop - round(stage.bare_tail_ratio * placed.num_steps)
    if step >= bare_from:
        return 0.0
    # 1 at the last step before the bare tail, so that both ends of a range are reached.
    progress = (step - placed.start) / max(1, bare_from - placed.start - 1)
    probability = _interpolated(stage.bank_probability, progress)
    if probability < 1 and keyed_uniform(f"bank/{seed}/{step}") >= probability:
        return 0.0
    return _interpolated(stage.bank_scale, progress)


def _interpolated(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress
