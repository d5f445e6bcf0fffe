"""Runs that learn from others: their teachers, and what these predict at every label.

The teachers of a run are runs of the same settings with other seeds, in a folder of their own.
Their mean prediction is better than that of any of them, since what differs between them is noise
of training. A run that learns it (arXiv 1503.02531) ends as one adapter, like any other.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters.files import load_adapter, put_on
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.config.train import DistillSettings
from schemabank.engine.batches import Encoded, collate
from schemabank.engine.loss import Head, gather_labelled
from schemabank.engine.run import TrainingData
from schemabank.engine.softtargets import SoftTargets, label_starts
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import nll_batches
from schemabank.runs.folder import ADAPTER
from schemabank.runs.members import Outcome
from schemabank.runs.training import Context

TEACHERS = "teachers"  # folder of their runs, beside those that learn from them
NUM_ASKED = 8  # items a teacher answers; its score decides nothing
SEED_BYTES = 4
ROWS = 512  # distributions that are in memory at once, of all teachers


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

    Args:
        runs: that share the context.
        context: base model and training data.
        folder: of the teachers' runs.
    """
    found: dict[RunConfig, SoftTargets] = {}
    failures: dict[RunConfig, Failure] = {}
    for run in runs:
        if not run.num_teachers:
            continue
        assert context.training is not None
        folders = [folder / run_id(teacher) for teacher in teachers_of(run)]
        try:
            with waiting("asking the teachers", context.reporter.note):
                found[run] = _asked(run, folders, context.base, context.training)
        except (InputError, RuntimeError, OSError, MemoryError) as error:
            failures[run] = _failure_of(error, run)
    return found, failures


def _failure_of(error: Exception, run: RunConfig) -> Failure:
    """Return why the teachers of a run could not be asked, with the mend."""
    failure = failure_of(error)
    if failure.kind == "memory":
        mend = f"all at once do not fit into memory, lower distill.teachers ({run.num_teachers})"
    else:
        mend = "remove the folder of one that is damaged, and it is trained again"
    return Failure(failure.kind, f"its teachers could not be asked: {mend} ({failure.message})")


def _asked(
    run: RunConfig, folders: Sequence[Path], base: BaseModel, data: TrainingData
) -> SoftTargets:
    """What a run's teachers predict."""
    adapters = [load_adapter(folder / ADAPTER) for folder in folders]
    stack = AdapterStack(base.model, lora=[each.config.settings for each in adapters])
    try:
        for slot, adapter in enumerate(adapters):
            put_on(stack, slot, adapter)
        return soft_targets(stack, data.encoded, run.distill)
    finally:
        stack.remove()


def soft_targets(
    stack: AdapterStack, examples: Sequence[Encoded], settings: DistillSettings
) -> SoftTargets:
    """Return the mean prediction of a stack's slots at every label, mixed with the label.

    Args:
        stack: the teachers, one a slot.
        examples: for training.
        settings: how it is mixed, and of how many tokens.
    """
    starts = label_starts([example.num_labels for example in examples])
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    tokens = torch.empty(int(starts[-1]), settings.top_k, dtype=torch.int32)
    shares = torch.empty(int(starts[-1]), settings.top_k)
    with stack.evaluating("off"):
        for chosen in nll_batches([examples[index] for index in order]):
            batch, order = order[: len(chosen)], order[len(chosen) :]
            found = zip(*_of_batch(stack, chosen, settings), strict=True)
            for index, (its_tokens, its_shares) in zip(batch, found, strict=True):
                tokens[starts[index] : starts[index + 1]] = its_tokens
                shares[starts[index] : starts[index + 1]] = its_shares
    return SoftTargets(tokens.numpy(), shares.numpy(), starts)


def _of_batch(
    stack: AdapterStack, chosen: Sequence[Encoded], settings: DistillSettings
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The tokens and shares of each example's labels, on the CPU."""
    batch = collate(
        [chosen] * stack.num_slots,
        width=max(len(e.tokens) for e in chosen),
        num_labels=max(e.num_labels for e in chosen),
    ).to(stack.model.device)
    picked = gather_labelled(stack.hidden(batch.tokens), batch.positions)
    by_label = picked.unflatten(0, (stack.num_slots, -1)).transpose(0, 1)
    (real,) = batch.weights[0].flatten().nonzero(as_tuple=True)
    labels = batch.labels[0].flatten()[real]
    parts = [
        _mixed(by_label[rows], labels[at], stack.head, settings)
        for rows, at in _parts(real, max(1, ROWS // stack.num_slots))
    ]
    sizes = [example.num_labels for example in chosen]
    tokens, shares = (torch.cat(each).cpu().split(sizes) for each in zip(*parts, strict=True))
    return tokens, shares


def _parts(rows: Tensor, most: int) -> Iterator[tuple[Tensor, slice]]:
    for start in range(0, len(rows), most):
        at = slice(start, start + most)
        yield rows[at], at


def _mixed(
    hidden: Tensor, labels: Tensor, head: Head, settings: DistillSettings
) -> tuple[Tensor, Tensor]:
    """Each label and its likeliest rivals, and their shares, ``(row, k)`` each.

    Args:
        hidden: ``(row, slot, hidden)``.
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
