"""Runs that learn from others: their teachers, and what these predict at every label.

The teachers of a run are runs of the same settings with other seeds, in a folder of their own.
Their mean prediction is better than that of any of them, since what differs between them is noise
of training. A run that learns it (arXiv 1503.02531) ends as one adapter, like any other.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters.files import Adapter, load_adapter, put_on
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.config.train import DistillSettings
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.loralayers import LORA
from schemabank.engine.loss import Head, gather_labelled
from schemabank.engine.softtargets import SoftTargets, label_starts
from schemabank.engine.stack import AdapterStack
from schemabank.runs.folder import ADAPTER
from schemabank.runs.members import Outcome
from schemabank.runs.training import Context

TEACHERS = "teachers"  # folder of their runs, beside those that learn from them
NUM_ASKED = 8  # items a teacher answers; its score decides nothing
SEED_BYTES = 4
ASKED_TOKENS = 16384  # of a batch that a teacher reads, at most, unless one example has more
ROWS = 512  # distributions that are in memory at once, of all teachers
DAMAGED = "remove the folder of one that is damaged, and it is trained again"
TOO_LARGE = "a batch of examples does not fit into memory, use a larger device"


def teachers_of(run: RunConfig) -> list[RunConfig]:
    """Return the runs from which a run learns."""
    return [
        run.model_copy(
            update={
                "seed": _teacher_seed(run.seed, number),
                "distill": DistillSettings(),
                "eval": run.eval.model_copy(update={"limit": NUM_ASKED}),
            }
        )
        for number in range(run.num_teachers)
    ]


def all_teachers(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the teachers of several runs, each once."""
    return list(dict.fromkeys(teacher for run in runs for teacher in teachers_of(run)))


def untaught(
    runs: Sequence[RunConfig], teachers: Mapping[RunConfig, Outcome], out: Path
) -> dict[RunConfig, Outcome]:
    """Return what becomes of the runs that have a teacher which failed."""
    found: dict[RunConfig, Outcome] = {}
    for run in runs:
        for teacher in teachers_of(run):
            ended = teachers[teacher]
            if ended.failure is not None:
                message = f"its teacher {run_id(teacher)} failed: {ended.failure.message}"
                reason = Failure(ended.failure.kind, message)
                found[run] = Outcome(out / run_id(run), None, failure=reason, inputs=ended.inputs)
    return found


def learned_from_teachers(
    runs: Sequence[RunConfig], context: Context, folder: Path
) -> tuple[dict[RunConfig, SoftTargets], dict[RunConfig, Failure]]:
    """Return what each run with teachers learns, and why a run cannot.

    Each teacher is asked once, whichever of the runs learn from it, and alone: what it predicts
    does not depend on who else is asked.

    Args:
        runs: that share the context.
        context: base model and training data.
        folder: of the teachers' runs.
    """
    found: dict[RunConfig, SoftTargets] = {}
    failures: dict[RunConfig, Failure] = {}
    groups: dict[LoraSettings, dict[RunConfig, list[Adapter]]] = {}
    teachers: dict[RunConfig, Adapter] = {}
    for run in (each for each in runs if each.num_teachers):
        try:
            for teacher in set(teachers_of(run)) - teachers.keys():
                teachers[teacher] = load_adapter(folder / run_id(teacher) / ADAPTER)
        except (InputError, RuntimeError, OSError) as error:
            failures[run] = _failure_of(error)
            continue
        own = [teachers[teacher] for teacher in teachers_of(run)]
        groups.setdefault(own[0].config.settings, {})[run] = own
    for group in groups.values():
        try:
            with waiting("asking the teachers", context.reporter.note):
                found |= _asked(group, context)
        except (InputError, RuntimeError, OSError, MemoryError) as error:
            failures |= dict.fromkeys(group, _failure_of(error))
    return found, failures


def _failure_of(error: Exception) -> Failure:
    """Return why the teachers of a run could not be asked, with the mend."""
    failure = failure_of(error)
    mend = TOO_LARGE if failure.kind == "memory" else DAMAGED
    return Failure(failure.kind, f"its teachers could not be asked: {mend} ({failure.message})")


def _asked(
    group: Mapping[RunConfig, Sequence[Adapter]], context: Context
) -> dict[RunConfig, SoftTargets]:
    """What each run learns from its teachers, whose LoRA settings are the same."""
    assert context.training is not None
    teachers = list({id(each): each for own in group.values() for each in own}.values())
    places = {id(teacher): place for place, teacher in enumerate(teachers)}
    asking = [
        Asking(tuple(places[id(each)] for each in own), run.distill) for run, own in group.items()
    ]
    stack = AdapterStack(context.base.model, lora=[teachers[0].config.settings])
    try:
        rows = [_row(stack, teacher) for teacher in teachers]
        return dict(
            zip(group, soft_targets(stack, rows, context.training.encoded, asking), strict=True)
        )
    finally:
        stack.remove()


