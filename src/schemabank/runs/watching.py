"""What a user should hear of a run while it trains: skipped steps, a loss that jumped, idle parts.

Everything is read from what steps report anyway, or copied while the next steps run, so that no
step waits for it. Nothing here changes a run.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.idle import Neglected
from schemabank.engine.slots import Slot

MOST_TOLD = 3  # skipped steps of a run that are told; the log has all
MOST_NAMED = 8
# A jump is one that lasts: the middle of the last losses is far above what was usual before, and
# above all of it but one. So a batch of hard examples is none, and neither are losses with a long
# tail, as those of short answers, nor those of a new stage.
USUAL = 64
LAST = 9
SPREADS = 6.0
LEAST_RISE, LEAST_NATS = 0.5, 0.1  # of what was usual, and beside it: what was learned by heart
OF_NORMAL = 1.4826  # the standard deviation of normal numbers over their median distance


class RunWatch:
    """Follows the steps of a cohort's runs.

    Args:
        cohort: whose runs they are.
        note: told what a user should know.
    """

    def __init__(self, cohort: Cohort, note: Callable[[str], None]) -> None:
        self._cohort, self._note = cohort, note
        self._slots = {slot.run.name: slot for slot in cohort.slots}
        self._skipped = Counter[str]()
        self._losses: dict[str, Losses] = {}
        self._has_told_idle = False

    def see(self, step: RunStep) -> None:
        """Take note of a step."""
        if step.skipped:
            self._tell_skipped(step)
        else:
            self._compare(step)
        if step.is_last:  # a cohort may have hundreds of runs
            self._losses.pop(step.run, None)

    def look(self) -> None:
        """Look for parts that routers leave idle, from time to time; call it after every step.

        Most routers narrow in a long run, so one run is named, and nobody looks any further.
        """
        self._forget_given_up()
        if self._has_told_idle:
            return
        for idle in self._cohort.idle_parts()[:1]:
            self._has_told_idle = True
            others = "; other runs are not named" if len(self._cohort.slots) > 1 else ""
            self._note(said_of_idle(idle) + others)

    def _forget_given_up(self) -> None:
        """Drop the losses of runs that failed or were stopped, and so report no last step.

        Those of the others go with their last step, which is reported when they have ended.
        """
        for name in [*self._losses]:
            slot = self._slots[name]
            if slot.stopped or slot.failure is not None:
                del self._losses[name]

    def _compare(self, step: RunStep) -> None:
        """Tell of a loss that has jumped."""
        losses = self._losses.setdefault(step.run, Losses())
        usual = losses.add(step.stage, step.loss)
        if usual is not None:
            self._note(
                f"{step.run}: the loss has jumped from about {usual:.3g} to {losses.now:.3g}, as "
                f"seen at step {step.step}: if it does not come down again, lower "
                "train.learning_rate or raise train.warmup_ratio"
            )

    def _tell_skipped(self, step: RunStep) -> None:
        self._skipped[step.run] += 1
        number = self._skipped[step.run]
        if number > MOST_TOLD:
            return
        ids = ", ".join(step.examples[:MOST_NAMED])
        more = " and more" if len(step.examples) > MOST_NAMED else ""
        last = "; further ones are only counted" if number == MOST_TOLD else ""
        self._note(
            f"{step.run}: step {step.step} is skipped and changes nothing, since its loss is "
            f"{step.total_loss:g} and its gradient's norm {step.grad_norm:g}; its examples are "
            f"{ids}{more}{last}"
        )


@dataclass
class Losses:
    """The last losses of a run's stage.

    Attributes:
        stage: its name.
        before: losses before the last ones.
        last: the last.
        told: whether a jump was told in this stage.
    """

    stage: str = ""
    before: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL))
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    told: bool = False

    @property
    def now(self) -> float:
        """The middle of the last losses."""
        return median(self.last)

    def add(self, stage: str, loss: float) -> float | None:
        """Take a loss; return what was usual if it has jumped, once a stage."""
        if stage != self.stage:
            self.stage, self.told = stage, False
            self.before.clear()
            self.last.clear()
        if not isfinite(loss):  # of labels that a run does not learn from
            return None
        if len(self.last) == LAST:
            self.before.append(self.last[0])
        self.last.append(loss)
        if self.told or len(self.before) < USUAL or self.now <= sorted(self.before)[-2]:
            return None
        usual = median(self.before)
        spread = OF_NORMAL * median(abs(each - usual) for each in self.before)
        rise = max(SPREADS * spread, LEAST_RISE * usual, LEAST_NATS)
        if self.now <= usual + rise:
            return None
        self.told = True
        return usual


def skips(slot: Slot) -> str:
    """Say how many steps of a run changed nothing."""
    return (
        f"{len(slot.skipped)} of {slot.num_steps} steps skipped, since their loss or gradient was "
        "not finite"
    )


def said_of_idle(idle: Neglected) -> str:
    """Say how many parts of a run its routers leave idle, and what helps."""
    where = [f"{len(parts)} in {layer}" for layer, parts in idle.parts.items()]
    named = ", ".join(where[:MOST_NAMED]) + (" and more" if len(where) > MOST_NAMED else "")
    return (
        f"{idle.run}: for the last {idle.num_steps} steps up to {idle.step}, routers gave hardly "
        f"any weight to {idle.num_parts} of {idle.num_all} {idle.kind} ({named}), which learn "
        f"nothing: {idle.mend}"
    )
