"""One cohort from its runs' settings to their folders: train, evaluate, write, check."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from schemabank.adapters.export import Probe, check_with_peft, probe
from schemabank.adapters.peftcheck import FIELD as PEFT_CHECK
from schemabank.adapters.peftcheck import PeftCheck
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.common.waiting import waiting
from schemabank.common.writing import write_json, write_lines
from schemabank.config.file import config_hash, run_id, to_yaml
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.bank import Routing
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import Procedure
from schemabank.runs.folder import ADAPTER, CONFIG, COST, PREDICTIONS, RESULT, claimed
from schemabank.runs.forms import Answers, evaluate_forms
from schemabank.runs.itemscores import save_item_scores
from schemabank.runs.members import Member, Outcome, stage_keeper, write_weights
from schemabank.runs.training import Context, build_stack, failure_of, names_of, train_runs
from schemabank.tasks.catalog import metric_of
from schemabank.tasks.scoring.scores import METRICS, ItemRecord, score_names, summaries

RECORDED_VERSIONS = (
    "schemabank",
    "torch",
    "transformers",
    "peft",
    "reasoning-gym",
    "rouge-score",
    "sacrebleu",
    "nltk",
)


def run_cohort(
    runs: Sequence[RunConfig],
    context: Context,
    out: Path,
    *,
    slots: int,
    planned: Sequence[RunConfig],
) -> list[Outcome]:
    """Train and evaluate runs that share a cohort, and write each one's folder.

    Args:
        runs: in the order in which they are evaluated.
        context: what all runs share.
        out: folder of the runs.
        slots: how many train at once.
        planned: these runs and those of their cohort that are finished already.

    Raises:
        InputError: something in the configuration does not fit model or data.
    """
    with ExitStack() as exits:
        members = [Member(run, exits.enter_context(claimed(out / run_id(run)))) for run in runs]
        for member in members:
            _write_config(member)
        began = time.monotonic()
        cohort, stack = _trained(members, context, slots=slots, planned=planned)
        exits.callback(stack.remove)
        trained_s = time.monotonic() - began
        evaluated: list[_Evaluated | None] = []
        for part in _parts(runs, stack, cohort):
            evaluated += _evaluated(members[part], stack, context)
        evaluated_s = time.monotonic() - began - trained_s
        cost = _cost(trained_s, evaluated_s, num_runs=len(runs), slots=stack.num_slots)
        stack.remove()
        outcomes = []
        for index, (member, done) in enumerate(zip(members, evaluated, strict=True)):
            training = None if cohort is None else _training_summary(cohort, index)
            with waiting("checking the adapter with stock PEFT", context.reporter.note):
                outcomes.append(_close(member, done, training, cost, context))
        return outcomes


def result_of(
    run: RunConfig,
    evaluation: EvalSettings,
    answers: Answers,
    *,
    training: Mapping[str, object] | None,
    inputs: Mapping[str, str],
) -> dict[str, object]:
    """Return the contents of ``result.json``: the same bytes for the same computation."""
    metric, records = METRICS[metric_of(run.task)], answers.records
    return {
        "arm": run.arm,
        "seed": run.seed,
        "config_hash": config_hash(run),
        "model": run.model.name,
        "dtype": run.model.dtype,
        "task": run.task.name,
        "split": evaluation.split,
        "few_shot": evaluation.few_shot,
        "prompt_form": answers.form,
        "prompt_forms": dict(answers.forms),
        "routing": evaluation.routing,
        "max_new_tokens": evaluation.max_new_tokens,
        "num_samples": evaluation.num_samples,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "sampling_seed": evaluation.sampling_seed,
        "batch_size": evaluation.batch_size,
        "padding_side": "right",
        "inputs": dict(inputs),
        "versions": {name: _version(name) for name in RECORDED_VERSIONS},
        "training": training,
        "metric": metric_of(run.task),
        "scores": [*score_names(records, metric), *(f"pass@{k}" for k in evaluation.pass_at)],
        "groups": summaries(records, metric, pass_at=evaluation.pass_at),
    }


def _training_summary(cohort: Cohort, index: int) -> dict[str, object]:
    slot = cohort.slots[index]
    groups = slot.course.trained_groups
    return {
        "num_steps": slot.num_steps,
        "num_examples": len(cohort.data.examples),
        "num_skipped_steps": len(slot.skipped),
        "num_lora_updates": slot.num_updates["lora"],
        "num_updates": {name: slot.num_updates[name] for name in sorted(groups)},
        "num_trained_parameters": sum(
            cohort.stack.num_weights(name, slot.run.lora, slot.run.method.settings)
            for name in cohort.stack.groups
            if name in groups
        ),
        "failure": None if slot.failure is None else slot.failure.row(),
    }


def _parts(
    runs: Sequence[RunConfig], stack: AdapterStack, cohort: Cohort | None
) -> Iterator[slice]:
    """Put the trained runs into the slots, as many at a time as there are."""
    for first in range(0, len(runs), stack.num_slots):
        part = slice(first, first + stack.num_slots)
        if cohort is not None:
            cohort.seat([run_id(run) for run in runs[part]])
        yield part


def _write_config(member: Member) -> None:
    def write(folder: Path) -> None:
        (folder / CONFIG).write_text(to_yaml(member.run), encoding="utf-8")

    member.write(write)


def _trained(
    members: Sequence[Member], context: Context, *, slots: int, planned: Sequence[RunConfig]
) -> tuple[Cohort | None, AdapterStack]:
    """Train the runs and write their weights; all are on disk before anything can go wrong."""
    runs = [member.run for member in members]
    if not runs[0].trains:
        return None, build_stack(planned, context.base, slots=slots)
    folders = [member.claim.path for member in members]
    keep = stage_keeper(members, context.base)
    cohort = train_runs(runs, slots, context, folders, planned=planned, keep_stage=keep)
    stack = cohort.stack
    with ExitStack() as on_failure:
        on_failure.callback(stack.remove)
        cohort.free()
        for part in _parts(runs, stack, cohort):
            for index, member in enumerate(members[part]):
                member.write(partial(_write_end, stack, index, member.run, context.base))
        on_failure.pop_all()
    for index, member in enumerate(members):
        member.fail(_end_of(cohort, index))
    return cohort, stack


def _write_end(
    stack: AdapterStack, slot: int, run: RunConfig, base: BaseModel, folder: Path
) -> None:
    write_weights(stack, slot, run, folder, base)


def _end_of(cohort: Cohort, index: int) -> Failure | None:
    """Return why a run failed in training, if it did."""
    slot = cohort.slots[index]
    weights = cohort.finished[slot.run.name].values()
    if slot.failure is None and not all(bool(row.isfinite().all()) for row in weights):
        return Failure("diverged", f"weights that are not finite after {slot.num_steps} steps")
    return slot.failure


@dataclass(frozen=True)
class _Evaluated:
    """A run's answers, and what it computes for a short text, to be compared with stock PEFT."""

    answers: Answers
    probe: Probe | PeftCheck | None


