"""The scale of an adapter, chosen on the validation split after training.

LoRA's update is multiplied by ``LoraSettings.scaling``, which is fixed before training. Another one
may suit new text better than that at which the weights were trained. Multiplying B by a factor is
the same as multiplying ``lora_alpha``, and needs no training: so each factor is tried, and the one
with the lowest loss is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import fsum, isfinite
from typing import Final

from schemabank.common.errors import InputError
from schemabank.common.failure import FAILING, Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.engine.batches import Encoded
from schemabank.engine.cohort import Cohort
from schemabank.engine.decoding.decode import Advance
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import gold_losses, mean_losses
from schemabank.runs.members import Rescaled, Trainee
from schemabank.runs.modelfit import check_items
from schemabank.runs.prepare import evaluation_items
from schemabank.runs.progress import Reporter
from schemabank.tasks import Item, TaskData

SPLIT: Final = "validation"
NO_LOSS = f"no finite loss on {SPLIT} at any of rescale.factors: train at a lower learning rate"


@dataclass(frozen=True)
class Held:
    """On what losses are measured.

    Attributes:
        size: items or examples.
        losses: returns the loss of every slot, and tells how many of these it has measured.
    """

    size: int
    losses: Callable[[AdapterStack, Advance], Sequence[float]]


def rescale(
    members: Sequence[Trainee],
    cohort: Cohort,
    held: Held,
    reporter: Reporter,
    *,
    slots_setting: str,
) -> None:
    """Choose the scales of those seated runs that ask for it, and seat them with these.

    A run that failed keeps its weights. What goes wrong fails the runs that ask, and no others.

    Args:
        members: the runs in the first slots.
        cohort: that trained them.
        held: on what losses are measured.
        reporter: where progress goes.
        slots_setting: what sets the number of slots, for messages.
    """
    asking = [m for m in members if m.run.rescale.factors and m.failure is None]
    if not asking:
        return
    names = [member.name for member in members]
    factors = [m.run.rescale.factors if m in asking else () for m in members]
    try:
        found = _losses_with_progress(cohort, names, factors, held, reporter)
    except FAILING as error:
        for member in asking:
            member.fail(_failure_of(error, cohort.stack.num_slots, slots_setting))
    else:
        for member, losses in zip(members, found, strict=True):
            if losses:
                _keep_best(member, losses, cohort, reporter)
    cohort.seat(names)


def of_items(items: Sequence[Item]) -> Held:
    """Measure losses on items of a validation split.

    It is what ``result.json`` calls ``gold_nll_with_end``: the loss of a gold target with its end
    token, as a mean over its tokens and then over items. A suite's search takes the same mean over
    items where the loss chooses a learning rate. It leaves out the end token where completions are
    scored; here the token counts, since the scale also changes how readily a completion ends.
    """

    def losses(stack: AdapterStack, advance: Advance) -> Sequence[float]:
        found = gold_losses(stack, items, advance=advance)
        return [fsum(with_end for _, with_end in own) / len(items) for own in found]

    return Held(len(items), losses)


def of_examples(examples: Sequence[Encoded]) -> Held:
    """Measure losses on a program's validation examples, as a mean over all of their tokens."""
    return Held(len(examples), lambda stack, advance: mean_losses(stack, examples, advance=advance))


def validation_items(data: TaskData, run: RunConfig, base: BaseModel) -> list[Item]:
    """Return the items by which a run's scale is chosen: all of the validation split.

    ``eval.limit`` does not count, so that a suite's tuning runs and its final runs choose alike.

    Raises:
        InputError: there are none, or the model cannot read them.
    """
    task = run.task
    if not data.split(SPLIT):
        raise InputError(
            f"rescale.factors is {list(run.rescale.factors)}, but the split {SPLIT!r} of "
            f"{task.name}, on which one of them is chosen, holds 0 items: allowed is at least 1, "
            f"enlarge it by the settings of task.{task.name} or leave rescale out"
        )
    items = evaluation_items(data, task, EvalSettings(split=SPLIT), base.tokenizer)
    check_items(items, run.eval, base)
    return sorted(items, key=lambda item: -len(item.prompt_tokens))  # as an evaluation takes them


def losses_at(
    cohort: Cohort,
    names: Sequence[str],
    factors: Sequence[Sequence[float]],
    held: Held,
    *,
    advance: Advance = lambda _: None,
) -> list[dict[float, float]]:
    """Return the loss of finished runs at each of their factors, in nats per token.

    The adapter alone is measured, as it is exported, whatever ``eval.routing`` says.

    Args:
        cohort: that trained the runs; its first slots hold others of their weights afterwards.
        names: of the runs, as many as there are slots at most.
        factors: of each run.
        held: on what they are measured.
        advance: called with the number of items that were measured since the last call.
    """
    found: list[dict[float, float]] = [{} for _ in names]
    for at_once in zip_longest(*factors):
        cohort.seat(names, factors=[factor or 1.0 for factor in at_once])
        with cohort.stack.evaluating("off"):
            losses = held.losses(cohort.stack, advance)
        for own, factor, loss in zip(found, at_once, losses, strict=False):
            if factor is not None:
                own[factor] = loss
    return found


def chosen(losses: Mapping[float, float]) -> Rescaled | None:
    """Choose the factor with the lowest loss; of equals the one closest to 1.

    Returns:
        ``None`` if no loss is finite.
    """
    usable = [factor for factor, loss in losses.items() if isfinite(loss)]
    if not usable:
        return None
    return Rescaled(min(usable, key=lambda f: (losses[f], abs(f - 1), f)), losses)


def _losses_with_progress(
    cohort: Cohort,
    names: Sequence[str],
    factors: Sequence[Sequence[float]],
    held: Held,
    reporter: Reporter,
) -> list[dict[float, float]]:
    """Return what :func:`losses_at` does, and report progress."""
    rounds = max(map(len, factors))
    reporter.start(f"choose the scale of adapters at {rounds} factors", rounds * held.size)
    with waiting("measuring adapters at another scale", reporter.note) as wait:

        def advance(done: int) -> None:
            wait.goes_on()
            reporter.advance(done, "")

        found = losses_at(cohort, names, factors, held, advance=advance)
    reporter.finish()
    return found


def _keep_best(
    member: Trainee, losses: Mapping[float, float], cohort: Cohort, reporter: Reporter
) -> None:
    """Multiply a finished run's B by the best factor, and say so."""
    run, name = member.run, member.name
    member.rescaled = chosen(losses)
    if member.rescaled is None:
        member.fail(Failure("diverged", NO_LOSS))
        return
    factor = member.rescaled.factor
    cohort.finished.change(name, partial(cohort.stack.lora.rescaled, factor=factor))
    reporter.note(f"{run.arm} seed {run.seed}: {member.rescaled}")


def _failure_of(error: Exception, num_slots: int, slots_setting: str) -> Failure:
    """Return why the runs of so many slots failed, with what to lower where memory ran out."""
    failure = failure_of(error)
    if failure.kind != "memory":
        return failure
    if num_slots == 1:
        return Failure(
            "memory",
            "the losses of a single run, by which rescale.factors is chosen, do not fit into the "
            f"device's memory: leave out the longest {SPLIT} examples, or rescale ({error})",
        )
    return Failure(
        "memory",
        f"{slots_setting} is {num_slots}, but the losses of so many runs at once, by which "
        f"rescale.factors is chosen, do not fit into the device's memory: lower it ({error})",
    )
