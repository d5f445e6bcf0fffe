"""Runs that learn from others, and their teachers.

The teachers of a run are runs of the same settings with other seeds, in a folder of their own.
Their mean prediction is better than that of any of them, since what differs between them is noise
of training. A run that learns it (arXiv 1503.02531) ends as one adapter, like any other.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters.files import Adapter, load_adapter, put_on
from schemabank.common.durations import duration
from schemabank.common.errors import InputError
from schemabank.common.failure import FAILING, Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.config.train import DistillSettings
from schemabank.engine.batches import Encoded
from schemabank.engine.loralayers import LORA
from schemabank.engine.softtargets import SoftTargets
from schemabank.engine.stack import AdapterStack
from schemabank.models.architecture import hidden_size
from schemabank.runs.folder import ADAPTER, RESULT
from schemabank.runs.inputs import ADAPTER_DIGEST, adapter_digests
from schemabank.runs.members import Outcome
from schemabank.runs.predicting import ROWS, Asking, mixed, soft_targets
from schemabank.runs.preflight import expected_s, usual_s
from schemabank.runs.progress import Reporter
from schemabank.runs.training import Context, names_of

TEACHERS = "teachers"  # folder of their runs, beside those that learn from them
NUM_ASKED = 8  # items a teacher answers; its score decides nothing
SEED_BYTES = 4
PROBE_ROWS = {"cuda": ROWS, "cpu": 64}  # of which the time is measured
DAMAGED = "remove the folder of one that is damaged, and it is trained again"
UNFIT = "remove its folder, and it is trained again"
TOO_MANY_WEIGHTS = "its adapter does not fit into memory beside the model, use a larger device"
TEACHER_KEPT = "the training of its teacher, with which the same command goes on"
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


def digests_of_teachers(run: RunConfig, folder: Path) -> dict[str, str]:
    """Return the digests of the adapters from which a run learns, by the teachers' ids.

    Args:
        run: the run.
        folder: of the teachers' runs.

    Returns:
        None where one cannot be read: a run that is to learn from it says so when it asks it.
    """
    found: dict[str, str] = {}
    for name in map(run_id, teachers_of(run)):
        if not (folder / name / RESULT).is_file():
            return {}
        try:
            found[name] = adapter_digests(folder / name / ADAPTER)[ADAPTER_DIGEST]
        except (InputError, OSError):
            return {}
    return found


def untaught(
    runs: Sequence[RunConfig],
    teachers: Mapping[RunConfig, Outcome],
    out: Path,
    reporter: Reporter,
) -> dict[RunConfig, Outcome]:
    """Return what becomes of the runs that have a teacher which failed, and say so."""
    found: dict[RunConfig, Outcome] = {}
    for run in runs:
        for teacher in teachers_of(run):
            ended = teachers[teacher]
            if ended.failure is not None:
                message = f"its teacher {run_id(teacher)} failed: {ended.failure.message}"
                reason = Failure(ended.failure.kind, message)
                found[run] = Outcome(
                    out / run_id(run),
                    None,
                    failure=reason,
                    inputs=ended.inputs,
                    kept=TEACHER_KEPT if ended.kept else "",
                )
    for run, outcome in found.items():
        reporter.run_state(run_id(run), "failed", str(outcome.failure and outcome.failure.message))
    return found


def learned_from_teachers(
    runs: Sequence[RunConfig], context: Context, folder: Path
) -> tuple[dict[RunConfig, SoftTargets], dict[RunConfig, Failure]]:
    """Return what each run with teachers learns, and why a run cannot.

    Each teacher is asked once, whichever of the runs learn from it, and alone: what it predicts
    does not depend on who else is asked. A teacher that is damaged, or does not fit the model,
    fails the runs that learn from it. What goes wrong while all are asked, such as a batch that
    does not fit into memory, fails all that ask.

    Args:
        runs: that share the context.
        context: base model and training data.
        folder: of the teachers' runs.
    """
    asking = {run: teachers_of(run) for run in runs if run.num_teachers}
    found: dict[RunConfig, SoftTargets] = {}
    unfit: dict[RunConfig, Failure] = {}  # by teacher
    adapters: dict[RunConfig, Adapter] = {}
    for teacher in dict.fromkeys(chain(*asking.values())):
        try:
            adapters[teacher] = load_adapter(folder / run_id(teacher) / ADAPTER)
        except FAILING as error:
            unfit[teacher] = _failure_of(error, teacher)
    failures = _taught_by(unfit, asking)
    groups: dict[LoraSettings, dict[RunConfig, list[RunConfig]]] = {}
    for run, own in asking.items():
        if run not in failures:
            groups.setdefault(adapters[own[0]].config.settings, {})[run] = own
    for settings, group in groups.items():
        try:
            learned, unfit = _asked(group, adapters, settings, context)
            found |= learned
            failures |= _taught_by(unfit, group)
        except FAILING as error:
            failures |= dict.fromkeys(group, _failure_of(error))
    return found, failures


def asking_time_s(
    stack: AdapterStack, examples: Sequence[Encoded], at_once: Sequence[Sequence[RunConfig]]
) -> float:
    """Estimate how long it takes to ask the teachers of runs, from sizes and a short measurement.

    Args:
        stack: on the base model.
        examples: for training.
        at_once: the runs, as far as their teachers are asked together.
    """
    asking = Counter((r.num_teachers, r.distill) for part in at_once for r in part)
    reading = sum(len(all_teachers(part)) for part in at_once)
    size = sum(p.numel() for block in stack.blocks for p in block.parameters())
    num_tokens = sum(len(example.tokens) for example in examples)
    num_labels = sum(example.num_labels for example in examples)
    labels_s = (n * _label_s(stack, *how) for how, n in asking.items() if how[0])
    return expected_s(2 * reading * num_tokens * size, stack.model) + num_labels * sum(labels_s)


def _label_s(stack: AdapterStack, num_teachers: int, settings: DistillSettings) -> float:
    """Measure how long it takes to mix what teachers predict at a label."""
    device = stack.model.device
    rows = max(1, PROBE_ROWS[device.type] // num_teachers)
    shape = (rows, num_teachers, hidden_size(stack.model))
    dtype = stack.model.get_output_embeddings().weight.dtype
    # Values that differ: the largest of equal ones are found sooner.
    hidden = torch.arange(math.prod(shape), device=device).sin().view(shape).to(dtype)
    labels = torch.zeros(rows, dtype=torch.long, device=device)
    with torch.no_grad():
        return usual_s(lambda: mixed(hidden, labels, stack.head, settings)[1]) / rows


def _taught_by(
    unfit: Mapping[RunConfig, Failure], asking: Mapping[RunConfig, Sequence[RunConfig]]
) -> dict[RunConfig, Failure]:
    """Return the runs that learn from an unfit teacher, with the failure of the first."""
    found = {run: [unfit[each] for each in own if each in unfit] for run, own in asking.items()}
    return {run: failures[0] for run, failures in found.items() if failures}


def _failure_of(error: Exception, teacher: RunConfig | None = None) -> Failure:
    """Return why one teacher of a run, or all, could not be asked, with the mend."""
    failure = failure_of(error)
    who, too_large, damaged = "its teachers", TOO_LARGE, DAMAGED
    if teacher is not None:
        who, too_large, damaged = f"its teacher {run_id(teacher)}", TOO_MANY_WEIGHTS, UNFIT
    mend = too_large if failure.kind == "memory" else damaged
    return Failure(failure.kind, f"{who} could not be asked: {mend} ({failure.message})")


def _asked(
    group: Mapping[RunConfig, Sequence[RunConfig]],
    adapters: Mapping[RunConfig, Adapter],
    settings: LoraSettings,
    context: Context,
) -> tuple[dict[RunConfig, SoftTargets], dict[RunConfig, Failure]]:
    """What runs learn from their teachers, and why some of these cannot be asked.

    Args:
        group: the teachers of each run.
        adapters: of the teachers.
        settings: of the adapters.
        context: base model and training data.
    """
    assert context.training is not None
    examples, reporter = context.training.encoded, context.reporter
    stack = AdapterStack(context.base.model, lora=[settings])
    try:
        rows, unfit = _rows(stack, {each: adapters[each] for own in group.values() for each in own})
        able = {run: own for run, own in group.items() if unfit.keys().isdisjoint(own)}
        if not able:
            return {}, unfit
        read = list(dict.fromkeys(chain(*able.values())))
        asking = [Asking(tuple(map(read.index, own)), run.distill) for run, own in able.items()]
        about_s = asking_time_s(stack, examples, [list(able)])
        counted = "1 teacher" if len(read) == 1 else f"{len(read)} teachers"
        reporter.note(f"asking {counted} of {names_of(list(able))}: about {duration(about_s)}")
        reporter.start(f"ask {counted}", len(examples) * (len(read) + len(asking)))
        with waiting("asking the teachers", reporter.note) as wait:

            def advance(done: int) -> None:
                wait.goes_on()
                reporter.advance(done, "")

            weights = [rows[teacher] for teacher in read]
            learned = soft_targets(stack, weights, examples, asking, advance=advance)
        reporter.finish()
        return dict(zip(able, learned, strict=True)), unfit
    finally:
        stack.remove()


def _rows(
    stack: AdapterStack, adapters: Mapping[RunConfig, Adapter]
) -> tuple[dict[RunConfig, Tensor], dict[RunConfig, Failure]]:
    """Adapters as a stack's only slot holds them, ``(size,)`` on the CPU; why some cannot be."""
    rows: dict[RunConfig, Tensor] = {}
    unfit: dict[RunConfig, Failure] = {}
    for teacher, adapter in adapters.items():
        try:
            _check_settings(adapter, stack)
            put_on(stack, 0, adapter)
            row = stack.lora.groups[LORA].weights[0]
            rows[teacher] = row.to("cpu", copy=True)
        except FAILING as error:
            unfit[teacher] = _failure_of(error, teacher)
    return rows, unfit


def _check_settings(adapter: Adapter, stack: AdapterStack) -> None:
    """Refuse an adapter of another scale, which would fit into the slot and predict otherwise.

    Raises:
        InputError: its settings are not those of the slot.
    """
    own, others = adapter.config.settings, stack.lora.settings[0]
    if own != others:
        raise InputError(f"its LoRA settings are {own}, allowed are those of the others: {others}")


def _teacher_seed(seed: int, number: int) -> int:
    """A seed that no user is likely to have chosen for a run."""
    digest = hashlib.sha256(f"teacher {number} of {seed}".encode()).digest()
    return int.from_bytes(digest[:SEED_BYTES], "big")