def _evaluated(
    members: Sequence[Member], stack: AdapterStack, context: Context
) -> Sequence[_Evaluated | None]:
    """Evaluate the runs in the first slots, as far as any is left that can be.

    What goes wrong fails these runs, and none that have other turns.
    """
    if all(member.failure is not None for member in members):
        return [None] * len(members)
    try:
        return _evaluate(members, stack, context)
    except (InputError, RuntimeError, OSError, MemoryError) as error:
        failure = failure_of(error)
        if failure.kind == "memory":
            size = members[0].run.eval.batch_size
            failure = Failure(
                "memory",
                f"eval.batch_size is {size}, but so many questions at once for each of "
                f"{stack.num_slots} runs do not fit into the device's memory: lower it ({error})",
            )
        for member in members:
            member.fail(failure)
        return [None] * len(members)


def _evaluate(members: Sequence[Member], stack: AdapterStack, context: Context) -> list[_Evaluated]:
    """Evaluate the runs in the first slots; write their predictions."""
    runs = [member.run for member in members]
    settings = runs[0].evaluation()
    items = context.asked_of(runs[0])
    routing: Routing = next((r.eval.routing for r in runs if r.uses("bank")), "off")
    for run in runs:
        context.reporter.run_state(run_id(run), "evaluating")
    how = Procedure.of(runs[0].task, settings, routing=routing)
    title = f"evaluate {names_of(runs)}"
    answers = evaluate_forms(stack, context.base, items, how, context.reporter, title=title)
    probes = probe(stack, context.base) if runs[0].trains else [None] * len(answers)
    done = [_Evaluated(*pair) for pair in zip(answers, probes, strict=True)][: len(members)]
    for member, each in zip(members, done, strict=True):
        member.write(partial(_write_predictions, each.answers.records, member.run))
        member.fail(_not_finite(each.answers.records))
    return done


def _write_predictions(records: Sequence[ItemRecord], run: RunConfig, folder: Path) -> None:
    metric = METRICS[metric_of(run.task)]
    rows = [asdict(record) for record in records]
    write_lines(folder / PREDICTIONS, rows)
    if metric.decodes and metric.primary is not None:
        save_item_scores(folder, rows, metric.primary)


def _not_finite(records: Sequence[ItemRecord]) -> Failure | None:
    """Return the failure of a run whose weights are too large to compute with."""
    lost = [record.id for record in records if not math.isfinite(record.gold_nll_with_end)]
    if not lost:
        return None
    said = f"no finite likelihood for {len(lost)} of {len(records)} items, {lost[0]} the first"
    return Failure("diverged", f"{said}: train at a lower learning rate")


def _close(
    member: Member,
    done: _Evaluated | None,
    training: Mapping[str, object] | None,
    cost: Mapping[str, object],
    context: Context,
) -> Outcome:
    """Check the adapter with stock PEFT and give the folder its name, or say why it failed."""
    run = member.run
    member.write(lambda folder: write_json(folder / COST, cost))
    if member.failure is not None or done is None:
        return member.failed()
    result = result_of(
        run, run.evaluation(), done.answers, training=training, inputs=context.inputs
    )
    if done.probe is not None:
        check = check_with_peft(member.claim.path / ADAPTER, context.base, done.probe)
        context.reporter.note(f"{run.arm} seed {run.seed}: the adapter {check.said}")
        result[PEFT_CHECK] = check.row()
    member.write(lambda folder: write_json(folder / RESULT, result))
    if member.failure is None:
        member.write(lambda _: member.claim.complete())
    return member.failed() if member.failure else Outcome(member.claim.path, result)


def _cost(trained_s: float, evaluated_s: float, *, num_runs: int, slots: int) -> dict[str, object]:
    """Wall-clock of the whole cohort and the process's peak memory so far."""
    cost: dict[str, object] = {
        "runs_in_cohort": num_runs,
        "slots": slots,
        "training_s": round(trained_s, 1),
        "evaluation_s": round(evaluated_s, 1),
        "peak_host_memory_gib": round(_peak_memory_gib(), 2),
    }
    if torch.cuda.is_available():
        cost["peak_device_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return cost


def _peak_memory_gib() -> float:
    """Largest resident size of this process; the kernel counts KiB, on macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # SchemaBank itself in a source tree, or a task's data package
        return None