def _row(stack: AdapterStack, adapter: Adapter) -> Tensor:
    """An adapter's weights as a stack's only slot holds them, ``(size,)``, on the CPU."""
    put_on(stack, 0, adapter)
    return stack.lora.groups[LORA].weights[0].to("cpu", copy=True)


@dataclass(frozen=True)
class Asking:
    """Whom a run learns from, and how.

    Attributes:
        teachers: their places among all that are asked.
        settings: how their mean prediction is mixed, and of how many tokens.
    """

    teachers: tuple[int, ...]
    settings: DistillSettings


def soft_targets(
    stack: AdapterStack,
    teachers: Sequence[Tensor],
    examples: Sequence[Encoded],
    asking: Sequence[Asking],
) -> list[SoftTargets]:
    """Return what each that asks learns: a mean prediction at every label, mixed with the label.

    Args:
        stack: of one slot, in which the teachers take turns.
        teachers: LoRA weights of each, ``(size,)``, on any device.
        examples: for training.
        asking: who learns from whom.
    """
    starts = label_starts([example.num_labels for example in examples])
    found = [_empty(int(starts[-1]), each.settings.top_k) for each in asking]
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    with stack.evaluating("off"):
        for batch in _batches(order, examples):
            chosen = [examples[index] for index in batch]
            learned = _of_batch(stack, teachers, chosen, asking)
            for whole, parts in zip(found, learned, strict=True):
                for index, *rows in zip(batch, *parts, strict=True):
                    for each, own in zip(whole, rows, strict=True):
                        each[starts[index] : starts[index + 1]] = own
    return [SoftTargets(tokens.numpy(), shares.numpy(), starts) for tokens, shares in found]


def _empty(num_labels: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.empty(num_labels, k, dtype=torch.int32), torch.empty(num_labels, k)


def _batches(order: Sequence[int], examples: Sequence[Encoded]) -> Iterator[Sequence[int]]:
    """Examples, longest first, in batches of at most ``ASKED_TOKENS`` tokens or of one example."""
    start = 0
    while start < len(order):
        size = max(1, ASKED_TOKENS // len(examples[order[start]].tokens))
        yield order[start : start + size]
        start += size


def _of_batch(
    stack: AdapterStack,
    teachers: Sequence[Tensor],
    chosen: Sequence[Encoded],
    asking: Sequence[Asking],
) -> list[tuple[tuple[Tensor, ...], ...]]:
    """For each that asks, the tokens and the shares of each example's labels, on the CPU."""
    batch = collate(
        [chosen],
        width=max(len(e.tokens) for e in chosen),
        num_labels=max(e.num_labels for e in chosen),
    ).to(stack.model.device)
    (real,) = batch.weights.flatten().nonzero(as_tuple=True)
    labels = batch.labels.flatten()[real]
    group, by_teacher = stack.lora.groups[LORA], []
    for weights in teachers:
        group.weights[0].copy_(weights)
        group.publish()
        picked = gather_labelled(stack.hidden(batch.tokens), batch.positions)
        by_teacher.append(picked[real])
    sizes = [example.num_labels for example in chosen]
    return [
        tuple(part.split(sizes) for part in _learned(by_teacher, labels, stack.head, each))
        for each in asking
    ]


def _learned(
    hidden: Sequence[Tensor], labels: Tensor, head: Head, asking: Asking
) -> Iterator[Tensor]:
    """Tokens and shares of a batch's labels, ``(row, k)`` each, on the CPU."""
    size = max(1, ROWS // len(asking.teachers))
    parts = []
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        own = torch.stack([hidden[place][rows] for place in asking.teachers], dim=1)
        parts.append(_mixed(own, labels[rows], head, asking.settings))
    return (torch.cat(each).cpu() for each in zip(*parts, strict=True))


def _mixed(
    hidden: Tensor, labels: Tensor, head: Head, settings: DistillSettings
) -> tuple[Tensor, Tensor]:
    """Each label and its likeliest rivals, and their shares, ``(row, k)`` each.

    Args:
        hidden: ``(row, teacher, hidden)``.
        labels: ``(row,)``.
        head: the output layer.
        settings: how they are mixed, and how many there are.
    """
    logits = head(hidden.flatten(0, 1)).float() / settings.temperature
    chances = logits.softmax(-1).unflatten(0, hidden.shape[:2]).mean(1)
    first = chances.scatter(1, labels[:, None], 2.0)  # more than any chance
    tokens = first.topk(settings.top_k).indices
    shares = chances.gather(1, tokens)
    shares = settings.weight * shares / shares.sum(1, keepdim=True)
    shares[:, 0] += 1 - settings.weight
    return tokens.int(), shares


def _teacher_seed(seed: int, number: int) -> int:
    """A seed that no user is likely to have chosen for a run."""
    digest = hashlib.sha256(f"teacher {number} of {seed}".encode()).digest()
    return int.from_bytes(digest[:SEED_BYTES], "big")
